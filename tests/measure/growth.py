"""How cost grows, beside stock transformers: time per token by context, memory of a training step by length and batch.

`python tests/measure/growth.py [--picture docs/growth.png]` prints JSON lines, and draws them with Chromium. Random weights:
decoding in bf16 up to the whole context, training in float32.
"""

import argparse
import json
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import torch
from transformers import DeepseekV3ForCausalLM as StockForCausalLM

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from deepseek import bench
from deepseek.model.config import PRESETS, preset
from deepseek.model.deepseek_v3 import DeepseekV3ForCausalLM
from deepseek.train import keep_freed_memory

SHAPES = [(4, 128), (4, 256), (4, 512), (4, 1024), (1, 512), (2, 512), (8, 512)]  # (batch size, tokens)
COLOURS = {"ours": "#0072B2", "stock": "#999999"}


def decoding(name: str, rounds: int) -> dict[tuple[str, int], float]:
    """{(engine, context): milliseconds per token, the median of the rounds} of a preset."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        DeepseekV3ForCausalLM(preset(name)).save_pretrained(folder)
        engines = [bench.Engine(engine, "bf16", folder) for engine in bench.MODELS]
    longest = preset(name).max_position_embeddings - bench.NEW_TOKENS - 2
    contexts = [64, *range(512, longest, 512), longest]
    work = {(e.name, context): partial(bench.decode_rate, e, context) for context in contexts for e in engines}
    return {label: round(median(1000 / r for r in rates), 2) for label, rates in bench.in_turns(work, rounds).items()}


def training(name: str) -> dict[tuple[str, int, int], int]:
    """{(engine, batch size, tokens): MiB} of a preset, each in a process of its own."""
    labels = [(engine, *shape) for shape in SHAPES for engine in COLOURS]
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        return dict(zip(labels, pool.map(partial(train_peak, name), *zip(*labels))))


def train_peak(name: str, engine: str, batch_size: int, num_tokens: int) -> int:
    """Peak memory, in MiB, of this process after two training steps."""
    keep_freed_memory()
    config = preset(name)
    if engine == "ours":
        model = DeepseekV3ForCausalLM(config)
    else:
        model = StockForCausalLM._from_config(config, experts_implementation="grouped_mm")
    optimizer = torch.optim.AdamW(model.train().parameters(), fused=True)
    ids_BS = torch.randint(1, config.vocab_size, (batch_size, num_tokens))
    for _ in range(2):  # from the second on, the optimizer's moments are there too
        model(ids_BS, labels=ids_BS).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    # Not getrusage: it counts what the parent had, too.
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024


def draw(times: dict, memory: dict, path: Path) -> None:
    """Draws the figures in three plots and saves them as an image."""
    from measure.chromium import chromium_page
    from plotly import graph_objects as go
    from plotly.subplots import make_subplots

    titles = ["one token, ms", "training, batch 4, GiB", "training, 512 tokens, GiB"]
    figure = make_subplots(1, 3, subplot_titles=titles)
    for engine, colour in COLOURS.items():
        by_context = {context: ms for (name, context), ms in times.items() if name == engine}
        by_length = {length: memory[engine, batch, length] / 1024 for batch, length in SHAPES if batch == 4}
        by_batch = {batch: memory[engine, batch, length] / 1024 for batch, length in sorted(SHAPES) if length == 512}
        style = dict(name=engine, legendgroup=engine, line_color=colour, mode="lines+markers")
        for column, values in enumerate((by_context, by_length, by_batch), 1):
            trace = go.Scatter(x=list(values), y=list(values.values()), showlegend=column == 1, **style)
            figure.add_trace(trace, 1, column)
    for column, label in enumerate(("context, tokens", "sequence length, tokens", "batch size"), 1):
        figure.update_xaxes(title=label, col=column)
    figure.update_yaxes(rangemode="tozero")
    figure.update_layout(template="plotly_white", width=1080, height=330, margin=dict(l=40, r=20, t=40, b=50))
    with chromium_page(viewport={"width": 1100, "height": 350}) as page:
        page.set_content(figure.to_html(include_plotlyjs=True, config={"displayModeBar": False}))
        page.locator(".js-plotly-plot").screenshot(path=path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--preset", default="seed", choices=list(PRESETS))
    parser.add_argument("--rounds", type=int, default=2, help="counted rounds of decoding, after one that warms up (2)")
    parser.add_argument("--picture", type=Path, help="image file to draw the figures in")
    args = parser.parse_args()
    print(json.dumps({"machine": bench.cpu_name(), "threads": torch.get_num_threads()}), flush=True)
    times = decoding(args.preset, args.rounds)
    for context in dict.fromkeys(context for _, context in times):
        values = {engine: times[engine, context] for engine in COLOURS}
        print(json.dumps({"figure": "decode, ms per token", "context": context, **values}), flush=True)
    memory = training(args.preset)
    for batch_size, num_tokens in SHAPES:
        values = {engine: memory[engine, batch_size, num_tokens] for engine in COLOURS}
        print(json.dumps({"figure": "training, MiB", "batch": batch_size, "tokens": num_tokens, **values}), flush=True)
    if args.picture:
        draw(times, memory, args.picture)


if __name__ == "__main__":
    main()
