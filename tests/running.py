"""The real app, started as a user would, for tests and campaigns."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deepseek.training import runs

ROOT = Path(__file__).parents[1]
# What gradio's page logs when it is closed, or left for another page, while a request is pending: its stream broke, or the
# next one finds its session forgotten.
LEFT = ("AbortError", "Unexpected error Connection errored out", "Unexpected error 404: Not Found")


@dataclass
class App:
    """A running app: its address, its working folder, its process, and the file that takes its output."""

    url: str
    folder: Path
    process: subprocess.Popen
    log: Path

    @property
    def runs(self) -> Path:
        return self.folder / runs.ROOT


def wait_until(condition, seconds=90):
    """Waits until `condition()` is true; fails after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def start_app(folder, log, app=ROOT / "app.py", port=None, arguments=(), **environment):
    """(address, process) of the real app, started in `folder` on `port` or a free one; its output goes to the file `log`."""
    if not port:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
    url, environment = f"http://127.0.0.1:{port}", {**os.environ, **environment, "GRADIO_SERVER_PORT": str(port)}
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, app, *arguments], cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT
        )

    def answers():
        assert process.poll() is None, log.read_text()
        try:
            return urllib.request.urlopen(url, timeout=5)
        except OSError:
            return None

    wait_until(answers, 120)
    return url, process


def end_runs(root):
    """Kills the runs that a failed test has left training."""
    for run in runs.list_runs(root):
        if run.alive:
            runs.kill(root, run.name)


@contextmanager
def app_in(folder):
    """An App that runs in `folder`, which gets the assets. It is ended afterwards and must not have logged a traceback."""
    (folder / "assets").symlink_to(ROOT / "assets")
    log = folder / "log"
    url, process = start_app(folder, log)
    try:
        yield App(url, folder, process, log)
    finally:
        process.terminate()
        process.wait(20)
    assert "Traceback" not in log.read_text(), log.read_text()


@contextmanager
def started_app(folder, log, *app, **options):
    """The address of an app as `start_app` starts it. It is ended afterwards and must not have logged a traceback."""
    url, process = start_app(folder, log, *app, **options)
    try:
        yield url
    finally:
        process.terminate()
        process.wait(20)
    assert "Traceback" not in log.read_text(), log.read_text()
