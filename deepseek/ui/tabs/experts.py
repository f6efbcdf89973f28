"""The Experts tab: which experts the tokens of a text went to, of a longer text, and of several kinds of text."""

import gradio as gr

from deepseek.interpret import routing_stats
from deepseek.interpret.routing_stats import LongTrace
from deepseek.model import load_balancing
from deepseek.ui.components.figure import figure
from deepseek.ui.components.text_view import TextView, look, subject_box
from deepseek.ui.components.token_strip import event_int, token_strip, traced_lines
from deepseek.ui.generation import UNQUEUED
from deepseek.ui.plots import routing as plots
from deepseek.ui.tabs import compare_domains, long_text

DENSE = "This model is dense: it has no experts to choose from."


def draw(trace):
    """(strip value, path of the second token, expert map, load, balance, note, Reading) of a Trace."""
    seen = LongTrace(trace.tokens, trace.routing)
    if not trace.routing:
        return traced_lines(trace), None, None, None, None, DENSE, seen
    layers = [layer.layer for layer in trace.routing]
    counts = routing_stats.expert_counts(trace.routing)
    shares = [load_balancing.load_shares(count).tolist() for count in counts]
    violations = [float(load_balancing.max_violation(count)) for count in counts]
    worst = max(range(len(layers)), key=violations.__getitem__)
    chosen, experts = trace.routing[0].indices.shape[1], trace.routing[0].experts
    note = (
        f"{len(trace.ids)} tokens, each sent to {chosen} of {experts} experts · least even: layer {layers[worst]}, "
        f"whose busiest expert has {1 + violations[worst]:.1f} × an even share"
    )
    return (
        traced_lines(trace),
        path(seen, 1),
        plots.expert_map(trace.tokens, trace.routing),
        plots.expert_load(shares, layers),
        plots.balance(layers, violations, [routing_stats.soft_kl(layer) for layer in trace.routing]),
        note,
        seen,
    )


def path(seen: LongTrace, index: int):
    """The way of token `index` through the layers, or of the last one if there are fewer."""
    index = min(index, len(seen.tokens) - 1)
    return plots.token_path(seen.tokens[index], index, seen.routing)


def build(model, text: str, first, readings: dict, checkpoint: gr.State) -> TextView:
    """Draws the tab with Trace `first` of `text` in it, and the `readings` of longer.EXAMPLES."""
    gr.Markdown("Every token is sent to a few experts in each layer of experts. Which ones?")
    with gr.Tabs():
        with gr.Tab("This text"):
            view = this_text(text, first)
        with gr.Tab("Longer"):
            long_text.build(model, readings["encyclopedia"], checkpoint)
        with gr.Tab("Kinds"):
            compare_domains.build(readings, checkpoint)
    return view


def this_text(text: str, first) -> TextView:
    """The text that was just generated, or one of the reader's own."""
    box, button = subject_box(text)
    strip_value, path_figure, map_figure, load_figure, balance_figure, note, seen = draw(first)
    seen = gr.State(seen, time_to_live=3600)
    colour = f"layer {first.routing[-1].layer}" if first.routing else "probability"
    help = "the text, coloured by expert; arrow keys move from one token to the next"
    strip = token_strip("experts-strip", colour, help, strip_value)
    note = gr.Markdown(note)
    gr.Markdown(
        "### One token's way through the layers\nClick a token above. The larger the mark, the heavier the expert."
    )
    path_plot = figure(path_figure, "token-path", elem_id="token-path")
    gr.Markdown("### First expert of every token\nHover for the second one and how much each counts.")
    map_plot = figure(map_figure, "expert-map", elem_classes="wide", elem_id="expert-map")
    gr.Markdown("### How much each expert got of this text\nThe dashed line is an even load.")
    load_plot = figure(load_figure, "expert-load", elem_id="expert-load")
    gr.Markdown(
        "### How even that is\nMaxVio counts tokens: 0 is even, 1 is twice an even share for the busiest expert. "
        "KL(P || U) looks at the router's scores of all experts (sigmoids in DeepSeek-V3, a softmax in others), each "
        "token's made to sum to 1 and averaged over the text: 0 is even."
    )
    balance_plot = figure(balance_figure, "expert-balance", elem_id="expert-balance")

    def select(seen, event: gr.EventData):
        index = event_int(event, "index")
        if not (seen.routing and index in range(len(seen.tokens))):
            return gr.skip()
        return path(seen, index)

    strip.select(select, seen, path_plot, show_progress="hidden", trigger_mode="multiple", **UNQUEUED)

    def redraw(model, tokenizer, text):
        return draw(look(model, tokenizer, text))

    return TextView(box, button, redraw, [strip, path_plot, map_plot, load_plot, balance_plot, note, seen])
