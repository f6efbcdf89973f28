"""Many starts at one moment, and an app that is killed: `python tests/campaigns/starts.py --starts 100`.

Half as many processes with two threads each start a run, all at once: one may begin, the others are refused with a
sentence that names it. Then every process that asked is killed, as a crashing app is; the run must be found again,
go on, stop when it is told, and leave no process behind. Prints the figures as one JSON line.
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

from forking import SETTINGS, exit_code, forked, stories

from deepseek.training import runs
from deepseek.training.config import TrainConfig


def campaign(starts: int, folder: Path) -> dict:
    """The figures over `starts` simultaneous starts."""
    root, data, answers = folder / "runs", stories(folder), folder / "answers"
    root.mkdir()
    at = time.time() + 1 + starts / 50

    def ask(number: int) -> None:
        config = TrainConfig(**{**SETTINGS, "root": str(root), "name": f"run-{number}", "data": [data], "steps": 10**6})
        time.sleep(max(0.0, at - time.time()))
        try:
            answer = "started " + runs.start(config).name
        except runs.RunError as error:
            answer = str(error)
        with answers.open("a") as file:
            file.write(f"{answer}\n")

    def app(number: int) -> None:
        for thread in (threads := [threading.Thread(target=ask, args=[number + i]) for i in range(2)]):
            thread.start()
        for thread in threads:
            thread.join()
        signal.pause()

    apps = [forked(lambda n=number: app(n)) for number in range(0, starts, 2)]
    while not answers.exists() or len(answers.read_text().splitlines()) < starts:
        time.sleep(0.05)
    lines = answers.read_text().splitlines()
    started = [line.removeprefix("started ") for line in lines if line.startswith("started ")]
    refusal = f"run {started[0]!r} is in progress; one run trains at a time, stop it first."
    figures = dict(
        started=len(started), refused=lines.count(refusal), other=len(lines) - len(started) - lines.count(refusal)
    )
    for pid in apps:
        os.kill(pid, signal.SIGKILL)
        exit_code(pid)
    figures["processes_after_the_app"] = len(trainers(root))
    step = runs.find(root, started[0]).step
    figures["goes_on"] = until(lambda: runs.find(root, started[0]).step > step)
    for name in started:
        runs.stop(root, name)
    figures["stopped"] = until(lambda: runs.find(root, started[0]).state == "stopped")
    figures["no_orphan"] = until(lambda: not trainers(root))
    figures["folders"] = len(runs.list_runs(root))
    return figures


def until(condition, seconds: float = 60) -> bool:
    """Whether `condition()` comes true in time."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return bool(condition())


def trainers(root: Path) -> list[int]:
    """The processes that train under `root`, by the process table."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"deepseek.train" in words and f"--root={root}".encode() in words:
                found.append(int(entry.name))
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--starts", type=int, default=100)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(campaign(parser.parse_args().starts, Path(folder).resolve())))
