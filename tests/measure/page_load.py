"""Seconds until the page shows its first text, with gradio's own script and with ours: `python tests/measure/page_load.py`.

What a window costs with `deepseek/ui/server/frontend_patch.py` and without it, taken in turns in one browser, and the
seconds that the page's own process computes. Prints the medians as JSON.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from measure.chromium import chromium_page
from playwright.sync_api import expect
from running import started_app

from deepseek.ui.server.frontend_patch import FOLDER

ROUNDS = 6
SETTLED_S = 4  # after which a window has drawn its figures


def load(context, url: str, own_script: bool) -> tuple[float, float]:
    """(seconds to the first token, seconds of the page's process) of a new window."""
    page = context.new_page()
    if own_script:
        page.route("**/assets/core-*.js", lambda route: route.fulfill(path=FOLDER / route.request.url.split("/")[-1]))
    metrics = context.new_cdp_session(page)
    metrics.send("Performance.enable")
    start = time.perf_counter()
    page.goto(url)
    expect(page.locator("#strip .token").first).to_be_visible(timeout=60_000)
    seconds = time.perf_counter() - start
    time.sleep(SETTLED_S)
    tasks = {each["name"]: each["value"] for each in metrics.send("Performance.getMetrics")["metrics"]}["TaskDuration"]
    page.close()
    return seconds, tasks


def main():
    figures = {"gradio's script": [], "with an index": []}
    with (
        tempfile.TemporaryDirectory() as folder,
        started_app(ROOT, Path(folder) / "log") as url,
        chromium_page() as first,
    ):
        for _ in range(ROUNDS + 1):
            for name, own_script in zip(figures, (True, False)):
                figures[name].append(load(first.context, url, own_script))
    for name, rows in figures.items():  # the first round was a warm-up
        seconds, tasks = zip(*rows[1:])
        row = {"first text": statistics.median(seconds), "computing": statistics.median(tasks)}
        print(json.dumps({name: {figure: round(value, 2) for figure, value in row.items()}}))


if __name__ == "__main__":
    main()
