"""Tokens/s in the browser beside the engine's own, in one run: `python tests/measure/streaming.py`.

The engine runs in this process, the app and the browser in others. Engine and page take turns with the same prompt,
settings and seeds; both are timed from the first token to the last.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlencode

import torch

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from measure.chromium import chromium_page
from running import app_in
from ui.browser.actions import button

from deepseek import SamplingParams, load, stream
from deepseek.ui.server.model_registry import NUM_THREADS

PROMPT, SETTINGS = "Once upon a time", dict(temperature=0.8, top_k=50, top_p=0.95, max_new_tokens=250)
RECORD_UPDATES = """() => {
  window.updates = [];
  new MutationObserver(() => updates.push([performance.now(), document.querySelectorAll('#strip .token').length]))
    .observe(document.querySelector('#strip .tokens'), {childList: true});
}"""


def engine_rate(model, tokenizer, seed: int, record: bool) -> float:
    """Tokens/s of the engine in this process."""
    params = SamplingParams(**SETTINGS, seed=seed)
    times = [time.perf_counter() for _ in stream(model, tokenizer, PROMPT, params, record=record)]
    return (len(times) - 1) / (times[-1] - times[0])


def browser_rate(page, url: str, seed: int, more: str = "") -> float:
    """Tokens/s that the page shows; `more` ends its address."""
    page.goto(f"{url}/?" + urlencode({"prompt": PROMPT, **SETTINGS, "seed": seed}) + more)
    ended = f"document.querySelector('#stats')?.innerText.includes('seed {seed} · ended by')"
    page.wait_for_function(ended, timeout=120_000)  # the sample that the link itself asks for
    page.wait_for_timeout(1500)
    page.evaluate(RECORD_UPDATES)
    button(page, "Generate").click()
    page.wait_for_function("updates.length > 1", timeout=120_000)
    page.wait_for_function(ended, timeout=120_000)
    updates = [(ms, tokens) for ms, tokens in page.evaluate("updates") if tokens]
    first = min(range(len(updates)), key=lambda i: updates[i][1])  # before it the strip shows the previous sample
    (start, first_tokens), (end, last_tokens) = updates[first], updates[-1]
    return 1e3 * (last_tokens - first_tokens) / (end - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--rounds", type=int, default=5, help="samples of each (5)")
    args = parser.parse_args()
    model, tokenizer = load(ROOT / "assets" / "demo")
    torch.set_num_threads(NUM_THREADS)  # as the app's workers
    rows = []
    with tempfile.TemporaryDirectory() as folder, app_in(Path(folder)) as app, chromium_page() as page:
        for seed in range(100, 100 + args.rounds):
            engine, recording = (engine_rate(model, tokenizer, seed, record) for record in (False, True))
            rows.append((engine, recording, browser_rate(page, app.url, seed)))
            print("engine {:.1f}, recording {:.1f}, browser {:.1f} tokens/s".format(*rows[-1]), flush=True)
    figures = dict(zip(("engine", "engine_recording", "browser"), map(statistics.median, zip(*rows))))
    figures["recording_over_plain"] = statistics.median(recording / engine for engine, recording, _ in rows)
    figures["browser_over_recording"] = statistics.median(browser / recording for _, recording, browser in rows)
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
