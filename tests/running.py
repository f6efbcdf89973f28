"""The real app, started as a person would, for tests and campaigns."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from deepseek.training import runs

ROOT = Path(__file__).parents[1]
# What gradio's page says when it is left for another, or closed, while it still waits for something.
LEFT = ("AbortError", "Unexpected error Connection errored out")


def start_app(folder, log, app=ROOT / "app.py", port=None, **environment):
    """(address, process) of the real app, started in `folder` on `port` or a free one; its output goes to the file `log`."""
    if not port:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, app],
            cwd=folder,
            env={**os.environ, **environment, "GRADIO_SERVER_PORT": str(port)},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    for _ in range(240):
        try:
            urllib.request.urlopen(url, timeout=5)
            break
        except OSError:
            assert process.poll() is None, log.read_text()
            time.sleep(0.5)
    return url, process


def end_runs(root):
    """Ends what a test that failed has left training."""
    for run in runs.list_runs(root):
        if run.alive:
            runs.kill(root, run.name)


@contextmanager
def started_app(folder, log, *app, **options):
    """The address of an app as `start_app` starts it, which is ended afterwards and must have had no error."""
    url, process = start_app(folder, log, *app, **options)
    try:
        yield url
    finally:
        process.terminate()
        process.wait(10)
    assert "Traceback" not in log.read_text()
