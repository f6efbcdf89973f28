"""One copy of a model in memory for several processes."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small import families
from transformers import AutoModelForCausalLM

from deepseek.checkpoints.loading import load
from deepseek.checkpoints.shared_model import SharedModel, open_shared

ROOT = Path(__file__).parents[2]
IDS = torch.tensor([[1, 2, 3, 4, 5]])


@pytest.mark.parametrize("family", families())
def test_every_family_computes_the_same_on_the_shared_memory(family):
    model = AutoModelForCausalLM.from_config(families()[family]).eval()
    expected = model(IDS).logits
    shared = SharedModel(model, None)
    other, tokenizer = open_shared(shared.file, shared.pickled)
    assert tokenizer is None and torch.equal(model(IDS).logits, expected) and torch.equal(other(IDS).logits, expected)
    assert model.dtype == other.dtype and not other.training


def test_tied_weights_stay_tied_and_the_tokenizer_comes_along(checkpoint):
    model, tokenizer = load(checkpoint)
    shared = SharedModel(model, tokenizer)
    other, its_tokenizer = open_shared(shared.file, shared.pickled)
    assert other.lm_head.weight is other.model.embed_tokens.weight
    assert other.name_or_path == model.name_or_path
    assert its_tokenizer("Once upon a time").input_ids == tokenizer("Once upon a time").input_ids


def test_no_process_sees_what_another_writes(checkpoint):
    model, _ = load(checkpoint)
    shared = SharedModel(model, None)
    expected = model(IDS).logits
    other, _ = open_shared(shared.file, shared.pickled)
    with torch.no_grad():
        other.model.norm.weight.zero_()
    assert torch.equal(model(IDS).logits, expected)
    with torch.no_grad():
        model.model.norm.weight.fill_(2)
    assert torch.equal(open_shared(shared.file, shared.pickled)[0](IDS).logits, expected)


def shared_bytes():
    """Memory of this machine that lies in files in memory."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Shmem:"))


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="no files in memory here")
def test_a_second_process_takes_no_second_copy_and_all_is_given_back(tmp_path):
    """A layer of 64 MiB, its private memory in a process that opens it, and what is left when it is gone."""
    code = """
import sys, torch
from pathlib import Path
from deepseek.checkpoints.shared_model import open_shared
def private():
    return 1024 * sum(int(line.split()[1]) for line in open("/proc/self/smaps_rollup") if line.startswith("Private_Dirty:"))
pickled, before = sys.stdin.buffer.read(), private()
model, _ = open_shared(open(int(sys.argv[1]), "rb"), pickled)
print(private() - before, model.weight.sum().item())
"""
    model = torch.nn.Linear(2**12, 2**12, bias=False)
    with torch.no_grad():
        model.weight.fill_(2**-20)
    shared, before = SharedModel(model, None), shared_bytes()
    descriptor = shared.file.fileno()
    output = subprocess.check_output(
        [sys.executable, "-c", code, str(descriptor)], input=shared.pickled, pass_fds=[descriptor], cwd=ROOT
    )
    private, total = output.split()
    assert float(total) == 16 and int(private) < 2**24
    del model, shared
    gc.collect()
    assert before - shared_bytes() > 2**25
