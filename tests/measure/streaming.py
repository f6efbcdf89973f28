"""Tokens per second seen in the browser beside the engine's own, in one run: `python tests/measure/streaming.py`.

The engine runs in this process, the app in another, the browser in a third; engine and page take turns with the same
prompt, settings and seeds, and both are timed from the first token to the last.
"""

import json
import os
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlencode

import torch
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from ui.browser.conftest import CHROMIUM, QUIET

from deepseek import SamplingParams, load, stream
from deepseek.ui.generation import NUM_WORKERS

PORT, ROUNDS, TOKENS, PROMPT = 7899, 5, 250, "Once upon a time"
SETTINGS = dict(temperature=0.8, top_k=50, top_p=0.95, max_new_tokens=TOKENS)
WATCH = """() => {
  window.stamps = [];
  new MutationObserver(() => stamps.push([performance.now(), document.querySelectorAll('#strip .token').length]))
    .observe(document.querySelector('#strip .tokens'), {childList: true});
}"""


def engine(model, tokenizer, seed: int, record: bool) -> float:
    stamps = []
    for _ in stream(model, tokenizer, PROMPT, SamplingParams(**SETTINGS, seed=seed), record=record):
        stamps.append(time.perf_counter())
    return (len(stamps) - 1) / (stamps[-1] - stamps[0])


def browser(page, seed: int) -> float:
    page.goto(f"http://127.0.0.1:{PORT}/?" + urlencode({"prompt": PROMPT, **SETTINGS, "seed": seed}))
    ended = f"document.querySelector('#stats')?.innerText.includes('seed {seed} · ended by')"
    page.wait_for_function(ended, timeout=120_000)  # the link's own text
    page.wait_for_timeout(1500)
    page.evaluate(WATCH)
    page.get_by_role("button", name="Generate", exact=True).click()
    page.wait_for_function("stamps.length > 1", timeout=120_000)
    page.wait_for_function(ended, timeout=120_000)
    stamps = [stamp for stamp in page.evaluate("stamps") if stamp[1] > 0]
    stamps = stamps[stamps.index(min(stamps, key=lambda stamp: stamp[1])) :]  # from where the new text begins
    (start, first), (end, last) = stamps[0], stamps[-1]
    return 1e3 * (last - first) / (end - start)


def main():
    model, tokenizer = load(ROOT / "assets" / "demo")
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // NUM_WORKERS))  # as the app does
    environment = {**os.environ, "GRADIO_SERVER_PORT": str(PORT)}
    app = subprocess.Popen([sys.executable, "app.py"], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{PORT}", timeout=5)
                break
            except OSError:
                time.sleep(0.5)
        with sync_playwright() as playwright:
            page = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET).new_page()
            rows = []
            for seed in range(100, 100 + ROUNDS):
                rows.append(
                    [engine(model, tokenizer, seed, False), engine(model, tokenizer, seed, True), browser(page, seed)]
                )
                print("engine {:.1f}, recording {:.1f}, browser {:.1f} tokens/s".format(*rows[-1]), flush=True)
    finally:
        app.terminate()
    plain, recording, seen = map(statistics.median, zip(*rows))
    print(
        json.dumps(
            {
                "engine": round(plain, 1),
                "engine_recording": round(recording, 1),
                "browser": round(seen, 1),
                "recording_over_plain": round(statistics.median(r[1] / r[0] for r in rows), 3),
                "browser_over_recording": round(statistics.median(r[2] / r[1] for r in rows), 3),
            }
        )
    )


if __name__ == "__main__":
    main()
