"""What the Experts tab of a large mixture costs, on this machine: `python tests/measure/many_experts.py`.

For a random model of Qwen3-30B-A3B's shape (48 layers of 128 experts, 8 per token; narrow) and a text of about 64 tokens: seconds
from a click to the load map and to the other figures of the tab, from a click to the load map's CSV file, and for the board's
next token. With --screenshot FILE, also a picture of the tab.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlencode

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from measure.chromium import chromium_page
from running import ROOT, app_in
from transformers import AutoTokenizer, Qwen3MoeConfig, Qwen3MoeForCausalLM

SHAPE = dict(
    num_hidden_layers=48, num_attention_heads=4, num_key_value_heads=2, head_dim=16, num_experts=128, num_experts_per_tok=8,
    hidden_size=64, intermediate_size=64, moe_intermediate_size=16, max_position_embeddings=512,
)  # fmt: skip
FIGURES = ("expert-load", "expert-map", "token-path", "expert-balance")


def qwen3(folder: Path) -> str:
    """A folder with a random model of that shape and the demo's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "assets/demo")
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)
    Qwen3MoeForCausalLM(Qwen3MoeConfig(**SHAPE, **ends, vocab_size=len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def measure(page, url: str, checkpoint: str, screenshot: str | None) -> dict:
    """The figures of the checkpoint that the page at `url` opens."""
    page.goto(url)
    page.locator("#which", has_text=checkpoint).wait_for(timeout=300_000)
    page.locator("#stats", has_text="ended by").wait_for(timeout=300_000)
    times, start = {}, time.perf_counter()
    page.locator("#strip .token").nth(5).click()
    page.locator("#board .now", has_text="token 6").wait_for()
    times["board"] = time.perf_counter() - start
    start = time.perf_counter()
    page.get_by_role("tab", name="Experts", exact=True).click()
    page.wait_for_function("document.querySelector('#expert-load .js-plotly-plot')?.data[0].z?.length === 48")
    times["load map"] = time.perf_counter() - start
    for name in FIGURES:
        page.wait_for_function("id => document.querySelector(`#${id} .js-plotly-plot`)?.data.length", arg=name)
    page.wait_for_function("document.querySelector('#expert-map .js-plotly-plot').data[0].y.length === 48")
    times["all figures"] = time.perf_counter() - start
    start = time.perf_counter()
    with page.expect_download() as download:
        page.locator("#csv-expert-load").click()
    rows = Path(download.value.path()).read_text().count("\n")
    times["CSV"] = time.perf_counter() - start
    if screenshot:
        page.wait_for_timeout(1000)
        page.screenshot(path=screenshot, full_page=True)
    return {name: round(seconds, 2) for name, seconds in times.items()} | {"rows of the CSV": rows}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--screenshot", metavar="FILE")
    args = parser.parse_args()
    size = {"width": 1280, "height": 800}
    with tempfile.TemporaryDirectory() as folder, app_in(Path(folder)) as app, chromium_page(viewport=size) as page:
        checkpoint = qwen3(Path(folder) / "qwen3")
        query = {"prompt": "Once upon a time", "max_new_tokens": 60, "seed": 1, "checkpoint": checkpoint}
        print(json.dumps(measure(page, f"{app.url}/?{urlencode(query)}", checkpoint, args.screenshot)))


if __name__ == "__main__":
    main()
