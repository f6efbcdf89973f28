"""Many starts at one moment, and an app that is killed: `python tests/campaigns/starts.py --starts 100`.

Half as many processes with two threads each start a run, all at once: one may start, the others are refused with a
sentence that names it. Then every process that asked is killed, as a crashing app is; the run must still be listed,
continue, stop on request, and leave no process behind. Prints the counts as one JSON line.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from forking import fork, small_config, wait_for_exit

from deepseek.training import runs


def campaign(starts: int, folder: Path) -> dict:
    """The counts over `starts` simultaneous starts."""
    root, answers = folder / "runs", folder / "answers"
    root.mkdir()
    start_time = time.time() + 1 + starts / 50

    def start(number: int) -> None:
        config = small_config(folder, root=str(root), name=f"run-{number}", max_steps=10**6)
        time.sleep(max(0.0, start_time - time.time()))
        try:
            answer = "started " + runs.start(config).name
        except runs.RunError as error:
            answer = str(error)
        with answers.open("a") as file:
            file.write(f"{answer}\n")

    def app(number: int) -> None:
        for thread in (threads := [threading.Thread(target=start, args=[number + i]) for i in range(2)]):
            thread.start()
        for thread in threads:
            thread.join()
        signal.pause()

    small_config(folder)  # writes the data once, before the processes would do so at the same time
    apps = [fork(lambda n=number: app(n)) for number in range(0, starts, 2)]
    while not answers.exists() or len(answers.read_text().splitlines()) < starts:
        time.sleep(0.05)
    lines = answers.read_text().splitlines()
    started = [line.removeprefix("started ") for line in lines if line.startswith("started ")]
    refused = lines.count(f"run {started[0]!r} is in progress; one run trains at a time, stop it first.")
    counts = dict(started=len(started), refused=refused, other_answers=len(lines) - len(started) - refused)
    for pid in apps:
        os.kill(pid, signal.SIGKILL)
        wait_for_exit(pid)
    counts["processes_after_the_app"] = len(trainers(root))
    step = runs.find(root, started[0]).step
    counts["continues"] = becomes_true(lambda: runs.find(root, started[0]).step > step)
    for name in started:
        runs.stop(root, name)
    counts["stopped"] = becomes_true(lambda: runs.find(root, started[0]).state == "stopped")
    counts["no_orphan"] = becomes_true(lambda: not trainers(root))
    counts["folders"] = len(runs.list_runs(root))
    return counts


def becomes_true(condition, timeout_s: float = 60) -> bool:
    """Whether `condition()` becomes true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(condition())


def trainers(root: Path) -> list[int]:
    """The processes that train under `root`, by the process table."""
    pids = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"deepseek.train" in words and f"--root={root}".encode() in words:
                pids.append(int(entry.name))
    return pids


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--starts", type=int, default=100)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(campaign(parser.parse_args().starts, Path(folder).resolve())))
