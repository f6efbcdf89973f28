"""Opening folders that may be damaged or hostile, and commits that survive a crash at any point."""

import json
import os
import shutil
import subprocess
import sys
import time
import types
from fnmatch import fnmatch

import pytest
import torch
import transformers
from huggingface_hub.errors import LocalEntryNotFoundError, NotASafetensorsRepoError
from safetensors.torch import load_file

from deepseek.checkpoints.loading import CheckpointError, export, fingerprint, free_memory, load
from deepseek.checkpoints.saving import latest_checkpoint, list_checkpoints, pin, save_checkpoint
from deepseek.data.tokenizer import encode_document, train_tokenizer
from deepseek.model.config import preset
from deepseek.model.cpu_features import preferred_dtype
from deepseek.model.deepseek_v3 import DeepseekV3ForCausalLM

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with a random model and a tokenizer."""
    folder = tmp_path_factory.mktemp("saved")
    text = folder / "text.txt"
    text.write_text("the little fox ran to the little house. " * 20)
    train_tokenizer([str(text)], 300).save_pretrained(folder / "model")
    model = DeepseekV3ForCausalLM(preset("tiny", vocab_size=300))
    model.model.layers[1].mlp.gate.e_score_correction_bias.uniform_(-0.1, 0.1)
    model.save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of it to do harm to."""
    return shutil.copytree(saved, tmp_path / "model")


def edit(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def assert_refused(path):
    with pytest.raises(CheckpointError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(f"checkpoint {str(path)!r}") and "\n" not in message
    return message


# Opening


def test_load_returns_the_model_and_tokenizer_that_were_saved(saved):
    model, tokenizer = load(saved, torch.float32)
    assert type(model) is DeepseekV3ForCausalLM and not model.training
    for name, tensor in DeepseekV3ForCausalLM.from_pretrained(saved).state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    ids = encode_document(tokenizer, "the little fox")
    assert ids[0] == tokenizer.bos_token_id == 0
    assert tokenizer.decode(ids[1:]) == "the little fox"
    assert len(ids) < len("the little fox")


def test_dtype_is_chosen_for_the_machine_unless_given(saved):
    assert load(saved)[0].dtype == preferred_dtype()
    assert load(saved, torch.bfloat16)[0].dtype == torch.bfloat16


def test_other_models_open_in_transformers_own_class(tmp_path):
    ids = dict(bos_token_id=0, eos_token_id=0)
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=50, n_positions=16, **ids)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    assert type(load(tmp_path)[0]) is transformers.GPT2LMHeadModel


def test_a_folder_need_not_have_a_tokenizer(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    model, tokenizer = load(folder)
    assert type(model) is DeepseekV3ForCausalLM and tokenizer is None


def pickle_and_decoy(folder):
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).rename(folder / "other.safetensors")


DAMAGE = {
    "no config": lambda folder: (folder / "config.json").unlink(),
    "garbage config": lambda folder: (folder / "config.json").write_text("{nope"),
    "binary config": lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe\x00"),
    "unknown model": lambda folder: edit(folder / "config.json", model_type="other"),
    "unknown rope": lambda folder: edit(folder / "config.json", rope_parameters=dict(rope_type="dynamic", factor=2.0)),
    "words for numbers": lambda folder: edit(folder / "config.json", hidden_size="wide"),
    "other shapes": lambda folder: edit(folder / "config.json", hidden_size=80),
    "absurd shapes": lambda folder: edit(folder / "config.json", vocab_size=2**60),
    "missing tensors": lambda folder: edit(folder / "config.json", num_hidden_layers=3),
    "truncated weights": lambda folder: os.truncate(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size - 1000),
    "empty weights": lambda folder: os.truncate(folder / WEIGHTS, 0),
    "only a pickle": lambda folder: (folder / WEIGHTS).rename(folder / "pytorch_model.bin"),
    "a pickle and a decoy": pickle_and_decoy,
    "no folder": shutil.rmtree,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_what_cannot_be_opened_is_refused_in_one_sentence(folder, damage):
    damage(folder)
    assert_refused(folder)


def test_a_file_is_refused_too(saved):
    assert "neither a folder nor a Hub id" in assert_refused(saved / "config.json")


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_is_never_opened(folder, tmp_path):
    mark = tmp_path / "exploded"
    for name in ("pytorch_model.bin", "training.pt"):
        torch.save({"weights": Bomb(mark)}, folder / name)
    load(folder)
    (folder / WEIGHTS).unlink()
    assert_refused(folder)
    assert not mark.exists()
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert mark.exists()  # the bomb was a real one


@pytest.mark.parametrize("model_type", ["deepseek_v3", "made_up"])
def test_code_in_a_folder_is_never_run(folder, tmp_path, model_type):
    mark = tmp_path / "exploded"
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass Config: pass\nclass Model: pass\nclass Tok: pass")
    auto_map = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model", "AutoTokenizer": [None, "evil.Tok"]}
    edit(folder / "config.json", model_type=model_type, auto_map=auto_map)
    edit(folder / "tokenizer_config.json", tokenizer_class="Tok", auto_map=auto_map)
    if model_type == "made_up":
        assert_refused(folder)
    else:
        assert type(load(folder)[0]) is DeepseekV3ForCausalLM
    assert not mark.exists()


def test_export_writes_bf16_and_the_tokenizer(saved, tmp_path):
    export(saved, tmp_path)
    before, after = load_file(saved / WEIGHTS), load_file(tmp_path / WEIGHTS)
    assert before.keys() == after.keys()
    for name, tensor in after.items():
        if not name.endswith("e_score_correction_bias"):
            assert tensor.dtype == torch.bfloat16, name
            assert torch.equal(tensor, before[name].bfloat16()), name
    assert load(tmp_path)[1].get_vocab() == load(saved)[1].get_vocab()


# Commits


def write(folder):
    (folder / "weights").write_bytes(bytes(range(256)))
    (folder / "state").write_text("step")


def flip_a_bit(folder):
    file = folder / "weights"
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])


def test_a_commit_lists_every_file_in_its_manifest(tmp_path):
    folder = save_checkpoint(tmp_path / "run", 7, write)
    assert folder == tmp_path / "run" / "step-000007" == latest_checkpoint(tmp_path / "run")
    assert set(json.loads((folder / "manifest.json").read_text())) == {"weights", "state"}
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["step-000007"]


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_bit,
        lambda folder: (folder / "state").unlink(),
        lambda folder: (folder / "extra").touch(),
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: (folder / "manifest.json").write_text("[1]"),
        lambda folder: os.truncate(folder / "manifest.json", 20),
    ],
    ids=["one bit", "missing file", "extra file", "no manifest", "other manifest", "cut manifest"],
)
def test_latest_passes_over_a_damaged_commit(tmp_path, damage):
    good, bad = save_checkpoint(tmp_path, 100, write), save_checkpoint(tmp_path, 200, write)
    assert latest_checkpoint(tmp_path) == bad
    damage(bad)
    assert latest_checkpoint(tmp_path) == good
    damage(good)
    assert latest_checkpoint(tmp_path) is None


def test_a_damaged_commit_can_be_made_again(tmp_path):
    flip_a_bit(save_checkpoint(tmp_path, 100, write))
    assert save_checkpoint(tmp_path, 100, write) == latest_checkpoint(tmp_path)


def test_only_the_newest_commits_are_kept(tmp_path):
    for step in (5, 50, 999_999, 1_000_000):
        save_checkpoint(tmp_path, step, write, keep_last=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-999999", "step-1000000"]


def test_a_commit_that_somebody_has_opened_is_kept_until_another_one_is(tmp_path):
    for step in (10, 20, 30, 40):
        save_checkpoint(tmp_path, step, write, keep_last=1)
        if step in (10, 30):
            pin(tmp_path / f"step-{step:06d}")
        assert len(list_checkpoints(tmp_path)) <= 2
        assert (tmp_path / "step-000010").exists() == (step < 40)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000030", "step-000040"]
    pin(tmp_path / "no-such-folder")


def test_the_fingerprint_of_what_is_gone_is_empty(tmp_path):
    assert fingerprint(tmp_path / "runs" / "mine" / "step-000010") == ""


def test_a_failing_write_leaves_the_commits_before_it(tmp_path):
    def fail(folder):
        write(folder)
        raise OSError("disk full")

    good = save_checkpoint(tmp_path, 100, write)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(tmp_path, 200, fail)
    assert list_checkpoints(tmp_path) == [good] and latest_checkpoint(tmp_path) == good
    assert save_checkpoint(tmp_path, 200, write) == latest_checkpoint(tmp_path)


def test_a_run_without_commits_has_no_latest(tmp_path):
    assert latest_checkpoint(tmp_path) is latest_checkpoint(tmp_path / "nothing") is None


@pytest.mark.parametrize(
    "change",
    [{"hidden_size": 1 << 20}, {"num_hidden_layers": 10**6}, {"n_routed_experts": 1 << 16}, {"vocab_size": 1 << 28}],
)
def test_a_config_far_larger_than_its_weights_is_refused_at_once(checkpoint, tmp_path, change):
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    began = time.monotonic()
    with pytest.raises(CheckpointError, match="tensors for|numbers where|memory|cannot be opened|must be from"):
        load(folder)
    assert time.monotonic() - began < 5


# The Hub, whose two functions are replaced: what is asked of it, and what is done with its answers


@pytest.fixture
def hub(saved, monkeypatch):
    """A Hub whose every model holds 1,000 numbers and is `saved` once downloaded. Gives the list of its downloads."""
    downloads = []

    def download(path, allow_patterns=None, local_files_only=False):
        if local_files_only:
            raise LocalEntryNotFoundError("not here")
        downloads.append((path, allow_patterns))
        return str(saved)

    sizes = types.SimpleNamespace(parameter_count={"F32": 600, "BF16": 400})
    monkeypatch.setattr("deepseek.checkpoints.loading.get_safetensors_metadata", lambda path: sizes)
    monkeypatch.setattr("deepseek.checkpoints.loading.snapshot_download", download)
    return downloads


def test_a_hub_id_is_downloaded_and_keeps_its_name(hub):
    model, tokenizer = load("somebody/model")
    assert type(model) is DeepseekV3ForCausalLM and tokenizer is not None
    assert model.name_or_path == "somebody/model"
    (path, patterns), *others = hub
    assert path == "somebody/model" and not others
    wanted = lambda name: any(fnmatch(name, pattern) for pattern in patterns)  # noqa: E731
    assert wanted("model-00001-of-00002.safetensors") and wanted("tokenizer.json")
    assert not any(
        map(wanted, ["modeling_evil.py", "pytorch_model.bin", "original/model.safetensors", "x.pt", "x.pkl"])
    )


def test_a_hub_id_too_large_for_memory_is_refused_before_any_download(hub, monkeypatch):
    monkeypatch.setattr("deepseek.checkpoints.loading.free_memory", lambda: 3 * 2**30)
    huge = types.SimpleNamespace(parameter_count={"BF16": 5 * 2**29, "I64": 2**29})
    monkeypatch.setattr("deepseek.checkpoints.loading.get_safetensors_metadata", lambda path: huge)
    with pytest.raises(CheckpointError, match=r"needs 6\.0 GiB of memory; 3\.0 GiB are free"):
        load("somebody/huge", torch.bfloat16)
    with pytest.raises(CheckpointError, match=r"needs .* GiB of memory; 1\.0 GiB are allowed here"):
        monkeypatch.setattr("deepseek.checkpoints.loading.free_memory", lambda: 2**40)
        load("somebody/huge", most=2**30)
    assert not hub


def test_a_hub_id_without_safetensors_is_refused_before_any_download(hub, monkeypatch):
    def none(path):
        raise NotASafetensorsRepoError("none")

    monkeypatch.setattr("deepseek.checkpoints.loading.get_safetensors_metadata", none)
    assert "no .safetensors file" in assert_refused("somebody/pickles")
    assert not hub


def test_without_a_network_what_was_downloaded_before_opens(hub, saved, monkeypatch):
    def unreachable(path):
        raise OSError("no route")

    monkeypatch.setattr("deepseek.checkpoints.loading.get_safetensors_metadata", unreachable)
    assert "not on this machine, and the Hub is out of reach: no route" in assert_refused("somebody/model")
    monkeypatch.setattr("deepseek.checkpoints.loading.snapshot_download", lambda path, local_files_only: str(saved))
    assert load("somebody/model")[0].name_or_path == "somebody/model"


def test_offline_mode_gives_one_sentence_at_once(tmp_path):
    """The library itself, in a process of its own as it reads the setting when imported."""
    code = "import time, deepseek, sys; began = time.monotonic()\ntry: deepseek.load('somebody/model')\n"
    code += "except ValueError as error: print(time.monotonic() - began, error)"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    output = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True).stdout
    seconds, _, message = output.partition(" ")
    assert float(seconds) < 2
    assert message.startswith("checkpoint 'somebody/model' is not on this machine, and the Hub is out of reach")


def test_what_memory_cannot_hold_is_refused_with_both_numbers(checkpoint, monkeypatch):
    monkeypatch.setattr("deepseek.checkpoints.loading.free_memory", lambda: 1000)
    with pytest.raises(CheckpointError, match=r"needs .* GiB of memory; .* GiB are free"):
        load(checkpoint)


def test_free_memory_is_that_of_the_container(tmp_path, monkeypatch):
    limit, used = tmp_path / "memory.max", tmp_path / "memory.current"
    monkeypatch.setattr("deepseek.checkpoints.loading.CGROUP_MEMORY_FILES", [(limit, used)])
    machine = free_memory()
    assert machine > 2**27
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 300\nactive_file 20\n")
    limit.write_text("max\n")
    used.write_text("1000\n")
    assert free_memory() == pytest.approx(machine, rel=0.5)
    limit.write_text("5000\n")
    assert free_memory() == 5000 - 1000 + 320


def test_a_failing_write_gives_its_room_back(tmp_path):
    def fail(folder):
        write(folder)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(tmp_path, 200, fail)
    assert list(tmp_path.iterdir()) == []


def test_a_commit_drops_the_damaged_ones_that_the_run_went_back_behind(tmp_path):
    for step in (10, 20, 30):
        save_checkpoint(tmp_path, step, write, keep_last=2)
    flip_a_bit(tmp_path / "step-000030")
    assert latest_checkpoint(tmp_path).name == "step-000020"
    save_checkpoint(tmp_path, 25, write, keep_last=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000020", "step-000025"]
