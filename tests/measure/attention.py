"""Seconds from a click to every panel of the Attention tab with a full context, and the bytes sent for it.

`python tests/measure/attention.py`: a line for each text, then the median time and the largest size as JSON.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from measure.chromium import chromium_page
from running import app_in
from ui.browser.actions import button, open_page, open_tab

from deepseek import load
from deepseek.data.tokenizer import encode_prompt

PLOT = "document.querySelector('#attention .js-plotly-plot')"
DRAWN = f"size => {PLOT}?._fullData?.[0].x?.length === size && {PLOT} !== window.previousPlot"


def long_texts(count: int) -> list[tuple[str, int]]:
    """(text, tokens) of texts that fill the demo's context."""
    model, tokenizer = load(ROOT / "assets" / "demo")
    log = (ROOT / "docs" / "log.md").read_text("utf-8")
    # A few tokens short: a word that was cut may take more tokens when it is encoded again.
    max_tokens = model.config.max_position_embeddings - 5
    texts = [tokenizer.decode(tokenizer(log[100 * i :])["input_ids"][1 : max_tokens + 1]) for i in range(count)]
    return [(text, len(encode_prompt(tokenizer, text, None))) for text in texts]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--rounds", type=int, default=5, help="texts to draw (5)")
    args = parser.parse_args()
    texts, seconds, sizes, received = long_texts(args.rounds), [], [], []
    with tempfile.TemporaryDirectory() as folder, app_in(Path(folder)) as app, chromium_page() as page:
        network = page.context.new_cdp_session(page)
        network.send("Network.enable")
        network.on("Network.dataReceived", lambda event: received.append(event["dataLength"]))
        open_page(page, app.url)
        open_tab(page, "Attention")
        page.wait_for_function(f"{PLOT}?._fullData")
        for text, num_tokens in texts:
            page.locator("textarea:visible").first.fill(text)
            page.wait_for_timeout(1000)
            page.evaluate(f"window.previousPlot = {PLOT}")
            received.clear()
            start = time.perf_counter()
            button(page, "Trace").locator("visible=true").click()
            page.wait_for_function(DRAWN, arg=num_tokens, polling=20, timeout=60_000)
            seconds.append(time.perf_counter() - start)
            page.wait_for_timeout(1000)
            sizes.append(sum(received))
            print(f"{num_tokens} tokens: {seconds[-1]:.2f} s, {sizes[-1]:,} bytes", flush=True)
    print(json.dumps({"seconds": round(statistics.median(seconds), 2), "bytes": max(sizes)}))


if __name__ == "__main__":
    main()
