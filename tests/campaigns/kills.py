"""`kill -9` at random moments of a run, a share of them inside a commit: `python tests/campaigns/kills.py --kills 200`.

Each run is killed, resumed and killed again until it reaches its last step; then it must equal, byte for byte, the run
that nothing interrupted. No commit that a run announced may be lost. Prints the figures as one JSON line.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from forking import SETTINGS, content, exit_code, killed_at, stories, training

from deepseek.checkpoints import saving
from deepseek.training import runs
from deepseek.training.config import TrainConfig

STEPS, EVERY = 40, 4


def campaign(kills: int, seed: int, folder: Path) -> dict:
    """The figures over `kills` kills; all but the first four must be 0."""
    draw = random.Random(seed)
    settings = dict(SETTINGS, root=str(folder), data=[stories(folder)], max_steps=STEPS, save_every=EVERY)
    whole, began = TrainConfig(name="whole", **settings), time.monotonic()
    assert exit_code(training(whole)) == 0
    seconds, expected = time.monotonic() - began, content(whole)
    figures = dict(
        kills=0, inside_a_commit=0, before_the_first_commit=0, runs=0, lost_commits=0, wrong_states=0, unlike=0
    )
    while figures["kills"] < kills:
        config = TrainConfig(name=f"run-{figures['runs']}", **settings)
        left = staging(config)
        while figures["kills"] < kills and cut(config, left, draw, seconds):
            last = saving.latest_checkpoint(config.run)
            figures["kills"] += 1
            figures["inside_a_commit"] += staging(config) not in (None, left)
            figures["lost_commits"] += (int(last.name[5:]) if last else 0) < announced(config)
            ended = last and last.name.endswith(f"{STEPS}")  # and then killed before it was gone
            figures["wrong_states"] += state(config) not in (("killed", "finished") if ended else ("killed",))
            left = staging(config)
            if last is None:
                figures["before_the_first_commit"] += 1
                (config.run / "metrics.jsonl").unlink(missing_ok=True)  # begins anew under the same name
        if state(config) == "killed":
            assert exit_code(start(config)) == 0
        figures["runs"] += 1
        figures["wrong_states"] += state(config) != "finished"
        figures["unlike"] += content(config) != expected
    return figures


def state(config) -> str:
    """What `runs` says of the run; one that was killed before it wrote its settings is not known there yet."""
    return runs.find(config.root, config.name).state if (config.run / "config.json").exists() else "killed"


def start(config) -> int:
    """The pid of a process that begins the run, or goes on from its last commit."""
    return training(config, resume=saving.latest_checkpoint(config.run) is not None)


def cut(config, left, draw: random.Random, seconds: float) -> bool:
    """Starts or resumes the run and kills it at a random moment; False if it ended before that."""
    pid, at = start(config), time.monotonic() + draw.uniform(0, seconds)
    if draw.random() < 0.6:
        return killed_at(pid, lambda: time.monotonic() > at)
    later, until = draw.uniform(0, 0.03), []

    def inside() -> bool:  # the next commit, some while after it began
        if time.monotonic() > at and not until and staging(config) not in (None, left):
            until.append(time.monotonic() + later)
        return bool(until) and time.monotonic() > until[0]

    return killed_at(pid, inside)


def staging(config) -> tuple | None:
    """What tells one unfinished commit's folder from another; None where there is none."""
    try:
        stat = (config.run / saving.STAGING).stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_ctime_ns


def announced(config) -> int:
    """The step of the last commit that the run said it made."""
    lines = [line for line in (config.run / "log.txt").read_text().splitlines() if line.startswith("  committed")]
    return int(lines[-1].rpartition("-")[2]) if lines else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(campaign(args.kills, args.seed, Path(folder))))
