"""A kill before, and within, every call that a commit makes to change the disk, and a disk that is full from there on.

`python tests/campaigns/crashpoints.py` runs all of them, `--every 5` each fifth. A real commit of a small model is made in
a process that is stopped at its system calls. After each, the newest whole commit must be the one before or the new
one, the next commit must work, and nothing else may be left. Prints the figures as one JSON line; the last must be 0.
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

from forking import SETTINGS, exit_code, forked, stories, training
from safetensors.torch import load_file, save_file
from tracing import WRITES, target, traced

from deepseek.checkpoints import loading, saving
from deepseek.training.config import TrainConfig

FIRST, SECOND, THIRD = 2, 4, 6  # steps


def committer(folder: Path):
    """(a function that commits to a run what real commits hold, the folder of a run with one commit)."""
    settings = dict(SETTINGS, root=str(folder), data=[stories(folder)], max_steps=FIRST, save_every=FIRST)
    config = TrainConfig(name="origin", **settings)
    assert exit_code(training(config)) == 0
    last = saving.latest_checkpoint(config.run)
    model, tokenizer = loading.load(last, torch.float32)
    tensors, state = load_file(last / "training_state.bin"), (last / "training.json").read_text()

    def write(target: Path) -> None:
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
        save_file(tensors, target / "training_state.bin")
        (target / "training.json").write_text(state)

    return lambda run, step: saving.save_checkpoint(run, step, write, keep_last=1), config.run


def campaign(every: int, folder: Path) -> dict:
    """The figures over every `every`-th point."""
    commit, origin = committer(folder)
    run, calls = folder / "run", []

    def fresh() -> Path:
        shutil.rmtree(run, ignore_errors=True)
        return Path(shutil.copytree(origin, run))

    def attempt(at_call) -> int:
        fresh()
        return traced(lambda: commit(run, SECOND), at_call)

    assert attempt(lambda pid, name, count: calls.append((name, target(pid, name)))) == 0
    assert saving.latest_checkpoint(run) == run / f"step-{SECOND:06d}"
    bad = out_of_order(calls, run)
    figures = dict(
        calls=dict(collections.Counter(name for name, _ in calls)), kills=0, torn_writes=0, full_disks=0, kept_before=0
    )
    for point in range(0, len(calls), every):
        answers = ["kill", "torn", "full"] if calls[point][0] in WRITES.values() else ["kill"]
        for answer in answers:
            code = attempt(answering(answer, point))
            figures[{"kill": "kills", "torn": "torn_writes", "full": "full_disks"}[answer]] += 1
            newest = saving.latest_checkpoint(run)
            figures["kept_before"] += newest is not None and newest.name == f"step-{FIRST:06d}"
            if newest is None or newest.name not in (f"step-{FIRST:06d}", f"step-{SECOND:06d}"):
                bad.append((point, answer, "no commit"))
            if code != (10 if answer == "full" else -9):
                bad.append((point, answer, f"exit {code}"))
            if answer == "full" and (run / saving.STAGING).exists():
                bad.append((point, answer, "leftovers on a full disk"))
            if (
                exit_code(forked(lambda: commit(run, THIRD)))
                or saving.latest_checkpoint(run) != run / f"step-{THIRD:06d}"
            ):
                bad.append((point, answer, "the next commit fails"))
            expected = {path.name for path in origin.iterdir() if path.is_file()} | {f"step-{THIRD:06d}"}
            if left := {path.name for path in run.iterdir()} - expected:
                bad.append((point, answer, f"left: {sorted(left)}"))
    return {**figures, "bad": bad}


def answering(answer: str, point: int):
    """Lets all calls before the one numbered `point` through; a disk stays full."""

    def at_call(pid: int, name: str, count: int) -> str | None:
        if answer == "full":
            return "full" if count >= point and name in WRITES.values() else None
        return answer if count == point else None

    return at_call


def out_of_order(calls: list[tuple[str, str]], run: Path) -> list[str]:
    """What a power cut could lose: files not flushed before the rename, or a prune before the rename is flushed."""
    staging = run / saving.STAGING
    renamed = calls.index(("rename", str(staging)))
    written = max(at for at, (name, path) in enumerate(calls) if name in WRITES.values())
    flushed = {path for name, path in calls[written:renamed] if name == "fsync"}
    needed = {staging, *(staging / file.name for file in saving.latest_checkpoint(run).iterdir())}
    faults = [f"{path} is not flushed" for path in needed if str(path) not in flushed]
    removed = min(at for at, (name, _) in enumerate(calls) if name.startswith("unlink") and at > renamed)
    if ("fsync", str(run)) not in calls[renamed:removed]:
        faults.append("the commit before is removed too early")
    return faults


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--every", type=int, default=1)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(campaign(parser.parse_args().every, Path(folder).resolve())))
