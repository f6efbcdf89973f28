"""Flipped bits and truncated files in a checkpoint: `python tests/campaigns/bitflips.py --count 1000`.

A checkpoint of a small run is damaged in one random place at a time; the damage must be detected, and the previous
checkpoint used instead. Prints the counts as one JSON line; the last two must be 0.
"""

import argparse
import json
import os
import random
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from forking import fork_training, small_config, wait_for_exit

from deepseek.checkpoints import saving
from deepseek.training import runs


def campaign(count: int, seed: int, folder: Path) -> dict:
    """The counts over `count` damages: every file of the checkpoint in turn, truncated and with a flipped bit in turn."""
    config = small_config(folder, max_steps=4, save_every=2, keep_last=2)
    assert wait_for_exit(fork_training(config)) == 0
    previous, last = saving.list_checkpoints(config.run)
    files, rng = sorted(last.iterdir()), random.Random(seed)
    counts = dict(files=len(files), flips=0, truncations=0, undetected=0, previous_not_used=0)
    for number in range(count):
        file = files[number // 2 % len(files)]
        if number % 2:
            counts["flips"] += 1
            repair = flip(file, rng.randrange(8 * file.stat().st_size))
        else:
            counts["truncations"] += 1
            repair = truncate(file, rng.randrange(file.stat().st_size))
        counts["undetected"] += saving.is_complete(last)
        used = {saving.latest_checkpoint(config.run), runs.newest_checkpoint(config.run)}
        counts["previous_not_used"] += used != {previous}
        repair()
    assert saving.latest_checkpoint(config.run) == last, "the repaired checkpoint is complete again"
    return counts


def flip(file: Path, bit: int):
    """Flips one bit of a file; returns a function that flips it back."""

    def flip_bit():
        with file.open("r+b") as content:
            content.seek(bit // 8)
            byte = content.read(1)[0]
            content.seek(bit // 8)
            content.write(bytes([byte ^ 1 << bit % 8]))

    flip_bit()
    return flip_bit


def truncate(file: Path, size: int):
    """Truncates a file to `size` bytes; returns a function that restores it."""
    content = file.read_bytes()
    os.truncate(file, size)
    return lambda: file.write_bytes(content)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(campaign(args.count, args.seed, Path(folder))))
