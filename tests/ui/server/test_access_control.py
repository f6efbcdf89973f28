"""Who may start which run."""

import pytest

from deepseek.training.config import TrainConfig
from deepseek.ui.server.access_control import check_access


def config(**changes):
    """A run that a visitor of a public Space may start."""
    return TrainConfig(**{"preset": "tiny", "max_steps": 300, "root": "nowhere", "name": "mine", **changes})


def test_a_visitor_starts_a_small_run_only(monkeypatch):
    monkeypatch.setenv("SPACE_ID", "somebody/space")
    monkeypatch.setenv("OWNER_SECRET", "geheim ü")
    check_access(config(), "")
    check_access(config(data=["nowhere/mine/data/text.txt"]), "wrong")
    for changes, message in (
        ({"max_steps": 1201}, "max_steps is 1201"),
        ({"preset": "demo"}, "preset is 'demo'"),
        ({"batch_size": 64}, "batch_size is 64"),
        ({"init_from": "assets/demo"}, "init_from is"),
        ({"tokenizer": "name/model"}, "tokenizer is"),
        ({"eval_data": ["/etc/passwd"]}, "eval_data is"),
        ({"data": ["builtin", "/etc/passwd"]}, "data is '/etc/passwd'"),
        ({"data": ["nowhere/mine/data/../config.json"]}, "data is"),
        ({"data": ["name/dataset"]}, "data is 'name/dataset'"),
    ):
        with pytest.raises(ValueError, match=message):
            check_access(config(**changes), "wrong")
        check_access(config(**changes), "geheim ü")


def test_without_a_secret_nobody_is_the_owner_and_at_home_everybody_is(monkeypatch):
    monkeypatch.setenv("SPACE_ID", "somebody/space")
    monkeypatch.delenv("OWNER_SECRET", raising=False)
    with pytest.raises(ValueError, match="max_steps"):
        check_access(config(max_steps=1201), "")
    monkeypatch.delenv("SPACE_ID")
    check_access(config(max_steps=1201, preset="seed", data=["name/dataset"]), "")
