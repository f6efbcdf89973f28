"""What the Walk costs, in one run on this machine: `python tests/measure/walk.py`.

For the demo and for a random model of OLMoE's shape (16 layers of 16 heads and 64 experts, 8 per token; narrow), with a text of
about 64 tokens and all layers open: the time to draw the picture up to the next frame, from an arrow key to the next token's
picture, frames per second while it plays, and from a click to the answer of "what if". Medians of several, in milliseconds.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlencode

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from measure.chromium import chromium_page
from running import ROOT, app_in
from transformers import AutoTokenizer, OlmoeConfig, OlmoeForCausalLM

SHAPE = dict(
    num_hidden_layers=16, num_attention_heads=16, num_key_value_heads=16, num_experts=64, num_experts_per_tok=8,
    hidden_size=256, intermediate_size=64, max_position_embeddings=512,
)  # fmt: skip
DRAW = """async () => {
  const all = document.querySelector('#walk .all'), open = () => document.querySelectorAll('#walk .part.head').length;
  while (open()) all.click();
  const start = performance.now();
  all.click();
  await new Promise(requestAnimationFrame);
  await new Promise(end => setTimeout(end));
  return [performance.now() - start, document.querySelectorAll('#walk svg *').length];
}"""
FRAMES = """async () => {
  document.querySelector('#walk [aria-label=play]').click();
  const times = [];
  await new Promise(end => requestAnimationFrame(function frame(now) {
    times.push(now);
    if (now - times[0] < 4000) requestAnimationFrame(frame); else end();
  }));
  document.querySelector('#walk [aria-label=pause]')?.click();
  return 1000 * (times.length - 1) / (times[times.length - 1] - times[0]);
}"""


def olmoe(folder: Path) -> str:
    """A folder with a random model of OLMoE's shape and the demo's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "assets/demo")
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)
    OlmoeForCausalLM(OlmoeConfig(**SHAPE, **ends, vocab_size=len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def measure(page, url: str, checkpoint: str, rounds: int) -> dict:
    """The figures of the checkpoint that the page at `url` opens."""
    page.goto(url)
    page.locator("#which", has_text=checkpoint).wait_for(timeout=300_000)
    page.locator("#stats", has_text="ended by").wait_for(timeout=300_000)
    page.get_by_role("tab", name="Walk", exact=True).click()
    start = time.perf_counter()
    page.locator("#walk .part.token").wait_for(timeout=300_000)
    first = 1e3 * (time.perf_counter() - start)
    tokens, shown = page.locator("#walk .text .token"), page.locator("#walk .part.token .quiet")
    tokens.last.click()  # which attends to the whole text
    shown.get_by_text(f"token {tokens.count()} of").wait_for()
    draws = [page.evaluate(DRAW) for _ in range(rounds)]
    steps, effects = [], []
    tokens.nth(8).click()
    shown.get_by_text("token 9 of").wait_for()
    page.locator("#walk .part").first.focus()
    for _ in range(rounds):
        before = shown.text_content()
        start = time.perf_counter()
        page.keyboard.press("ArrowRight")
        page.wait_for_function(
            "old => document.querySelector('#walk .part.token .quiet').textContent !== old", arg=before
        )
        steps.append(1e3 * (time.perf_counter() - start))
        page.wait_for_timeout(300)
    page.locator("#walk .part.router").first.press("Enter")
    for index in range(rounds):
        start = time.perf_counter()
        page.locator("#walk .buttons button").nth(index % 4).click()
        page.locator("#walk .kl").wait_for()
        effects.append(1e3 * (time.perf_counter() - start))
    figures = dict(first_picture=first, draw=statistics.median(ms for ms, _ in draws), elements=draws[-1][1])
    figures |= dict(next_token=statistics.median(steps), what_if=statistics.median(effects))
    return {name: round(value) for name, value in {**figures, "frames_per_second": page.evaluate(FRAMES)}.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--rounds", type=int, default=5, help="repetitions of each (5)")
    args = parser.parse_args()
    size = {"width": 1280, "height": 800}
    with tempfile.TemporaryDirectory() as folder, app_in(Path(folder)) as app, chromium_page(viewport=size) as page:
        print("demo", json.dumps(measure(page, app.url, "assets/demo", args.rounds)), flush=True)
        checkpoint = olmoe(Path(folder) / "olmoe")
        query = {"prompt": "Once upon a time", "max_new_tokens": 60, "seed": 1, "checkpoint": checkpoint}
        print("OLMoE's shape", json.dumps(measure(page, f"{app.url}/?{urlencode(query)}", checkpoint, args.rounds)))


if __name__ == "__main__":
    main()
