"""Cached checkpoints: which stay, which are opened again, and by how many threads."""

import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from deepseek.checkpoints import model_cache
from deepseek.checkpoints.loading import load
from deepseek.checkpoints.model_cache import ModelCache
from deepseek.checkpoints.saving import list_checkpoints, save_checkpoint


def test_the_checkpoints_used_last_stay(checkpoint, tmp_path):
    cache, paths = ModelCache(3), [str(shutil.copytree(checkpoint, tmp_path / name)) for name in "abcd"]
    first = cache.get(paths[0])
    assert cache.get(paths[0])[0] is first[0]
    for path in paths[1:3]:
        cache.get(path)
    assert cache.get(paths[0])[0] is first[0]
    cache.get(paths[3])
    assert [path in cache for path in paths] == [True, False, True, True]


def test_a_rewritten_folder_is_opened_again_and_a_deleted_one_stays_cached(checkpoint, tmp_path):
    cache, folder = ModelCache(3), tmp_path / "step-000100"
    shutil.copytree(checkpoint, folder)
    first = cache.get(str(folder))
    shutil.rmtree(folder)
    assert cache.get(str(folder))[0] is first[0]
    shutil.copytree(checkpoint, folder)
    os.utime(folder, ns=(1, 1))
    assert cache.get(str(folder))[0] is not first[0]


def test_an_opened_checkpoint_is_not_pruned_by_its_run(checkpoint, tmp_path):
    def write(folder):
        shutil.copytree(checkpoint, folder, dirs_exist_ok=True)

    for step in range(1, 6):
        folder = save_checkpoint(tmp_path, step, write, keep_last=2)
        if step == 2:
            ModelCache(1).get(str(folder))
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000002", "step-000004", "step-000005"]


def test_concurrent_requests_open_a_checkpoint_once(checkpoint, monkeypatch):
    cache, calls = ModelCache(3), []
    monkeypatch.setattr(model_cache, "load", lambda path, **_: calls.append(path) or time.sleep(0.1) or load(path))
    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(cache.get, [checkpoint] * 4))
    assert calls == [checkpoint] and len({id(model) for model, _ in opened}) == 1


def test_a_checkpoint_without_a_tokenizer_is_refused(model, tmp_path):
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no tokenizer"):
        ModelCache(1).get(str(tmp_path))
