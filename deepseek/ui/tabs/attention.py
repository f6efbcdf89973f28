"""The Attention tab: the attention weights of every head."""

import re

import gradio as gr
import torch

from deepseek.interpret.trace import MAX_ATTENTION_TOKENS, Trace
from deepseek.ui.components.token_strip import attended_line, attended_lines, event_int, token_strip
from deepseek.ui.components.traces import trace_text
from deepseek.ui.components.view import connect_view, figure, text_box
from deepseek.ui.errors import user_errors
from deepseek.ui.generation import MODEL_QUEUE
from deepseek.ui.plots.attention import attention_map, attention_received, attention_small
from deepseek.ui.server import model_registry

ALL_HEADS, ALL_LAYERS = "all heads of this layer", "this head in all layers"


@user_errors()
def token_range(text: str, tokens: int) -> tuple[int, int]:
    """(first, last), last excluded, of a range such as "3-40", counted from 1; empty for all. Raises gr.Error."""
    if not (text or "").strip():
        return 0, min(tokens, MAX_ATTENTION_TOKENS)
    match = re.fullmatch(r"\s*(\d{1,9})\s*[-–]\s*(\d{1,9})\s*", text)
    first, last = map(int, match.groups()) if match else (0, 0)
    if not 0 < first <= last <= tokens or last - first >= MAX_ATTENTION_TOKENS:
        allowed = f"it must be a range such as 1-{min(tokens, MAX_ATTENTION_TOKENS)}, within 1-{tokens}"
        raise ValueError(f"tokens are {text!r:.40}; {allowed}, of {MAX_ATTENTION_TOKENS} tokens at most.")
    return first - 1, last


@user_errors()
def index_range(name: str, first: int, last: int, maximum: int) -> range:
    """The integers from `first` to `last`, both in 0 to `maximum`. Raises gr.Error."""
    if not (first in range(maximum + 1) and last in range(int(first), maximum + 1)):
        rule = f"they must be whole numbers from 0 to {maximum}, the first no larger"
        raise ValueError(f"{name} are {first} to {last}; {rule}.")
    return range(int(first), int(last) + 1)


def sliders(config) -> list[dict]:
    """Properties of the sliders: a layer, a head, the first and the last of several layers and of several heads."""
    layer, head = config.num_hidden_layers - 1, config.num_attention_heads - 1
    labels = ("layer", "head", "layers from", "to", "heads from", "to")
    limits = ((layer, layer // 2), (head, 0), (layer, 0), (layer, layer), (head, 0), (head, head))
    return [dict(label=label, maximum=maximum, value=value) for label, (maximum, value) in zip(labels, limits)]


def draw(
    trace: Trace, config, tokens="", layer=0, head=0, small=ALL_HEADS, layers=(0, 0), heads=(0, 0), token=None
) -> list:
    """The values of the tab's outputs: [note, strip, large map, small maps, attention received, selected token]."""
    last_layer, last_head = config.num_hidden_layers - 1, config.num_attention_heads - 1
    (layer,), (head,) = index_range("layers", layer, layer, last_layer), index_range("heads", head, head, last_head)
    layers, heads = index_range("layers", *layers, last_layer), index_range("heads", *heads, last_head)
    first, last = token_range(tokens, len(trace.ids))
    token = last - 1 if token not in range(first, last) else token

    def weights_HTT(layer):
        return trace.attention(layer, first, last)[:, :, first:].cpu()

    if small == ALL_HEADS:
        maps, titles = weights_HTT(layer), [f"head {index}" for index in range(last_head + 1)]
    else:
        maps = torch.stack([weights_HTT(index)[head] for index in range(last_layer + 1)])
        titles = [f"layer {index}" for index in range(last_layer + 1)]
    received_T = torch.stack([weights_HTT(index)[heads.start : heads.stop] for index in layers]).mean((0, 1, 2))
    names = trace.tokens[first:last]
    note = f"{len(trace.ids):,} tokens"
    if len(names) < len(trace.ids):
        note += f" · drawn: {first + 1:,} to {last:,}; “tokens” takes a range of at most {MAX_ATTENTION_TOKENS}"
    return [
        note,
        attended_lines(trace.tokens, trace.attention(layer, first, last)[head, token - first], token),
        attention_map(names, weights_HTT(layer)[head], f"layer {layer}, head {head}", first),
        attention_small(names, maps, titles, first),
        attention_received(names, received_T, first),
        token,
    ]


def build(model, text: str, first: Trace, checkpoint: gr.State, tab: gr.Tab) -> gr.Textbox:
    """Draws the tab with Trace `first` of `text`; returns the box of the text."""
    properties = sliders(model.config)
    layer, head, *ranges = (each["value"] for each in properties)
    *drawn, token = draw(first, model.config, "", layer, head, ALL_HEADS, ranges[:2], ranges[2:])
    gr.Markdown("In every head of every layer, each token attends to the tokens before it. To which ones?")
    box, button = text_box(text)
    with gr.Row():
        layer, head = (gr.Slider(0, step=1, min_width=200, **each) for each in properties[:2])
        hint = f"all, or a range of up to {MAX_ATTENTION_TOKENS}: 1-40"
        tokens = gr.Textbox("", label="tokens", placeholder=hint, min_width=200)
    note = gr.Markdown(drawn[0])
    selected = gr.State((text, token), time_to_live=3600)  # the text drawn, and the token selected in it
    gr.Markdown("### Attention of one token\nClick a token: a stronger colour is a larger weight in this head.")
    help = "the text, coloured by the selected token's attention"
    strip = token_strip("attention-strip", "attention", help, drawn[1])
    gr.Markdown("### One head\nEach row is a token; its columns are the tokens it attends to.")
    large = figure(drawn[2], "attention", elem_classes="wide")
    gr.Markdown("### Many heads")
    small = gr.Radio([ALL_HEADS, ALL_LAYERS], value=ALL_HEADS, show_label=False, container=False)
    maps = figure(drawn[3], "attention-maps")
    gr.Markdown(
        "### Attention received\nThe weight that each token received: the mean over these layers, these heads, and all tokens "
        "drawn. (Every later token can attend to a text's first tokens; only the last can attend to its last.)"
    )
    with gr.Row():
        ranges = [gr.Slider(0, step=1, min_width=180, **each) for each in properties[2:]]
    received = figure(drawn[4], "attention-received", elem_classes="wide")

    def redraw(model, tokenizer, text, tokens, small, selected, layer, head, *ranges):
        trace = trace_text(model, tokenizer, text)
        token = selected[1] if selected[0] == text else None
        *drawn, token = draw(trace, model.config, tokens, layer, head, small, ranges[:2], ranges[2:], token)
        return [*drawn, (text, token)]

    def select(checkpoint, selected, tokens, layer, head, lines, event: gr.EventData):
        """Colours the text by the attention of the clicked token."""
        model, tokenizer = model_registry.get_model(checkpoint)
        text, token = selected[0], event_int(event, "index")
        trace = trace_text(model, tokenizer, text)
        if token not in range(len(trace.ids)):
            return gr.skip(), gr.skip()
        (layer,) = index_range("layers", layer, layer, model.config.num_hidden_layers - 1)
        (head,) = index_range("heads", head, head, model.config.num_attention_heads - 1)
        first, last = token_range(tokens, len(trace.ids))
        if token not in range(first, last):
            first, last = token, token + 1
        weights_T = trace.attention(layer, first, last)[head, token - first]
        return (lines or "") + attended_line(weights_T, token), (text, token)

    inputs, quiet = [checkpoint, selected, tokens, layer, head, strip], dict(show_progress="hidden", **MODEL_QUEUE)
    strip.select(select, inputs, [strip, selected], trigger_mode="multiple", api_visibility="private", **quiet)
    fitted = [tokens, layer, head, *ranges]
    connect_view(
        redraw,
        [box, tokens, small, selected, layer, head, *ranges],
        [note, strip, large, maps, received, selected],
        checkpoint,
        [button.click, box.submit, tokens.submit, small.input, *(slider.release for slider in fitted[1:])],
        [tab.select],
        num_watched=1,
        fitted=fitted,
        fit=lambda model: [dict(value=""), *sliders(model.config)],
    )
    return box
