"""Opening folders and Hub ids that may be damaged, hostile or too large."""

import json
import os
import shutil
import time
import types
from fnmatch import fnmatch
from pathlib import Path

import hostile
import pytest
import torch
import transformers
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError, NotASafetensorsRepoError
from safetensors.torch import load_file

from deepseek.checkpoints import loading
from deepseek.checkpoints.loading import CheckpointError, export, fingerprint, free_memory, load
from deepseek.data.tokenizer import encode_document
from deepseek.model.cpu_features import preferred_dtype
from deepseek.model.deepseek_v3 import DeepseekV3ForCausalLM

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(checkpoint, tmp_path):
    """A copy of a checkpoint, to be damaged."""
    return shutil.copytree(checkpoint, tmp_path / "model")


def edit(name, **changes):
    """A function that changes values of a JSON file of a folder."""

    def apply(folder):
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | changes))

    return apply


def refusal(path, **options):
    """The sentence that opening `path` is refused with."""
    with pytest.raises(CheckpointError) as caught:
        load(path, **options)
    message = str(caught.value)
    assert message.startswith(f"checkpoint {str(path)!r}") and "\n" not in message
    return message


# Folders


def test_load_returns_the_saved_model_and_tokenizer(checkpoint):
    model, tokenizer = load(checkpoint, torch.float32)
    assert type(model) is DeepseekV3ForCausalLM and not model.training
    for name, tensor in DeepseekV3ForCausalLM.from_pretrained(checkpoint).state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    ids = encode_document(tokenizer, "Once upon a time")
    assert ids[0] == tokenizer.bos_token_id == 0
    assert tokenizer.decode(ids[1:]) == "Once upon a time"
    assert len(ids) < len("Once upon a time")


def test_dtype_defaults_to_the_machines(checkpoint):
    assert load(checkpoint)[0].dtype == preferred_dtype()
    assert load(checkpoint, torch.bfloat16)[0].dtype == torch.bfloat16


def test_other_models_open_in_the_class_of_transformers(tmp_path):
    ids = dict(bos_token_id=0, eos_token_id=0)
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=50, n_positions=16, **ids)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    assert type(load(tmp_path)[0]) is transformers.GPT2LMHeadModel


def test_a_tokenizer_is_optional(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    model, tokenizer = load(folder)
    assert type(model) is DeepseekV3ForCausalLM and tokenizer is None


def pickle_and_decoy(folder):
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).rename(folder / "other.safetensors")


def truncate_weights(folder):
    os.truncate(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size - 1000)


CANNOT_BE_OPENED, TOO_LARGE = "cannot be opened: ", "parameters where its config.json describes"
DAMAGE = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    "garbage config": (lambda folder: (folder / "config.json").write_text("{nope"), "config.json that is not JSON"),
    "binary config": (
        lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe\0"),
        "config.json that is not JSON",
    ),
    "unknown model": (edit("config.json", model_type="other"), CANNOT_BE_OPENED),
    "unknown rope": (edit("config.json", rope_parameters=dict(rope_type="dynamic", factor=2.0)), CANNOT_BE_OPENED),
    "words for numbers": (edit("config.json", hidden_size="wide"), CANNOT_BE_OPENED),
    "other shapes": (edit("config.json", hidden_size=80), "where its config.json says ["),
    "absurd shapes": (edit("config.json", vocab_size=2**60), CANNOT_BE_OPENED),
    "large vocabulary": (edit("config.json", vocab_size=2**28), TOO_LARGE),
    "large width": (edit("config.json", hidden_size=2**20), TOO_LARGE),
    "many experts": (edit("config.json", n_routed_experts=2**16), TOO_LARGE),
    "many layers": (edit("config.json", num_hidden_layers=500), "tensors for 500 layers"),
    "too many layers": (edit("config.json", num_hidden_layers=10**6), "it must be from 0 to 512"),
    "missing tensors": (edit("config.json", num_hidden_layers=4), "lacks the tensor 'model.layers.3."),
    "truncated weights": (truncate_weights, CANNOT_BE_OPENED),
    "empty weights": (lambda folder: os.truncate(folder / WEIGHTS, 0), "with a header of 0"),
    "only a pickle": (lambda folder: (folder / WEIGHTS).rename(folder / "pytorch_model.bin"), "no .safetensors file"),
    "a pickle and a decoy": (pickle_and_decoy, CANNOT_BE_OPENED),
    "no folder": (shutil.rmtree, "is neither a folder nor a Hub id"),
}


@pytest.mark.parametrize("damage, reason", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_folder_is_refused_at_once_in_one_sentence(folder, damage, reason):
    damage(folder)
    start = time.monotonic()
    assert reason in refusal(folder)
    assert time.monotonic() - start < 5


def test_a_file_is_refused(checkpoint):
    assert "neither a folder nor a Hub id" in refusal(Path(checkpoint) / "config.json")


def test_a_pickle_is_never_opened(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("pytorch_model.bin", "training.pt"):
        torch.save({"weights": hostile.Payload()}, folder / name)
    load(folder)
    (folder / WEIGHTS).unlink()
    refusal(folder)
    assert not Path(hostile.FLAG).exists()
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert Path(hostile.FLAG).exists(), "the payload works"


@pytest.mark.parametrize("model_type", ["deepseek_v3", "made_up"])
def test_code_in_a_folder_is_never_run(folder, tmp_path, monkeypatch, model_type):
    monkeypatch.chdir(tmp_path)
    (folder / "evil.py").write_text(f"{hostile.CODE}\nclass Config: pass\nclass Model: pass\nclass Tok: pass")
    auto_map = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model", "AutoTokenizer": [None, "evil.Tok"]}
    edit("config.json", model_type=model_type, auto_map=auto_map)(folder)
    edit("tokenizer_config.json", tokenizer_class="Tok", auto_map=auto_map)(folder)
    if model_type == "made_up":
        refusal(folder)
    else:
        assert type(load(folder)[0]) is DeepseekV3ForCausalLM
    assert not Path(hostile.FLAG).exists()


def test_export_writes_bf16_and_the_tokenizer(checkpoint, tmp_path):
    export(checkpoint, tmp_path)
    before, after = load_file(Path(checkpoint) / WEIGHTS), load_file(tmp_path / WEIGHTS)
    assert before.keys() == after.keys()
    for name, tensor in after.items():
        if not name.endswith("e_score_correction_bias"):
            assert tensor.dtype == torch.bfloat16, name
            assert torch.equal(tensor, before[name].bfloat16()), name
    assert load(tmp_path)[1].get_vocab() == load(checkpoint)[1].get_vocab()


def test_the_fingerprint_identifies_the_weights(checkpoint, folder, tmp_path):
    assert fingerprint(folder) == fingerprint(checkpoint)
    (folder / WEIGHTS).write_bytes(b"other")
    assert fingerprint(folder) != fingerprint(checkpoint)
    assert fingerprint(tmp_path / "runs" / "mine" / "step-000010") == "", "it is gone"


# Memory


def test_a_model_larger_than_memory_is_refused_with_both_numbers(checkpoint, monkeypatch):
    monkeypatch.setattr(loading, "free_memory", lambda: 1000)
    with pytest.raises(CheckpointError, match=r"needs .* GiB of memory; .* GiB are free"):
        load(checkpoint)


def test_free_memory_is_that_of_the_container(tmp_path, monkeypatch):
    limit, usage = tmp_path / "memory.max", tmp_path / "memory.current"
    monkeypatch.setattr(loading, "CGROUP_MEMORY_FILES", [(limit, usage)])
    machine = free_memory()
    assert machine > 2**27
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 300\nactive_file 20\n")
    limit.write_text("max\n")
    usage.write_text("1000\n")
    assert free_memory() == pytest.approx(machine, rel=0.5)
    limit.write_text("5000\n")
    assert free_memory() == 5000 - 1000 + 320


# The Hub, whose two functions are replaced


@pytest.fixture
def hub(checkpoint, monkeypatch):
    """A Hub whose every model has 1,000 parameters and downloads as `checkpoint`. Returns the list of downloads."""
    downloads = []

    def download(path, allow_patterns=None, local_files_only=False):
        if local_files_only:
            raise LocalEntryNotFoundError("not here")
        downloads.append((path, allow_patterns))
        return checkpoint

    set_metadata(monkeypatch, {"F32": 600, "BF16": 400})
    monkeypatch.setattr(loading, "snapshot_download", download)
    return downloads


def set_metadata(monkeypatch, answer):
    """Replaces what the Hub says of a model: parameters by type, or an error."""

    def get_metadata(path):
        if isinstance(answer, Exception):
            raise answer
        return types.SimpleNamespace(parameter_count=answer)

    monkeypatch.setattr(loading, "get_safetensors_metadata", get_metadata)


def test_a_hub_id_is_downloaded_and_keeps_its_name(hub):
    model, tokenizer = load("somebody/model")
    assert type(model) is DeepseekV3ForCausalLM and tokenizer is not None
    assert model.name_or_path == "somebody/model"
    ((path, patterns),) = hub
    assert path == "somebody/model"
    names = ["modeling_evil.py", "pytorch_model.bin", "original/model.safetensors", "x.pt", "x.pkl"]
    names += ["model-00001-of-00002.safetensors", "tokenizer.json"]
    assert [name for name in names if any(fnmatch(name, pattern) for pattern in patterns)] == names[-2:]


def test_a_hub_id_too_large_for_memory_is_refused_before_any_download(hub, monkeypatch):
    monkeypatch.setattr(loading, "free_memory", lambda: 3 * 2**30)
    set_metadata(monkeypatch, {"BF16": 5 * 2**29, "I64": 2**29})
    assert "needs 6.0 GiB of memory; 3.0 GiB are free" in refusal("somebody/huge", dtype=torch.bfloat16)
    monkeypatch.setattr(loading, "free_memory", lambda: 2**40)
    assert "GiB of memory; 1.0 GiB are allowed here" in refusal("somebody/huge", max_bytes=2**30)
    assert not hub


def test_a_hub_id_without_safetensors_is_refused_before_any_download(hub, monkeypatch):
    set_metadata(monkeypatch, NotASafetensorsRepoError("none"))
    assert "no .safetensors file" in refusal("somebody/pickles")
    assert not hub


def test_without_a_network_a_cached_download_opens(hub, checkpoint, monkeypatch):
    set_metadata(monkeypatch, OSError("no route"))
    assert "not on this machine, and the Hub is out of reach: no route" in refusal("somebody/model")
    monkeypatch.setattr(loading, "snapshot_download", lambda path, local_files_only: checkpoint)
    assert load("somebody/model")[0].name_or_path == "somebody/model"


def test_offline_mode_is_reported_at_once_by_the_library_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    start = time.monotonic()
    assert "is not on this machine, and the Hub is out of reach" in refusal("somebody/model")
    assert time.monotonic() - start < 2
