"""Seconds from a click to 512 tokens drawn in every panel of the Attention tab, and the bytes sent for it.

`python tests/measure/attention.py`: the app in one process, the browser in another.
"""

import json
import os
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from ui.browser.conftest import CHROMIUM, QUIET

from deepseek import load
from deepseek.data.tokenizer import encode_prompt

PORT, ROUNDS = 7898, 5
DRAWN = """() => { const plot = document.querySelector('#attention .js-plotly-plot');
  return plot?._fullData?.[0].x?.length === %d && plot !== window.before }"""


def main():
    model, tokenizer = load(ROOT / "assets" / "demo")
    most = model.config.max_position_embeddings
    words = (ROOT / "docs" / "log.md").read_text("utf-8")
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
            sent = []
            network = page.context.new_cdp_session(page)
            network.send("Network.enable")
            network.on("Network.dataReceived", lambda event: sent.append(event["dataLength"]))
            page.goto(f"http://127.0.0.1:{PORT}")
            page.get_by_role("tab", name="Attention", exact=True).click()
            page.wait_for_function("document.querySelector('#attention .js-plotly-plot')?._fullData")
            seconds, sizes = [], []
            for start in range(0, 100 * ROUNDS, 100):
                # a few tokens short, since a word that was cut may take more of them when read again
                text = tokenizer.decode(tokenizer(words[start:])["input_ids"][1 : most - 4])
                tokens = len(encode_prompt(tokenizer, text, None))
                page.locator("textarea:visible").first.fill(text)
                page.wait_for_timeout(1000)
                page.evaluate("window.before = document.querySelector('#attention .js-plotly-plot')")
                sent.clear()
                began = time.perf_counter()
                page.locator("button:visible", has_text="Trace").click()
                page.wait_for_function(DRAWN % tokens, polling=20, timeout=60_000)
                seconds.append(time.perf_counter() - began)
                page.wait_for_timeout(1000)
                sizes.append(sum(sent))
                print(f"{tokens} tokens: {seconds[-1]:.2f} s, {sizes[-1]:,} bytes", flush=True)
    finally:
        app.terminate()
    print(json.dumps({"seconds": round(statistics.median(seconds), 2), "bytes": max(sizes)}))


if __name__ == "__main__":
    main()
