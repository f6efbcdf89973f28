"""How cost grows, beside stock transformers: the time of a token with the context, the memory of a training step with its
length and batch. `python tests/measure/growth.py [--picture docs/growth.png]`, JSON lines and a picture (by Chromium).

Preset seed with random weights: decoding in bf16 up to its whole context, training in float32.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import torch

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from deepseek import bench
from deepseek.model.config import preset
from deepseek.model.deepseek_v3 import DeepseekV3ForCausalLM

ROUNDS = 2
SHAPES = [(4, 128), (4, 256), (4, 512), (4, 1024), (1, 512), (2, 512), (8, 512)]  # batch, tokens
STEP = """
import sys, torch
from deepseek.config import preset
from deepseek.model import DeepseekV3ForCausalLM
from deepseek.train import keep_freed_memory
from transformers import DeepseekV3ForCausalLM as Stock
kind, batch, length = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
keep_freed_memory()
config = preset("seed")
model = DeepseekV3ForCausalLM(config) if kind == "ours" else Stock._from_config(config, experts_implementation="grouped_mm")
optimizer = torch.optim.AdamW(model.train().parameters(), fused=True)
ids = torch.randint(1, config.vocab_size, (batch, length))
for _ in range(2):  # the second has the optimizer's moments too
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
"""


def decoding() -> dict[str, dict[int, float]]:
    """{engine: {context: milliseconds a token, median of the rounds}}"""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        DeepseekV3ForCausalLM(preset("seed")).save_pretrained(folder)
        engines = [bench.Ours(folder, "bf16"), bench.Theirs(folder, "bf16")]
    longest = engines[0].model.config.max_position_embeddings - bench.NEW - 2
    contexts = [64, *range(512, longest, 512), longest]
    found = {engine.name: {context: [] for context in contexts} for engine in engines}
    for number in range(ROUNDS + 1):
        for context in contexts:
            for engine in engines:
                value = 1000 / bench.decode_rate(engine, context)
                if number:  # the first round warms up
                    found[engine.name][context].append(value)
    return {name: {c: round(median(v), 2) for c, v in values.items()} for name, values in found.items()}


def training() -> dict[str, dict[tuple, int]]:
    """{engine: {(batch, tokens): MiB at the highest of a process that takes two steps}}"""
    found = {"ours": {}, "stock": {}}
    for shape in SHAPES:
        for name in found:
            command = [sys.executable, "-c", STEP + bench.PEAK, name, *map(str, shape)]
            ended = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
            found[name][shape] = int(ended.stdout) // 1024
    return found


def picture(times, memory, path: Path) -> None:
    """Draws all of it in three small plots."""
    from playwright.sync_api import sync_playwright
    from plotly import graph_objects as go
    from plotly.subplots import make_subplots
    from ui.browser.conftest import CHROMIUM, QUIET

    titles = ["one token, ms", "training, batch 4, GiB", "training, 512 tokens, GiB"]
    figure = make_subplots(1, 3, subplot_titles=titles)
    for name, colour in (("ours", "#0072B2"), ("stock", "#999999")):
        look = dict(name=name, legendgroup=name, line_color=colour, mode="lines+markers")
        by_length = {length: m / 1024 for (batch, length), m in memory[name].items() if batch == 4}
        by_batch = {batch: m / 1024 for (batch, length), m in sorted(memory[name].items()) if length == 512}
        for column, values in enumerate((times[name], by_length, by_batch), 1):
            trace = go.Scatter(x=list(values), y=list(values.values()), showlegend=column == 1, **look)
            figure.add_trace(trace, 1, column)
    for column, label in enumerate(("tokens of context", "tokens of a text", "texts of a batch"), 1):
        figure.update_xaxes(title=label, col=column)
    figure.update_yaxes(rangemode="tozero")
    figure.update_layout(template="plotly_white", width=1080, height=330, margin=dict(l=40, r=20, t=40, b=50))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = browser.new_page(viewport={"width": 1100, "height": 350})
        page.set_content(figure.to_html(include_plotlyjs=True, config={"displayModeBar": False}))
        page.locator(".js-plotly-plot").screenshot(path=path)
        browser.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    print(json.dumps({"machine": bench.processor(), "threads": torch.get_num_threads()}), flush=True)
    times = decoding()
    for context in times["ours"]:
        values = {name: each[context] for name, each in times.items()}
        print(json.dumps({"figure": "decode, ms a token", "context": context, **values}), flush=True)
    memory = training()
    for batch, length in SHAPES:
        values = {name: each[batch, length] for name, each in memory.items()}
        print(json.dumps({"figure": "training, MiB", "batch": batch, "tokens": length, **values}), flush=True)
    if args.picture:
        picture(times, memory, args.picture)


if __name__ == "__main__":
    main()
