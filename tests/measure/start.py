"""Seconds to a page that answers, and to the first token after a click: `python tests/measure/start.py`.

Each round starts the app twice with an empty folder for compiled kernels: the first start compiles them, the second loads
them. Prints [minimum, median, maximum] of each figure as JSON.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from measure.chromium import chromium_page
from running import started_app
from ui.browser.actions import button, settle

CLICKS = 5  # per round
CLICK = """button => new Promise(resolve => {
  const count = () => document.querySelectorAll('#strip .token').length, before = count(), start = performance.now();
  new MutationObserver((_, observer) => {
    if (count() < before && count()) { observer.disconnect(); resolve((performance.now() - start) / 1000); }
  }).observe(document.querySelector('#strip .tokens'), {childList: true});
  button.click();
})"""


@contextmanager
def timed_app(folder: Path):
    """(address, seconds until it answered) of an app that keeps its compiled kernels in `folder`, once its workers run."""
    start = time.perf_counter()
    with started_app(ROOT, folder / "log", NUMBA_CACHE_DIR=str(folder)) as url:
        seconds = time.perf_counter() - start
        time.sleep(10)  # until the workers have loaded the model
        yield url, seconds
    time.sleep(5)  # until the workers have exited, too


def click_seconds(url: str) -> list[float]:
    """Seconds from each click on Generate to the first token of the new sample in the page."""
    with chromium_page() as page:
        page.goto(url)
        seconds = []
        for _ in range(CLICKS + 1):
            settle(page)
            page.wait_for_timeout(2000)
            seconds.append(button(page, "Generate").evaluate(CLICK))
    return seconds[1:]  # the first was a warm-up


def main():
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--rounds", type=int, default=4, help="rounds of two starts (4)")
    args = parser.parse_args()
    figures = {"first start": [], "later start": [], "first token of a click": []}
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as folder:
            with timed_app(Path(folder)) as (_, first):
                pass
            with timed_app(Path(folder)) as (url, later):
                figures["first token of a click"] += click_seconds(url)
        figures["first start"].append(first)
        figures["later start"].append(later)
        print(f"first start {first:.2f} s, later start {later:.2f} s", flush=True)
    print(json.dumps({name: [round(f(v), 2) for f in (min, statistics.median, max)] for name, v in figures.items()}))


if __name__ == "__main__":
    main()
