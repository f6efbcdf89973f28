"""Checkpoints kept open."""

import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from deepseek import load
from deepseek.checkpoints import model_cache
from deepseek.checkpoints.model_cache import ModelCache
from deepseek.checkpoints.saving import list_checkpoints, save_checkpoint


def test_no_more_are_held_than_wanted_and_the_latest_used_stay(checkpoint, tmp_path):
    kept, paths = ModelCache(3), [str(shutil.copytree(checkpoint, tmp_path / name)) for name in "abcd"]
    first = kept.open(paths[0])
    assert kept.open(paths[0])[0] is first[0]
    for path in paths[1:3]:
        kept.open(path)
    assert kept.open(paths[0])[0] is first[0]
    kept.open(paths[3])
    assert [path in kept for path in paths] == [True, False, True, True]


def test_a_folder_written_anew_is_opened_anew_and_one_that_is_gone_still_serves(checkpoint, tmp_path):
    kept, folder = ModelCache(3), tmp_path / "step-000100"
    shutil.copytree(checkpoint, folder)
    one = kept.open(str(folder))
    shutil.rmtree(folder)
    assert kept.open(str(folder))[0] is one[0]
    shutil.copytree(checkpoint, folder)
    os.utime(folder, ns=(1, 1))
    assert kept.open(str(folder))[0] is not one[0]


def test_an_open_commit_is_not_pruned_by_the_run_that_goes_on(checkpoint, tmp_path):
    for step in range(1, 6):
        folder = save_checkpoint(
            tmp_path, step, lambda folder: shutil.copytree(checkpoint, folder, dirs_exist_ok=True), keep_last=2
        )
        if step == 2:
            ModelCache(1).open(str(folder))
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000002", "step-000004", "step-000005"]


def test_readers_at_once_open_a_checkpoint_once(checkpoint, monkeypatch):
    kept, calls = ModelCache(3), []
    monkeypatch.setattr(model_cache, "load", lambda path, **_: calls.append(path) or time.sleep(0.2) or load(path))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(kept.open, [checkpoint] * 4))
    assert calls == [checkpoint] and len({id(model) for model, _ in found}) == 1


def test_a_checkpoint_without_a_tokenizer_is_refused(model, tmp_path):
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no tokenizer"):
        ModelCache(1).open(str(tmp_path))
