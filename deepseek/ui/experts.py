"""The Experts tab: which experts every token of a text went to."""

import gradio as gr

from deepseek import balance
from deepseek.plots.routing import expert_load, expert_map
from deepseek.ui.strip import token_strip, traced_lines
from deepseek.ui.subject import View, look, subject_box


def draw(trace):
    """(strip value, expert map, load figure, note) of a Trace."""
    if not trace.routing:
        return traced_lines(trace), None, None, "This model is dense: it has no experts to choose from."
    layers = [layer.layer for layer in trace.routing]
    counts = [balance.expert_counts(layer.indices, layer.experts) for layer in trace.routing]
    shares = [balance.load_shares(count).tolist() for count in counts]
    worst = max(range(len(counts)), key=lambda i: balance.max_violation(counts[i]))
    note = (
        f"{len(trace.ids)} tokens · least even: layer {layers[worst]}, whose busiest expert has "
        f"{1 + float(balance.max_violation(counts[worst])):.1f} × an even share"
    )
    return traced_lines(trace), expert_map(trace.tokens, trace.routing), expert_load(shares, layers), note


def build(model, tokenizer, text: str, first) -> View:
    """Draws the tab with Trace `first` of `text` in it."""
    if first.routing:
        chosen, experts = first.routing[0].indices.shape[1], first.routing[0].experts
        gr.Markdown(f"Every token is sent to {chosen} of {experts} experts in each layer of experts. Which ones?")
    box, button = subject_box(text)
    value, figure, load, note = draw(first)
    colour = f"layer {first.routing[-1].layer}" if first.routing else "probability"
    help = "the text, coloured by expert; arrow keys move from one token to the next"
    strip = token_strip("experts-strip", colour, help, value)
    note = gr.Markdown(note)
    gr.Markdown("### First expert of every token\nHover for the second one and the weights.")
    map_plot = gr.Plot(figure, show_label=False, elem_classes="wide")
    gr.Markdown("### How much each expert got of this text\nThe dashed line is an even load.")
    load_plot = gr.Plot(load, show_label=False)

    def redraw(text):
        return draw(look(model, tokenizer, text))

    return View(box, button, redraw, [strip, map_plot, load_plot, note])
