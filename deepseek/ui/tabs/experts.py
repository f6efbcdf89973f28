"""The Experts tab: routing of the current text, of a longer text, and of texts from several domains."""

import gradio as gr

from deepseek.interpret import routing_stats
from deepseek.interpret.moe_layers import why_no_experts
from deepseek.interpret.routing_stats import LongTrace
from deepseek.interpret.trace import Trace
from deepseek.model import load_balancing
from deepseek.ui.components.token_strip import event_int, token_strip, traced_lines
from deepseek.ui.components.traces import as_sampled, trace_text
from deepseek.ui.components.view import connect_view, figure, sample_watch, tab_id, text_box
from deepseek.ui.generation import QUICK_QUEUE
from deepseek.ui.plots import routing as plots
from deepseek.ui.tabs import compare_domains, long_text


def draw(trace: Trace, *order) -> list:
    """[strip value, path of the second token, expert map, load, balance, note, LongTrace] of a Trace.

    `order` are the last arguments of `draw_load`.
    """
    traced = LongTrace(trace.tokens, trace.routing)
    if not trace.routing:
        return [traced_lines(trace), None, None, None, None, why_no_experts(trace.model), traced]
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
        draw_load(traced, *order),
        plots.balance(layers, violations, [routing_stats.soft_kl(layer) for layer in trace.routing]),
        note,
        traced,
    ]


def draw_load(traced: LongTrace, by_load: bool = False, expert: int | None = None):
    """The figure of the experts' loads; see `plots.expert_load`."""
    loads = [load_balancing.load_shares(count).tolist() for count in routing_stats.expert_counts(traced.routing)]
    expert = expert if expert is not None and 0 <= expert < len(loads[0]) else None
    return plots.expert_load(loads, [layer.layer for layer in traced.routing], by_load, expert)


def is_large(traced: LongTrace) -> bool:
    """Whether the experts are too many for a bar each."""
    return bool(traced.routing) and traced.routing[0].num_experts > plots.MAX_BARS


def draw_path(traced: LongTrace, index: int):
    """The figure of token `index`'s experts, or of the last token if there are fewer."""
    index = min(index, len(traced.tokens) - 1)
    return plots.token_path(traced.tokens[index], index, traced.routing)


def build(
    model, generation: gr.State, first: Trace, checkpoint: gr.State, tab: gr.Tab, examples: dict[str, LongTrace]
) -> tuple[gr.Textbox, gr.HTML]:
    """Draws the tab with Trace `first` of the user's `generation` and the traced `examples`.

    Returns the box of the text and its `sample_watch`.
    """
    gr.Markdown("Each MoE layer routes every token to a few of its experts. Which ones?")
    with gr.Tabs():
        for name in ("This text", "Long text", "Domains"):
            with gr.Tab(name, elem_id=tab_id(name)) as this:
                connection = dict(checkpoint=checkpoint, opened=[tab.select, this.select], tab=this)
                if name == "This text":
                    text = _build_text(generation, first, **connection)
                elif name == "Long text":
                    long_text.build(model, examples["encyclopedia"], **connection)
                else:
                    compare_domains.build(examples, **connection)
    return text


def _build_text(generation: gr.State, first: Trace, **connection) -> tuple[gr.Textbox, gr.HTML]:
    (box, button), watch = text_box(generation.value.text), sample_watch()
    connection["opened"] = [*connection["opened"], watch.edit]
    strip_value, path_figure, map_figure, load_figure, balance_figure, note, traced = draw(first)
    large = is_large(traced)
    traced = gr.State(traced, time_to_live=3600)
    colour = f"layer {first.routing[-1].layer}" if first.routing else "probability"
    help = "the text, coloured by expert; arrow keys move from one token to the next"
    strip = token_strip("experts-strip", colour, help, strip_value)
    note = gr.Markdown(note)
    gr.Markdown("### One token's path through the layers\nClick a token above. A larger mark is a larger weight.")
    path_plot = figure(path_figure, "token-path")
    gr.Markdown(
        "### Top expert of every token\nHover for the other experts and their weights. Eight colours repeat: expert 8 has "
        "that of 0."
    )
    map_plot = figure(map_figure, "expert-map", elem_classes="wide")
    gr.Markdown(
        "### Expert load\nEach expert's fraction of the assignments. An even load is the dashed line; of many experts it is "
        "grey, more is orange and less is blue."
    )
    with gr.Row(visible=large) as load_controls:
        by_load = gr.Checkbox(label="sort by load", min_width=160)
        expert = gr.Number(None, label="find expert", info="outlined in every layer", precision=0, min_width=160)
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

    def redraw(model, tokenizer, text, generation, *order):
        *drawn, traced = draw(trace_text(model, tokenizer, as_sampled(text, generation, model)), *order)
        return [*drawn, traced, gr.update(visible=is_large(traced))]

    outputs = [strip, path_plot, map_plot, load_plot, balance_plot, note, traced, load_controls]
    requested, inputs = [button.click, box.submit], [box, generation, by_load, expert]
    view = connect_view(redraw, inputs, outputs, requested=requested, num_watched=1, **connection)
    view.add([by_load.input, expert.input], draw_load, [traced, by_load, expert], load_plot, **QUICK_QUEUE)
    view.add(strip.select, select, [traced], path_plot, **QUICK_QUEUE)
    return box, watch
