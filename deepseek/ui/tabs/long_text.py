"""Long text, in the Experts tab: vocabulary specialization, co-activation and transitions of experts."""

from statistics import fmean

import gradio as gr

from deepseek.interpret import routing_stats
from deepseek.interpret.moe_layers import moe_layers
from deepseek.interpret.routing_stats import MAX_CHARACTERS, LongTrace
from deepseek.model import load_balancing
from deepseek.ui.components.traces import EXAMPLE_TEXTS, trace_long
from deepseek.ui.components.view import connect_view, figure
from deepseek.ui.errors import user_errors
from deepseek.ui.generation import QUICK_QUEUE
from deepseek.ui.plots import routing as plots

MAX_LAYERS = 12  # transitions between more cannot be read


def draw(traced: LongTrace, layer: int) -> list:
    """[note, vocabulary specialization and co-activation at `layer`, transitions between the layers] of a LongTrace."""
    if not traced.routing:
        return [f"{len(traced.tokens):,} tokens · this model is dense: it has no experts.", None, None, None]
    violations = [float(load_balancing.max_violation(count)) for count in routing_stats.expert_counts(traced.routing)]
    note = f"{len(traced.tokens):,} tokens · on average over the layers the largest load is {1 + fmean(violations):.1f} × even"
    if (num_experts := traced.routing[0].num_experts) > plots.MAX_ROWS:
        note += f" · the {plots.MAX_ROWS} busiest of {num_experts} experts are shown"
    return [note, *draw_layer(traced, layer)]


def draw_layer(traced: LongTrace, layer: int) -> tuple:
    """(vocabulary specialization, co-activation, transitions) at one layer; None for what the model does not have."""
    index = next((index for index, routing in enumerate(traced.routing) if routing.layer == layer), None)
    if index is None:
        return None, None, None
    routing = traced.routing[index]
    experts = routing_stats.busiest_experts(routing, plots.MAX_ROWS)
    tokens = routing_stats.vocabulary_specialization(traced.tokens, routing)
    co_activation = None
    if routing.indices.shape[1] > 1:
        co_activation = plots.co_activation(routing_stats.co_activation(routing), experts)
    window = traced.routing
    if len(window) > MAX_LAYERS:
        first = max(0, min(index - MAX_LAYERS // 2, len(window) - MAX_LAYERS))
        window = window[first : first + MAX_LAYERS]
    counts = routing_stats.transitions(window)
    transitions = plots.transitions(counts, window) if counts else None
    return plots.vocabulary_specialization(tokens, experts), co_activation, transitions


def layer_choices(model) -> dict:
    """Choices and first value of a dropdown of the MoE layers."""
    layers = list(moe_layers(model))
    return dict(choices=[(f"layer {layer}", layer) for layer in layers], value=layers[-1] if layers else None)


@user_errors()
def read_file(file: str) -> str:
    """The text of an uploaded file. Raises gr.Error if it is not text or too long."""
    try:
        with open(file, encoding="utf-8-sig") as opened:
            text = opened.read(MAX_CHARACTERS + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError("the file is not text in UTF-8; it must be.") from error
    if len(text) > MAX_CHARACTERS:
        rule = f"it must have at most {MAX_CHARACTERS:,}"
        raise ValueError(f"the file has more than {MAX_CHARACTERS:,} characters; {rule}.")
    return text


def build(model, first: LongTrace, **connection) -> None:
    """Draws the sub-tab with the example "encyclopedia", traced as `first`; `connection` are arguments of `connect_view`."""
    layers = layer_choices(model)
    note, vocabulary, co_activation, transitions = draw(first, layers["value"])
    traced = gr.State(first, time_to_live=3600)
    gr.Markdown("A longer text shows habits: which tokens an expert specializes in, and which experts work together.")
    box = gr.Textbox(
        EXAMPLE_TEXTS["encyclopedia"],
        label="text",
        info=f"at most {MAX_CHARACTERS:,} characters; traced in windows as long as the model's context",
        lines=4,
        max_lines=8,
    )
    with gr.Row():
        button = gr.Button("Trace", variant="primary", min_width=120)
        upload = gr.UploadButton("Open a text file", file_types=["text"], min_width=120)
    note = gr.Markdown(note, elem_id="long-text-note")
    layer = gr.Dropdown(**layers, label="layer")
    gr.Markdown(
        "### Vocabulary specialization\nThe tokens that each expert processes most often, from left to right. "
        "Hover: how many of all their occurrences."
    )
    vocabulary = figure(vocabulary, "expert-tokens", elem_classes=["wide", "inked"])
    gr.Markdown(
        "### Co-activation\nHow often two experts are chosen for the same token, relative to what their loads alone predict: "
        "above 1 they work together, below 1 they avoid each other."
    )
    co_activation = figure(co_activation, "expert-pairs", elem_classes="inked")
    gr.Markdown(
        "### Transitions\nBands of tokens from the top expert of one layer to the top expert of the next. "
        f"Labels are layer:expert. The widest {plots.MAX_TRANSITIONS} are drawn; of many layers, the {MAX_LAYERS} around the one "
        "chosen above."
    )
    transitions = figure(transitions, "expert-flow", elem_classes="wide")

    def redraw(model, tokenizer, text, layer):
        progress = gr.Progress()
        traced = trace_long(model, tokenizer, text, lambda fraction: progress(fraction, desc="tracing"))
        return [traced, *draw(traced, layer)]

    outputs = [traced, note, vocabulary, co_activation, transitions]
    fitting = dict(fitted=[layer], fit=lambda model: [layer_choices(model)])
    view = connect_view(redraw, [box, layer], outputs, requested=[button.click], **fitting, **connection)
    view.add(layer.input, draw_layer, [traced, layer], [vocabulary, co_activation, transitions], **QUICK_QUEUE)
    upload.upload(read_file, upload, box, **QUICK_QUEUE)
