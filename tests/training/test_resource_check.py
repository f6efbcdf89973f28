"""The memory and disk that a run needs, and the refusal of one that does not fit."""

import re
from types import SimpleNamespace

import pytest

from deepseek.checkpoints.hub import local_folder
from deepseek.data.dataloader import PackedDataLoader
from deepseek.model.config import preset
from deepseek.training import runs
from deepseek.training.config import TrainingError
from deepseek.training.resource_check import PROGRAM_BYTES, required_bytes


@pytest.mark.parametrize("resource, free", [("memory", "768 MiB"), ("disk", "1.0 GiB")])
def test_a_run_that_does_not_fit_is_refused_with_both_numbers(config, train_config, monkeypatch, resource, free):
    """By `runs.start`, before there is a process, and by the command line."""
    memory, disk = (3 * 2**28, 2**40) if resource == "memory" else (None, 2**30)
    monkeypatch.setattr("deepseek.training.resource_check.free_memory", lambda: memory)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=disk))
    refusal = rf"run 'run' needs about \d+\.\d GiB of {resource}; {free} are free\."
    config = config(preset="seed")
    with pytest.raises(runs.RunError, match=f"^{refusal}$"):
        runs.start(config)
    with pytest.raises(SystemExit) as exit_:
        train_config(config)
    assert re.fullmatch(f"error: {refusal}", exit_.value.code)
    assert not config.run.exists()


def test_every_process_needs_memory_of_its_own(config, monkeypatch):
    """torchrun's processes on this machine: a copy of the model each, or a shard with --shard, and a part of the batch."""
    copied, sharded = config(preset="seed"), config(preset="seed", shard=True)
    memory, checkpoint = required_bytes(copied)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    head = 4 * preset("seed").vocab_size * preset("seed").hidden_size
    weights = (checkpoint - head - 4 * PackedDataLoader.BUFFER_BLOCKS * copied.max_seq_len) // 12
    per_process = required_bytes(sharded)[0] - memory  # the program, and its logits
    assert per_process > PROGRAM_BYTES
    assert required_bytes(copied) == (memory + per_process + 16 * weights, checkpoint)


def test_the_estimate_of_a_checkpoint_is_its_size(config, train_config):
    config = config(max_steps=1)
    train_config(config)
    checkpoint = runs.find(config.root, "run").checkpoint
    size = sum(file.stat().st_size for file in checkpoint.iterdir())
    assert required_bytes(config)[1] == pytest.approx(size, rel=0.1)
    assert required_bytes(config, checkpoint) == pytest.approx(required_bytes(config), rel=1e-3)


def test_a_hub_model_to_start_from_is_measured_before_it_is_downloaded(config, checkpoint, local_hub):
    from_hub, from_folder = config(preset="seed", init_from="org/demo"), config(preset="seed", init_from=checkpoint)
    assert required_bytes(from_hub) == required_bytes(from_folder) != required_bytes(config(preset="seed"))
    assert local_folder("org/demo") is None
    local_hub.behaviour["org/demo"] = "gated"
    with pytest.raises(TrainingError, match="^init_from is 'org/demo', which is gated: ask for access on http"):
        required_bytes(from_hub)
