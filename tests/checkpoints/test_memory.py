"""Free memory, and what is promised of it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small import families
from transformers import AutoModelForCausalLM

from deepseek.checkpoints import memory
from deepseek.checkpoints.memory import free_memory, loading_bytes, reserved_memory
from deepseek.checkpoints.validation import FolderError

ROOT = Path(__file__).parents[2]


def test_free_memory_is_that_of_the_container(tmp_path, monkeypatch):
    limit, usage = tmp_path / "memory.max", tmp_path / "memory.current"
    monkeypatch.setattr(memory, "CGROUP_MEMORY_FILES", [(limit, usage)])
    machine = free_memory()
    assert machine > 2**27
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 300\nactive_file 20\n")
    limit.write_text("max\n")
    usage.write_text("1000\n")
    assert free_memory() == pytest.approx(machine, rel=0.5)
    limit.write_text("5000\n")
    assert free_memory() == 5000 - 1000 + 320


def test_what_is_promised_to_one_is_not_free_for_another(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: 10 * 2**30)
    with reserved_memory(6 * 2**30):
        with (
            pytest.raises(FolderError, match=r"needs 5\.0 GiB of memory; 4\.0 GiB are free"),
            reserved_memory(5 * 2**30),
        ):
            pass
        with reserved_memory(4 * 2**30):
            pass
    with reserved_memory(10 * 2**30):
        pass


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_loading_is_said_to_need_is_what_it_takes_at_its_peak(dtype, tmp_path):
    """A mixture of experts of 60 M parameters, stored in bf16, opened in a process of its own."""
    config = families()["olmoe"]
    config.hidden_size = config.intermediate_size = 1024
    config.vocab_size, config.head_dim = 2000, 256
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path)
    code = """
import sys, torch
import transformers.models.olmoe.modeling_olmoe
from deepseek.checkpoints.loading import load
def status(field):
    return 1024 * next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field))
before = status("VmRSS"), status("RssAnon")
model, _ = load(sys.argv[1], getattr(torch, sys.argv[2]))
print(sum(p.nbytes for p in model.parameters()), status("VmHWM") - before[0], status("RssAnon") - before[1])
"""
    arguments = [sys.executable, "-c", code, str(tmp_path), dtype]
    model_bytes, peak, kept = map(int, subprocess.check_output(arguments, cwd=ROOT).split())
    stored_bytes = (tmp_path / "model.safetensors").stat().st_size
    peak -= stored_bytes  # mapped, and given back on demand
    assert 0.35 * loading_bytes(model_bytes, stored_bytes) < peak < loading_bytes(model_bytes, stored_bytes) + 2**25
    assert kept < 1.1 * model_bytes + 2**26, "what loading alone took was given back"
