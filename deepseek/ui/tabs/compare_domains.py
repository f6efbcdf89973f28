"""Kinds of text, in the Experts tab: how differently two or three texts are routed."""

from itertools import combinations

import gradio as gr

from deepseek.interpret import routing_stats
from deepseek.model import load_balancing
from deepseek.ui.components.figure import figure
from deepseek.ui.errors import user_error
from deepseek.ui.generation import MODEL_QUEUE, UNQUEUED
from deepseek.ui.plots.domains import divergence_bars, load_by_text
from deepseek.ui.server import model_registry
from deepseek.ui.tabs.long_text import STALE, example, read_long_text

NAMES = "ABC"
KINDS = ("a story", "an encyclopedia entry", "Python code")  # of longer.EXAMPLES
HELP = """**Divergence** of two texts at a layer: the Jensen–Shannon divergence, in bits, of their expert loads (each expert's
share of the choices). 0: every expert has the same share in both. 1: no expert works for both. The number for two texts
is the mean over the layers.

**By chance** (the outlined bars): the same tokens dealt out at random into two texts of the same lengths, the mean of 20
deals. Short texts differ by chance alone, so read what stands clearly above it. It takes tokens one by one; since a
text repeats its words and themes, two texts of one kind differ somewhat more than that too."""


def mean(values: list[float]) -> float:
    """The mean of some numbers."""
    return sum(values) / len(values)


def draw(readings: dict):
    """(summary, divergence figure, heading and load figure of the layer that differs most) of {name: Reading}."""
    if not all(reading.routing for reading in readings.values()):
        return "This model is dense: it has no experts to tell texts apart by.", None, "", None
    pairs = {}
    for (name, one), (other, two) in combinations(readings.items(), 2):
        pair = one.routing, two.routing
        pairs[f"{name} and {other}"] = routing_stats.layer_divergences(*pair), routing_stats.permutation_baseline(*pair)
    summary = " · ".join(
        f"**{pair}: {mean(found):.3f} bits** (by chance {mean(chance):.3f})" for pair, (found, chance) in pairs.items()
    )
    lengths = ", ".join(f"{name} {len(reading.tokens):,}" for name, reading in readings.items())
    layers = [layer.layer for layer in next(iter(readings.values())).routing]
    sums = [sum(found) for found in zip(*(found for found, _ in pairs.values()))]
    place = sums.index(max(sums))
    shares = {
        name: load_balancing.load_shares(routing_stats.expert_counts(reading.routing)[place]).tolist()
        for name, reading in readings.items()
    }
    heading = f"### Layer {layers[place]}, where they differ most\n"
    heading += "How much each expert got of each text. The dashed line is an even load."
    return f"{summary}\n\nTokens: {lengths}", divergence_bars(layers, pairs), heading, load_by_text(shares)


def build(readings: dict, checkpoint: gr.State) -> None:
    """Draws the sub-tab with the `readings` of the examples already compared."""
    texts = [example(name) for name in readings]
    summary, bars, heading, loads = draw(dict(zip(NAMES, readings.values())))
    gr.Markdown("Do a story, an encyclopedia entry and Python code use different experts? Compare two texts or three.")
    with gr.Row():
        boxes = [
            gr.Textbox(text, label=name, info=f"example: {kind}", lines=4, max_lines=8, min_width=240)
            for name, text, kind in zip(NAMES, texts, KINDS)
        ]
    with gr.Row():
        go = gr.Button("Compare the routing", variant="primary", min_width=160)
        back = gr.Button("Back to the examples", min_width=160)
    gr.Markdown(
        "### How differently they are routed\nDivergence of the experts' loads: 0 is the same, 1 is no expert in common. "
        "The thin outlined bars are what chance alone gives."
    )
    summary = gr.Markdown(summary, elem_id="kinds-summary")
    bars = figure(bars, "routing-divergence", elem_id="routing-divergence")
    with gr.Accordion("what these numbers are", open=False):
        gr.Markdown(HELP)
    heading = gr.Markdown(heading)
    loads = figure(loads, "load-by-text", elem_id="load-by-text")

    def run(checkpoint, a, b, c, progress=gr.Progress()):  # noqa: B008 (gradio looks for it there)
        given = {name: text for name, text in zip(NAMES, (a, b, c)) if not isinstance(text, str) or text.strip()}
        if len(given) < 2:
            raise user_error(ValueError(f"{len(given)} of the texts are filled in; it must be two or three."))
        model, tokenizer = model_registry.get_model(checkpoint)
        readings = {}
        for name, text in given.items():
            progress((len(readings), len(given)), unit="texts")
            readings[name] = read_long_text(model, tokenizer, text)
        return draw(readings)

    outputs = [summary, bars, heading, loads]
    go.click(run, [checkpoint, *boxes], outputs, api_visibility="private", **MODEL_QUEUE)
    back.click(lambda: texts, None, boxes, **UNQUEUED)
    checkpoint.change(lambda: [STALE, None, "", None], None, outputs, **UNQUEUED)
