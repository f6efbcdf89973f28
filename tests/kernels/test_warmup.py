"""Kernels compiled before the first request: all of them, for the dtypes that a request needs, without torch."""

import os
import subprocess
import sys

import numpy as np
import pytest
from running import ROOT

from deepseek.kernels import warmup

COMPILE = """
import runpy, sys
sys.argv = ["warmup", "assets/demo"]
runpy.run_module("deepseek.kernels.warmup", run_name="__main__")
assert "torch" not in sys.modules
"""
GENERATE = """
import sys
import numpy as np, torch
from numba.core.dispatcher import Dispatcher
from deepseek import SamplingParams, load, stream
from deepseek.kernels import gemm, mla_decode, ops, sampling, warmup

torch.set_num_threads(1)
definitions = [value for module in (gemm, mla_decode, ops, sampling) for value in vars(module).values()]
kernels = {value for value in definitions if isinstance(value, Dispatcher)}

def generate(*checkpoint):
    list(stream(*load(*checkpoint), "Once", SamplingParams(top_k=40, top_p=0.9, max_new_tokens=4)))

def num_signatures():
    return sum(len(kernel.signatures) for kernel in kernels)

"""
FROM_DISK = """
generate("assets/demo")
print(*(sum(sum(getattr(kernel.stats, name).values()) for kernel in kernels) for name in ("cache_hits", "cache_misses")))
"""
IN_MEMORY = """
warmup.compile_sampling()
for weight_dtype, cache_dtype, path, dtype in (
    (np.float32, np.float32, sys.argv[1], torch.float32),
    (np.uint16, np.float32, "assets/demo", torch.float32),
    (np.uint16, np.uint16, sys.argv[1], torch.bfloat16),
):
    warmup.compile_decode(weight_dtype, cache_dtype)
    before = num_signatures()
    generate(path, dtype)
    print(num_signatures() - before)
"""


def run(code, *arguments, **environment):
    command, environment = [sys.executable, "-c", code, *arguments], {**os.environ, **environment}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_request_to_the_demo_finds_every_kernel_on_disk(tmp_path):
    assert run(COMPILE, NUMBA_CACHE_DIR=str(tmp_path)) == ""
    hits, misses = map(int, run(GENERATE + FROM_DISK, NUMBA_CACHE_DIR=str(tmp_path)).split())
    assert hits >= 10 and misses == 0


def test_a_request_compiles_nothing_more_for_any_dtype_of_weights_and_cache(checkpoint):
    assert run(GENERATE + IN_MEMORY, checkpoint).split() == ["0", "0", "0"]


@pytest.mark.parametrize(
    "flags, config, compiled",
    [
        ({}, '{"dtype": "float32"}', [(np.float32, np.float32)]),
        ({}, '{"dtype": "bfloat16"}', [(np.uint16, np.float32)]),
        ({"avx512bf16": True}, '{"dtype": "float32"}', [(np.uint16, np.uint16)]),
        ({"amx-tile": True}, "{}", [(np.uint16, np.uint16)]),
        ({}, "not JSON", []),
        ({}, None, []),
    ],
)
def test_the_dtypes_follow_the_cpu_and_the_checkpoint(monkeypatch, tmp_path, flags, config, compiled):
    """Without a readable checkpoint only the sampling kernels are compiled."""
    calls = []
    monkeypatch.setattr(sys, "argv", ["warmup", str(tmp_path)])
    monkeypatch.setattr(warmup, "get_host_cpu_features", lambda: flags)
    monkeypatch.setattr(warmup, "compile_sampling", lambda: calls.append("sampling"))
    monkeypatch.setattr(warmup, "compile_decode", lambda *dtypes: calls.append(dtypes))
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    warmup.main()
    assert calls == ["sampling", *compiled]
