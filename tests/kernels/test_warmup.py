"""Loops compiled before a text asks for them: all of them, of the very kinds that it asks for."""

import json
import os
import subprocess
import sys

from running import ROOT

WRITE = """
import json, sys
import numpy as np, torch
from numba.core.dispatcher import Dispatcher
from deepseek import SamplingParams, candidates, kernels, load, stream, warm

torch.set_num_threads(1)
loops = [loop for module in (kernels, candidates) for loop in vars(module).values() if isinstance(loop, Dispatcher)]

def write(*checkpoint):
    list(stream(*load(*checkpoint), "Once", SamplingParams(top_k=40, top_p=0.9, max_new_tokens=4)))
"""
FROM_DISK = """
write(sys.argv[1])
print(json.dumps([sum(sum(getattr(loop.stats, kind).values()) for loop in loops) for kind in ("cache_hits", "cache_misses")]))
"""
IN_PLACE = """
warm.candidates()
kinds = lambda: sum(len(loop.signatures) for loop in loops)
for weights, cached, path, dtype in (
    (np.float32, np.float32, sys.argv[1], torch.float32),
    (np.uint16, np.float32, "assets/demo", torch.float32),
    (np.uint16, np.uint16, sys.argv[1], torch.bfloat16),
):
    warm.kernels(weights, cached)
    before = kinds()
    write(path, dtype)
    print(kinds() - before)
"""


def run(*command, compiled):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(compiled)}
    command = [sys.executable, *command]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_text_of_the_demo_finds_every_loop_on_disk(tmp_path):
    assert run("-P", "deepseek/warm.py", compiled=tmp_path) == ""
    hits, misses = json.loads(run("-c", WRITE + FROM_DISK, "assets/demo", compiled=tmp_path))
    assert hits >= 10 and misses == 0


def test_so_does_one_of_any_kind_of_weights_and_cache(checkpoint, tmp_path):
    assert run("-c", WRITE + IN_PLACE, checkpoint, compiled=tmp_path).split() == ["0", "0", "0"]


def test_it_does_what_it_can_where_there_is_no_checkpoint(tmp_path):
    assert run("-P", "deepseek/warm.py", "nowhere/at-all", compiled=tmp_path) == ""
    names = {file.name.split("-")[0] for file in tmp_path.rglob("*.nbi")}
    assert "candidates.pick" in names and not any(name.startswith("kernels") for name in names)
