"""Ids, refusals and downloads, against a Hub of our own."""

import json
import math
import os

import pytest
from huggingface_hub import constants

from deepseek.checkpoints import hub, memory
from deepseek.checkpoints.hub import Download, download, local_folder
from deepseek.checkpoints.loading import stored_shapes
from deepseek.checkpoints.memory import loading_bytes
from deepseek.checkpoints.validation import FolderError

MODEL = "org/demo"


def refusal(hub_id=MODEL, max_bytes=None):
    """The end of the sentence that a download is refused with."""
    with pytest.raises(FolderError) as caught:
        download(hub_id, 2, max_bytes)
    return str(caught.value)


def test_an_id_names_a_model_and_a_revision_but_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub.is_hub_id("org/demo") and hub.is_hub_id("org/demo@refs/pr/1") and hub.is_hub_id("Org-1/a.b_c@v1.0")
    assert not any(map(hub.is_hub_id, ["demo", "a/b/c", "/org/demo", "org/demo@", "../demo", "org/de mo", ""]))
    assert hub.split_id("org/demo@v1") == ("org/demo", "v1") and hub.split_id("org/demo") == ("org/demo", "main")
    os.makedirs("org/demo")
    assert not hub.is_hub_id("org/demo")


def test_only_what_opening_needs_is_downloaded_and_a_cached_model_opens_without_a_network(local_hub, monkeypatch):
    folder = local_hub.root / "models" / MODEL
    for name in ("modeling_evil.py", "pytorch_model.bin", "x.pkl", "consolidated.safetensors"):
        (folder / name).write_bytes(b"x")
    assert local_folder(MODEL) is None
    snapshot = download(MODEL, 2, None)
    names = {"README.md", "config.json", "generation_config.json", "model.safetensors"}
    names |= {"tokenizer.json", "tokenizer_config.json"}
    assert {file.name for file in snapshot.iterdir()} == names
    assert local_folder(MODEL) == local_folder(f"{MODEL}@main") == snapshot
    local_hub.behaviour[MODEL] = 500
    assert download(MODEL, 2, None) == snapshot
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
    assert download(MODEL, 2, None) == snapshot
    assert "is not on this machine, and the Hub is out of reach" in refusal("org/other")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert download(MODEL, 2, None) == snapshot
    assert "is not on this machine, and the Hub is out of reach" in refusal("org/other")


def test_the_hubs_refusals_say_what_to_do(local_hub):
    assert "is not on the Hub; check its spelling" in refusal("org/dmeo")
    assert "has no revision 'v9'" in refusal(f"{MODEL}@v9")
    for behaviour in ("gated", "forbidden"):
        local_hub.behaviour[MODEL] = behaviour
        asked = f"is gated: ask for access on {local_hub.url}/org/demo, then log in (hf auth login) or set HF_TOKEN."
        assert refusal() == asked


def test_what_cannot_be_opened_is_refused_before_any_download(local_hub, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: 1000)
    assert "GiB of memory; 0.0 GiB are free" in refusal()
    monkeypatch.setattr(memory, "free_memory", lambda: 2**40)
    assert "GiB are allowed here" in refusal(max_bytes=1000)
    config = local_hub.root / "models" / MODEL / "config.json"
    before = config.read_text()
    config.write_text(json.dumps(json.loads(before) | dict(quantization_config=dict(quant_method="awq", bits=4))))
    assert refusal() == (
        "is quantized by 'awq'; its weights must be fp32, bf16, fp16, fp8 or mxfp4; open the checkpoint that it was made from."
    )
    config.write_text(before)
    weights = local_hub.root / "models" / MODEL / "model.safetensors"
    weights.rename(weights.with_name("demo.gguf"))
    assert "its weights are in 'demo.gguf', a format that is not opened" in refusal()
    (weights.parent / "adapter_config.json").write_text("{}")
    assert "is an adapter" in refusal()
    assert local_folder(MODEL) is None


def test_a_mixture_is_downloaded_if_there_is_memory_for_all_but_its_experts(local_hub, monkeypatch):
    folder = local_hub.root / "models" / MODEL
    shapes = stored_shapes(folder)
    size = sum(map(math.prod, shapes.values()))
    others = sum(math.prod(shape) for name, shape in shapes.items() if ".experts." not in name)
    monkeypatch.setattr(memory, "free_memory", lambda: 2 * loading_bytes(others, 0) - 1)
    assert "GiB of memory; " in refusal()
    monkeypatch.setattr(memory, "free_memory", lambda: loading_bytes(2 * others, 0))
    assert loading_bytes(2 * others, 0) < loading_bytes(2 * size, 0)
    assert download(MODEL, 2, None).is_dir()


def test_a_download_can_be_watched_cancelled_and_continued(local_hub, monkeypatch):
    weights = local_hub.root / "models" / MODEL / "model.safetensors"
    os.truncate(weights, 2**22)  # slow: 6 s
    local_hub.behaviour[MODEL] = "slow"
    first = Download(MODEL, 2, None)
    with pytest.raises(FolderError, match="was not downloaded: the download was cancelled"):
        for done, total in first.watch():
            assert first.num_watchers == 1
            if done:
                assert done < 2**22 < total
                first.cancel()
    assert first.num_watchers == 0 and local_folder(MODEL) is None
    monkeypatch.setattr(hub, "STALL_TIMEOUT_S", 2)
    monkeypatch.setattr(hub, "STALL_BYTES", 2**24)  # more than comes in that time, though bytes do come
    with pytest.raises(FolderError, match="stalled: less than 16384 KiB in 2 s"):
        list(Download(MODEL, 2, None).watch())
    monkeypatch.undo()


def test_a_refused_download_says_why(local_hub):
    with pytest.raises(FolderError, match="is not on the Hub"):
        list(Download("org/dmeo", 2, None).watch())
