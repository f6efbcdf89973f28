"""Flipped bits and cut files in a commit: `python tests/campaigns/bitflips.py --count 1000`.

A real commit of a small run is damaged in one random place at a time; it must be found, and the commit before it
offered in its place. Prints the figures as one JSON line; the last two must be 0.
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

from forking import SETTINGS, exit_code, stories, training

from deepseek.checkpoints import saving
from deepseek.training import runs
from deepseek.training.config import TrainConfig


def campaign(count: int, seed: int, folder: Path) -> dict:
    """The figures over `count` kinds of damage, every file of the commit in turn, bits and cuts in turn."""
    config = TrainConfig(
        **{**SETTINGS, "root": str(folder), "data": [stories(folder)], "steps": 4, "save_every": 2, "keep": 2}
    )
    assert exit_code(training(config)) == 0
    before, last = saving.list_checkpoints(config.run)
    files, draw = sorted(last.iterdir()), random.Random(seed)
    figures = dict(files=len(files), flips=0, cuts=0, not_found=0, before_not_used=0)
    for number in range(count):
        file = files[number // 2 % len(files)]
        if number % 2:
            figures["flips"] += 1
            repair = flip(file, draw.randrange(8 * file.stat().st_size))
        else:
            figures["cuts"] += 1
            repair = cut(file, draw.randrange(file.stat().st_size))
        figures["not_found"] += saving.is_complete(last)
        figures["before_not_used"] += (
            not saving.latest_checkpoint(config.run) == runs.newest_checkpoint(config.run) == before
        )
        repair()
    assert saving.latest_checkpoint(config.run) == last, "the repaired commit is whole again"
    return figures


def flip(file: Path, bit: int):
    """Flips one bit of a file; returns what flips it back."""

    def again():
        with file.open("r+b") as content:
            content.seek(bit // 8)
            byte = content.read(1)[0]
            content.seek(bit // 8)
            content.write(bytes([byte ^ 1 << bit % 8]))

    again()
    return again


def cut(file: Path, size: int):
    """Cuts a file to `size` bytes; returns what restores it."""
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
