"""Which checkpoints a user may open."""

import shutil

import pytest

from deepseek import load
from deepseek.checkpoints import model_cache
from deepseek.ui.server import model_registry


@pytest.mark.parametrize("path", ["/etc", "tests", "", None, 5, "a/b/c"])
def test_what_is_no_checkpoint_is_refused(path):
    with pytest.raises(ValueError, match="^checkpoint "):
        model_registry.open_requested(path, "assets/demo")


def test_a_public_space_opens_no_folder_but_runs_and_only_small_models_of_the_hub(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("SPACE_ID", "somebody/space")
    with pytest.raises(ValueError, match="here it must be one of .*, or a Hub id"):
        model_registry.open_requested(checkpoint, "assets/demo")
    monkeypatch.setattr(model_registry, "RUNS", tmp_path)
    checkpoints = [str(shutil.copytree(checkpoint, tmp_path / "run" / f"step-{step:06d}")) for step in (100, 200)]
    for path in checkpoints:  # the older one too, which the Train tab offers
        assert model_registry.open_requested(path, "assets/demo")[0].name_or_path == path
    with pytest.raises(ValueError, match="here it must be one of"):
        model_registry.open_requested(f"{checkpoints[0]}/../step-000100", "assets/demo")
    limits = []
    monkeypatch.setattr(model_cache, "load", lambda path, max_bytes: limits.append(max_bytes) or load(checkpoint))
    model_registry.open_requested("somebody/model", "assets/demo")
    assert limits == [model_registry.MAX_PUBLIC_BYTES]
