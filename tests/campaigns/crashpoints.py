"""A kill before, and within, every system call by which a save changes the disk, and a disk that is full from there on.

`python tests/campaigns/crashpoints.py` tries all of them, `--every 5` each fifth. A child process that saves a real
checkpoint is stopped at its system calls. After each, the newest complete checkpoint must be the previous or the new
one, the best must be complete, the next save must work, and nothing else may be left. Prints the counts as one JSON line; the
last must be 0.
"""

import argparse
import collections
import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from forking import fork, fork_training, small_config, wait_for_exit
from safetensors.torch import load_file, save_file
from tracing import WRITES, target, traced

from deepseek.checkpoints import loading, saving

BEST, FIRST, SECOND, THIRD = 1, 2, 4, 6  # steps, with as high validation losses
COUNT_NAMES = {"kill": "kills", "torn": "torn_writes", "full": "full_disks"}


def saver(folder: Path):
    """(a function that saves what a real checkpoint of a run contains, the folder of a run with its best and its newest)."""
    config = small_config(folder, name="origin", max_steps=FIRST, save_every=FIRST)
    assert wait_for_exit(fork_training(config)) == 0
    last = saving.latest_checkpoint(config.run)
    model, tokenizer = loading.load(last, torch.float32)
    tensors, state = load_file(last / "training_state.bin"), (last / "training.json").read_text()

    def write(target: Path) -> None:
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
        save_file(tensors, target / "training_state.bin")
        (target / "training.json").write_text(state)

    def save(run: Path, step: int) -> None:
        saving.save_checkpoint(run, step, write, keep_last=1, validation={"val_loss": float(step), "texts": "the same"})

    shutil.rmtree(last)
    for step in (BEST, FIRST):
        save(config.run, step)
    return save, config.run


def campaign(every: int, folder: Path) -> dict:
    """The counts over every `every`-th point."""
    save, origin = saver(folder)
    run, calls = folder / "run", []

    def attempt(at_call) -> int:
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(origin, run)
        return traced(lambda: save(run, SECOND), at_call)

    assert attempt(lambda pid, name, count: calls.append((name, target(pid, name)))) == 0
    best, first, second, third = (run / f"step-{step:06d}" for step in (BEST, FIRST, SECOND, THIRD))
    assert saving.latest_checkpoint(run) == second
    bad = out_of_order(calls, run)
    counts = dict(calls=dict(collections.Counter(name for name, _ in calls)))
    counts |= dict(kills=0, torn_writes=0, full_disks=0, previous_used=0)
    for point in range(0, len(calls), every):
        for answer in ["kill", "torn", "full"] if calls[point][0] in WRITES.values() else ["kill"]:
            code = attempt(answer_at(answer, point))
            counts[COUNT_NAMES[answer]] += 1
            newest = saving.latest_checkpoint(run)
            counts["previous_used"] += newest == first
            if newest not in (first, second):
                bad.append((point, answer, "no checkpoint"))
            if saving.best_of(saving.list_checkpoints(run)) != best or not saving.is_complete(best):
                bad.append((point, answer, "the best checkpoint is lost"))
            if code != (10 if answer == "full" else -9):
                bad.append((point, answer, f"exit {code}"))
            if answer == "full" and (run / saving.STAGING).exists():
                bad.append((point, answer, "leftovers on a full disk"))
            if wait_for_exit(fork(lambda: save(run, THIRD))) or saving.latest_checkpoint(run) != third:
                bad.append((point, answer, "the next save fails"))
            expected = {path.name for path in origin.iterdir() if path.is_file()} | {best.name, third.name}
            if leftovers := {path.name for path in run.iterdir()} - expected:
                bad.append((point, answer, f"left: {sorted(leftovers)}"))
    return {**counts, "bad": bad}


def answer_at(answer: str, point: int):
    """Lets all calls before number `point` through, then gives `answer`; a disk stays full."""

    def at_call(pid: int, name: str, count: int) -> str | None:
        if answer == "full":
            return "full" if count >= point and name in WRITES.values() else None
        return answer if count == point else None

    return at_call


def out_of_order(calls: list[tuple[str, str]], run: Path) -> list[str]:
    """What a power cut could lose: files not flushed before the rename, or a prune before the rename is flushed."""
    staging = run / saving.STAGING
    rename = calls.index(("rename", str(staging)))
    last_write = max(index for index, (name, _) in enumerate(calls) if name in WRITES.values())
    flushed = {path for name, path in calls[last_write:rename] if name == "fsync"}
    required = {staging, *(staging / file.name for file in saving.latest_checkpoint(run).iterdir())}
    faults = [f"{path} is not flushed" for path in required if str(path) not in flushed]
    first_removal = min(i for i, (name, _) in enumerate(calls) if name.startswith("unlink") and i > rename)
    if ("fsync", str(run)) not in calls[rename:first_removal]:
        faults.append("the previous checkpoint is removed too early")
    return faults


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--every", type=int, default=1)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(campaign(parser.parse_args().every, Path(folder).resolve())))
