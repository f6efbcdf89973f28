"""`kill -9` at random moments of a run, some of them while it saves: `python tests/campaigns/kills.py --kills 200`.

Each run is killed, resumed and killed again until it reaches its last step; then it must equal, byte for byte, the run
that nothing interrupted. No checkpoint that a run reported may be lost, nor the best one. Prints the counts as one JSON line.
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

from forking import fork_training, kill_when, reproducible_content, small_config, wait_for_exit

from deepseek.checkpoints import saving
from deepseek.training import runs


def campaign(kills: int, seed: int, folder: Path, max_steps: int = 40, save_every: int = 4) -> dict:
    """The counts over `kills` kills; all but the first five must be 0."""
    rng, settings = random.Random(seed), dict(max_steps=max_steps, save_every=save_every, keep_last=1)
    # A learning rate at which the validation loss rises again, so that the best checkpoint is not the newest.
    settings |= dict(lr=0.02, eval_every=save_every, eval_documents=2, eval_data=[str(folder / "stories.txt")])
    uninterrupted, start = small_config(folder, name="uninterrupted", **settings), time.monotonic()
    assert wait_for_exit(fork_training(uninterrupted)) == 0
    seconds, expected = time.monotonic() - start, (reproducible_content(uninterrupted), names(uninterrupted))
    counts = dict(kills=0, while_saving=0, before_the_first_checkpoint=0, runs=0)
    counts |= dict(best_is_not_the_newest=len(expected[1]) - 1)
    counts |= dict(lost_checkpoints=0, lost_best=0, wrong_states=0, different=0)
    while counts["kills"] < kills:
        config = small_config(folder, name=f"run-{counts['runs']}", **settings)
        leftover = staging(config)
        while counts["kills"] < kills and kill_at_random(config, leftover, rng, seconds):
            last = saving.latest_checkpoint(config.run)
            counts["kills"] += 1
            counts["while_saving"] += staging(config) not in (None, leftover)
            counts["lost_checkpoints"] += (int(last.name[5:]) if last else 0) < reported_step(config)
            counts["lost_best"] += best_step(config, last) not in (None, best_saved(config))
            at_the_end = last and last.name.endswith(f"{max_steps}")  # it may have recorded its end before the kill
            counts["wrong_states"] += state(config) not in (("killed", "finished") if at_the_end else ("killed",))
            leftover = staging(config)
            if last is None:
                counts["before_the_first_checkpoint"] += 1
        if state(config) == "killed":
            assert wait_for_exit(start_or_resume(config)) == 0
        counts["runs"] += 1
        counts["wrong_states"] += state(config) != "finished"
        counts["different"] += (reproducible_content(config), names(config)) != expected
    return counts


def names(config) -> list[str]:
    """The names of a run's checkpoints."""
    return [path.name for path in saving.list_checkpoints(config.run)]


def best_step(config, last: Path | None) -> int | None:
    """The step of the lowest validation loss in the metrics up to the checkpoint `last`; None where there is none."""
    lines = runs.metrics(config.run)[0] if last else []
    losses = {line["step"]: line["val_loss"] for line in lines if "val_loss" in line}
    losses = {step: loss for step, loss in losses.items() if step <= int(last.name[5:])}
    return min(losses, key=losses.get, default=None)


def best_saved(config) -> int | None:
    """The step of the best complete checkpoint."""
    best = runs.best_checkpoint(config.run)
    return best and int(best.name[5:])


def state(config) -> str:
    """The state in `runs`, which does not list a run that was killed before it wrote its settings."""
    return runs.find(config.root, config.name).state if (config.run / "config.json").exists() else "killed"


def start_or_resume(config) -> int:
    """The pid of a process that starts the run, or resumes it from its last checkpoint."""
    return fork_training(config, resume=saving.latest_checkpoint(config.run) is not None)


def kill_at_random(config, leftover, rng: random.Random, seconds: float) -> bool:
    """Starts or resumes the run and kills it at a random moment; False if it ended before that."""
    pid, kill_time = start_or_resume(config), time.monotonic() + rng.uniform(0, seconds)
    if rng.random() < 0.6:
        return kill_when(pid, lambda: time.monotonic() > kill_time)
    delay, deadline = rng.uniform(0, 0.03), []

    def while_saving() -> bool:  # the next checkpoint, `delay` after its start
        if time.monotonic() > kill_time and not deadline and staging(config) not in (None, leftover):
            deadline.append(time.monotonic() + delay)
        return bool(deadline) and time.monotonic() > deadline[0]

    return kill_when(pid, while_saving)


def staging(config) -> tuple | None:
    """Identifies the folder of an unfinished checkpoint; None where there is none."""
    try:
        stat = (config.run / saving.STAGING).stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_ctime_ns


def reported_step(config) -> int:
    """The step of the last checkpoint that the run printed."""
    lines = [line for line in (config.run / "log.txt").read_text().splitlines() if line.startswith("  saved")]
    return int(lines[-1].rpartition("-")[2]) if lines else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(campaign(args.kills, args.seed, Path(folder))))
