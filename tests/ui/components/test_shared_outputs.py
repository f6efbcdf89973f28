"""Of the events that write to the same outputs the newest wins."""

from itertools import count

import gradio as gr
import pytest

from deepseek.ui.components import shared_outputs
from deepseek.ui.components.shared_outputs import Turns

SKIP, CLOCK = gr.skip(), count(1.0)


def take_turns(function, time=None):
    """The event function, for the next event that the user causes, or one at `time`."""
    return lambda turns, *values: shared_outputs.take_turns(function)(turns, time or next(CLOCK), *values)


def add_to_turn(function, time=None):
    return lambda turns, *values: shared_outputs.add_to_turn(function)(turns, time or next(CLOCK), *values)


def counting(turn, name):
    """Yields updates until the turn is over, then a last one."""
    for number in range(9):
        if turn.is_over():
            break
        yield f"{name}{number}"
    yield f"{name} ended"


@pytest.fixture
def turns():
    return Turns()


def test_a_newer_stream_goes_on_in_the_older_one(turns):
    """Only the answers of one event are drawn in order."""
    stream = take_turns(counting)
    older, newer = stream(turns, "a"), stream(turns, "b")
    assert [next(older), next(older)] == ["a0", "a1"]
    assert list(newer) == [SKIP]
    assert list(older) == [
        *(f"b{number}" for number in range(9)),
        "b ended",
        SKIP,
    ]  # gradio sends again what comes last
    assert list(stream(turns, "c"))[-2:] == ["c ended", SKIP]


def test_a_newer_answer_without_a_stream_goes_the_same_way(turns):
    older = take_turns(counting)(turns, "a")
    next(older)
    assert take_turns(lambda turn: "back")(turns) == SKIP
    assert list(older) == ["back", SKIP]


def test_a_closed_page_or_an_older_failure_leaves_the_outputs_to_others(turns):
    def fail(turn):
        yield "a0"
        raise gr.Error("late")

    stream = take_turns(counting)
    closed = stream(turns, "closed")
    next(closed)
    closed.close()
    failing = take_turns(fail)(turns)
    assert next(failing) == "a0" and list(stream(turns, "b")) == [SKIP]
    assert next(failing) == "b0"
    turns.stop(next(CLOCK))
    assert list(failing) == ["b ended", SKIP]
    alone = take_turns(fail)(turns)
    assert next(alone) == "a0"
    with pytest.raises(gr.Error):
        next(alone)
    assert next(stream(turns, "c")) == "c0"


def test_the_order_of_the_user_counts_not_that_of_the_first_updates(turns):
    answer = take_turns(lambda turn, name: name)
    started = []

    def slow(turn, name):
        started.append(answer(turns, "newer"))
        return name

    assert take_turns(slow)(turns, "older") == SKIP and started == ["newer"]


def test_the_order_of_the_user_counts_not_that_in_which_requests_arrive(turns):
    """A page sends each event as a request of its own, and the later one may be the first to reach the server."""
    name = lambda turn, name: name  # noqa: E731
    assert take_turns(name, time=1000.2)(turns, "newer") == "newer"
    assert take_turns(name, time=1000.1)(turns, "older") == SKIP
    turns.stop(1000.3)
    turns.stop(1000.2)
    assert take_turns(name, time=1000.25)(turns, "before the last Stop") == SKIP
    one, other = lambda: "one", lambda: "other"
    add = shared_outputs.add_to_turn(lambda value: value())
    assert [add(turns, time, value) for time, value in ((1002, other), (1001, one))] == ["other", SKIP]


def test_a_newer_event_that_is_refused_or_skips_changes_nothing(turns):
    stream = take_turns(counting)
    older = stream(turns, "a")
    assert next(older) == "a0"

    def refuse(turn):
        raise gr.Error("no")

    with pytest.raises(gr.Error):
        take_turns(refuse)(turns)
    assert take_turns(lambda turn: gr.skip())(turns) == SKIP
    assert next(older) == "a1"


def test_stop_ends_what_has_begun_and_keeps_its_last_words(turns):
    stream = take_turns(counting)
    shown = stream(turns, "a")
    assert next(shown) == "a0"
    turns.stop(next(CLOCK))
    assert list(shown) == ["a ended", SKIP]
    assert next(stream(turns, "b")) == "b0"  # begun after the Stop

    def stopped_while_it_waits(turn):
        turns.stop(next(CLOCK))
        yield "too late"

    assert list(take_turns(stopped_while_it_waits)(turns)) == [SKIP]


def test_an_answer_about_a_text_is_dropped_once_another_text_or_a_newer_answer_is_shown(turns):
    show, answers = take_turns(lambda turn, name: name), []
    add = add_to_turn(lambda meanwhile: meanwhile())
    show(turns, "text")
    assert add(turns, lambda: "details") == "details"
    assert add(turns, lambda: show(turns, "another text")) == SKIP
    assert add(turns, lambda: answers.append(add(turns, lambda: "newer"))) == SKIP and answers == ["newer"]
