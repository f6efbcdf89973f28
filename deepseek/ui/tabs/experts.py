"""The Experts tab: routing of the current text, of a longer text, and of texts from several domains."""

import gradio as gr

from deepseek.interpret import routing_stats
from deepseek.interpret.routing_stats import LongTrace
from deepseek.interpret.trace import Trace
from deepseek.model import load_balancing
from deepseek.ui.components.token_strip import event_int, token_strip, traced_lines
from deepseek.ui.components.traces import trace_text
from deepseek.ui.components.view import connect_view, figure, text_box
from deepseek.ui.generation import UNQUEUED
from deepseek.ui.plots import routing as plots
from deepseek.ui.tabs import compare_domains, long_text

DENSE = "This model is dense: it has no experts to choose from."


def draw(trace: Trace) -> list:
    """[strip value, path of the second token, expert map, load, balance, note, LongTrace] of a Trace."""
    traced = LongTrace(trace.tokens, trace.routing)
    if not trace.routing:
        return [traced_lines(trace), None, None, None, None, DENSE, traced]
    layers = [layer.layer for layer in trace.routing]
    counts = routing_stats.expert_counts(trace.routing)
    violations = [float(load_balancing.max_violation(count)) for count in counts]
    worst = max(range(len(layers)), key=violations.__getitem__)
    note = (
        f"{len(trace.ids)} tokens, each routed to {trace.routing[0].indices.shape[1]} of {trace.routing[0].num_experts} "
        f"experts · least balanced: layer {layers[worst]}, where the largest load is {1 + violations[worst]:.1f} × even"
    )
    return [
        traced_lines(trace),
        draw_path(traced, 1),
        plots.expert_map(trace.tokens, trace.routing),
        plots.expert_load([load_balancing.load_shares(count).tolist() for count in counts], layers),
        plots.balance(layers, violations, [routing_stats.soft_kl(layer) for layer in trace.routing]),
        note,
        traced,
    ]


def draw_path(traced: LongTrace, index: int):
    """The figure of token `index`'s experts, or of the last token if there are fewer."""
    index = min(index, len(traced.tokens) - 1)
    return plots.token_path(traced.tokens[index], index, traced.routing)


def build(
    model, text: str, first: Trace, checkpoint: gr.State, tab: gr.Tab, examples: dict[str, LongTrace]
) -> gr.Textbox:
    """Draws the tab with Trace `first` of `text` and the traced `examples`; returns the box of the text."""
    open_sub_tab = gr.State("This text", time_to_live=3600)
    gr.Markdown("Each MoE layer routes every token to a few of its experts. Which ones?")
    with gr.Tabs():
        for name in ("This text", "Long text", "Domains"):
            with gr.Tab(name) as sub_tab:
                selected = sub_tab.select(lambda name=name: name, None, open_sub_tab, **UNQUEUED)
                opened, sub_tab = [tab.select, selected.then], (open_sub_tab, name)
                connection = dict(checkpoint=checkpoint, opened=opened, sub_tab=sub_tab)
                if name == "This text":
                    box = _build_text(text, first, **connection)
                elif name == "Long text":
                    long_text.build(model, examples["encyclopedia"], **connection)
                else:
                    compare_domains.build(examples, **connection)
    return box


def _build_text(text: str, first: Trace, **connection) -> gr.Textbox:
    box, button = text_box(text)
    strip_value, path_figure, map_figure, load_figure, balance_figure, note, traced = draw(first)
    traced = gr.State(traced, time_to_live=3600)
    colour = f"layer {first.routing[-1].layer}" if first.routing else "probability"
    help = "the text, coloured by expert; arrow keys move from one token to the next"
    strip = token_strip("experts-strip", colour, help, strip_value)
    note = gr.Markdown(note)
    gr.Markdown("### One token's path through the layers\nClick a token above. A larger mark is a larger weight.")
    path_plot = figure(path_figure, "token-path")
    gr.Markdown("### Top expert of every token\nHover for the other experts and their weights.")
    map_plot = figure(map_figure, "expert-map", elem_classes="wide")
    gr.Markdown("### Expert load\nEach expert's fraction of the assignments. The dashed line is an even load.")
    load_plot = figure(load_figure, "expert-load")
    gr.Markdown(
        "### Load balance\nMaxVio counts assignments: 0 is balanced, 1 means that the busiest expert has twice an even load. "
        "KL(P || U) uses the router's scores of all experts (sigmoids in DeepSeek-V3, a softmax in others), normalised for "
        "each token and averaged over the text: 0 is balanced."
    )
    balance_plot = figure(balance_figure, "expert-balance")

    def select(traced, event: gr.EventData):
        index = event_int(event, "index")
        if not (traced.routing and index in range(len(traced.tokens))):
            return gr.skip()
        return draw_path(traced, index)

    strip.select(select, traced, path_plot, show_progress="hidden", trigger_mode="multiple", **UNQUEUED)

    def redraw(model, tokenizer, text):
        return draw(trace_text(model, tokenizer, text))

    outputs = [strip, path_plot, map_plot, load_plot, balance_plot, note, traced]
    connect_view(redraw, [box], outputs, requested=[button.click, box.submit], num_watched=1, **connection)
    return box
