"""Seconds to a page that answers, and to the first token of a click in it: `python tests/measure/start.py`.

Each round starts the app twice with a folder of its own for compiled loops: at the first start of all it is empty.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from ui.browser.conftest import CHROMIUM, QUIET

PORT, ROUNDS, CLICKS = 7898, 4, 5
CLICK = """button => new Promise(done => {
  const tokens = () => document.querySelectorAll('#strip .token').length, before = tokens(), began = performance.now();
  new MutationObserver((_, observer) => {
    if (tokens() < before && tokens()) { observer.disconnect(); done((performance.now() - began) / 1000); }
  }).observe(document.querySelector('#strip .tokens'), {childList: true});
  button.click();
})"""


@contextmanager
def started(compiled: str):
    """The seconds that the app took to answer."""
    environment = {**os.environ, "GRADIO_SERVER_PORT": str(PORT), "NUMBA_CACHE_DIR": compiled}
    began = time.perf_counter()
    app = subprocess.Popen([sys.executable, "app.py"], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    try:
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{PORT}", timeout=60).read()
                break
            except OSError:
                time.sleep(0.05)
        yield time.perf_counter() - began
    finally:
        app.terminate()
        app.wait()
        time.sleep(5)  # until the processes that it had are gone too


def clicks() -> list[float]:
    """Seconds from a click on Generate to the first token of the new text in the page."""
    with sync_playwright() as playwright:
        page = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET).new_page()
        page.goto(f"http://127.0.0.1:{PORT}")
        button = page.get_by_role("button", name="Generate", exact=True)
        seconds = []
        for _ in range(CLICKS + 1):
            page.wait_for_function("document.querySelector('#stats')?.innerText.includes('ended by')", timeout=120_000)
            page.wait_for_timeout(2000)
            seconds.append(button.evaluate(CLICK))
    return seconds[1:]  # the first was not warm


def main():
    first, later, tokens = [], [], []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as compiled:
            with started(compiled) as seconds:
                first.append(seconds)
                time.sleep(10)  # until the processes that write texts are there
            with started(compiled) as seconds:
                later.append(seconds)
                time.sleep(10)
                tokens += clicks()
        print(f"first start {first[-1]:.2f} s, later start {later[-1]:.2f} s", flush=True)
    figures = {"first start": first, "later start": later, "first token of a click": tokens}
    print(json.dumps({name: [round(f(v), 2) for f in (min, statistics.median, max)] for name, v in figures.items()}))


if __name__ == "__main__":
    main()
