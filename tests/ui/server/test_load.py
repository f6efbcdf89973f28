"""The load campaign at a size for CI: `tests/campaigns/load.py` is the whole of it, and says what its figures are."""

import pytest
from campaigns import load as campaign_load


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """(address, process id) of an app of its own, whose processes are watched."""
    with campaign_load.app(tmp_path_factory.mktemp("load")) as found:
        yield found


def test_readers_at_once_get_what_each_gets_alone_and_as_much_as_another(app):
    found = campaign_load.readers(app[0], 12, 48)
    assert (found["unlike_alone"], found["errors"]) == (0, 0), found
    # The bar, 0.95, is for fifty of them on an idle machine; here other tests take a part of one writer's processor.
    assert found["jain"] > 0.5, found


def test_nothing_is_written_for_readers_who_hung_up(app):
    first = next(campaign_load.gone(*app, 12))
    assert first["busy_after_2_s"] < 0.05, first


def test_more_than_the_queue_takes_get_a_text_or_a_refusal(app):
    found = campaign_load.full(app[0], 140, 2)
    assert found["neither"] == 0 and found["texts"] >= 64, found
    assert found["refused"] == 0 or "Queue is full" in found["a_refusal"], found
