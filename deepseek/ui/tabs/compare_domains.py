"""Domains, in the Experts tab: how differently texts of two or three domains are routed."""

from itertools import combinations
from statistics import fmean

import gradio as gr

from deepseek.interpret import routing_stats
from deepseek.interpret.routing_stats import LongTrace
from deepseek.model import load_balancing
from deepseek.ui.components.traces import EXAMPLE_TEXTS, trace_long
from deepseek.ui.components.view import connect_view, figure
from deepseek.ui.errors import user_error
from deepseek.ui.generation import QUICK_QUEUE
from deepseek.ui.plots.routing import divergence_bars, load_by_text

NAMES = "ABC"
DOMAINS = ("a story", "an encyclopedia entry", "Python code")  # of traces.EXAMPLE_TEXTS
HELP = """**Divergence** of two texts at a layer: the Jensen–Shannon divergence, in bits, of their expert loads (each expert's
fraction of the assignments). 0: both texts load every expert equally. 1: no expert works for both. The number for two texts
is the mean over the layers.

**Permutation baseline** (the outlined bars): the divergence after the same tokens are assigned at random to two texts of the
same lengths, the mean of 20 permutations. Short texts differ even at random, so only what is clearly above the baseline
counts. The baseline takes tokens one by one; since a text repeats its words and themes, two texts of one domain differ
somewhat more than that too."""


def draw(traces: dict[str, LongTrace]) -> list:
    """[summary, divergence figure, heading and load figure of the layer that differs most] of {name: LongTrace}."""
    if not all(trace.routing for trace in traces.values()):
        return ["This model is dense: it has no experts to tell texts apart by.", None, "", None]
    pairs = {}
    for (name_a, a), (name_b, b) in combinations(traces.items(), 2):
        pair = a.routing, b.routing
        divergences, baseline = routing_stats.layer_divergences(*pair), routing_stats.permutation_baseline(*pair)
        pairs[f"{name_a} and {name_b}"] = divergences, baseline
    summary = " · ".join(
        f"**{pair}: {fmean(divergences):.3f} bits** (permutation baseline {fmean(baseline):.3f})"
        for pair, (divergences, baseline) in pairs.items()
    )
    lengths = ", ".join(f"{name} {len(trace.tokens):,}" for name, trace in traces.items())
    layers = [layer.layer for layer in next(iter(traces.values())).routing]
    totals = [sum(layer) for layer in zip(*(divergences for divergences, _ in pairs.values()))]
    widest = totals.index(max(totals))
    loads = {
        name: load_balancing.load_shares(routing_stats.expert_counts(trace.routing)[widest]).tolist()
        for name, trace in traces.items()
    }
    heading = f"### Layer {layers[widest]}, where they differ most\nExpert load of each text. The dashed line is an even load."
    return [f"{summary}\n\nTokens: {lengths}", divergence_bars(layers, pairs), heading, load_by_text(loads)]


def build(examples: dict[str, LongTrace], **connection) -> None:
    """Draws the sub-tab with the traced `examples` compared; `connection` are arguments of `connect_view`."""
    texts = list(EXAMPLE_TEXTS.values())
    summary, bars, heading, loads = draw(dict(zip(NAMES, examples.values())))
    gr.Markdown("Do a story, an encyclopedia entry and Python code use different experts? Compare two texts or three.")
    with gr.Row():
        boxes = [
            gr.Textbox(text, label=name, info=f"example: {domain}", lines=4, max_lines=8, min_width=240)
            for name, text, domain in zip(NAMES, texts, DOMAINS)
        ]
    with gr.Row():
        button = gr.Button("Compare routing", variant="primary", min_width=160)
        reset = gr.Button("Back to the examples", min_width=160)
    gr.Markdown(
        "### Domain specialization\nDivergence of the expert loads: 0 is the same load, 1 is no expert in common. "
        "The thin outlined bars are the permutation baseline: what random assignment of the tokens gives."
    )
    summary = gr.Markdown(summary, elem_id="domains-summary")
    bars = figure(bars, "routing-divergence")
    with gr.Accordion("what these numbers are", open=False):
        gr.Markdown(HELP)
    heading = gr.Markdown(heading)
    loads = figure(loads, "load-by-text")

    def redraw(model, tokenizer, *texts):
        filled = {name: text for name, text in zip(NAMES, texts) if not isinstance(text, str) or text.strip()}
        if len(filled) < 2:
            raise user_error(ValueError(f"{len(filled)} of the texts are filled in; it must be two or three."))
        traces, progress = {}, gr.Progress()
        for name, text in filled.items():
            progress((len(traces), len(filled)), unit="texts")
            traces[name] = trace_long(model, tokenizer, text)
        return draw(traces)

    connect_view(redraw, boxes, [summary, bars, heading, loads], requested=[button.click], **connection)
    reset.click(lambda: texts, None, boxes, **QUICK_QUEUE)
