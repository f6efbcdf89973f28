"""The Attention tab: the attention weights of every head."""

import re
from contextlib import suppress

import gradio as gr
import torch

from deepseek.interpret.attention import attention_layers, num_heads
from deepseek.interpret.model_parts import decoder_layers
from deepseek.interpret.trace import MAX_ATTENTION_TOKENS, Trace
from deepseek.ui.components.token_strip import attended_line, attended_lines, event_int, token_strip
from deepseek.ui.components.traces import as_sampled, trace_text
from deepseek.ui.components.view import connect_view, figure, sample_watch, text_box
from deepseek.ui.errors import user_errors
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


def fitting_range(text: str, tokens: int) -> str:
    """The range `text`, which may be left over from another text, or "" for all tokens if it does not fit this one's."""
    try:
        token_range(text, tokens)
    except gr.Error:
        return ""
    return text


@user_errors()
def index_range(name: str, first: int, last: int, maximum: int) -> range:
    """The integers from `first` to `last`, both in 0 to `maximum`. Raises gr.Error."""
    if not (first in range(maximum + 1) and last in range(int(first), maximum + 1)):
        rule = f"they must be whole numbers from 0 to {maximum}, the first no larger"
        raise ValueError(f"{name} are {first} to {last}; {rule}.")
    return range(int(first), int(last) + 1)


def sliders(model) -> list[dict]:
    """Properties of the sliders: a layer, a head, the first and the last of several layers and of several heads."""
    layer, head, attending = len(decoder_layers(model)) - 1, max(num_heads(model), 1) - 1, attention_layers(model)
    middle = attending[len(attending) // 2 - (len(attending) % 2 == 0)] if attending else 0
    labels = ("layer", "head", "layers from", "to", "heads from", "to")
    limits = ((layer, middle), (head, 0), (layer, 0), (layer, layer), (head, 0), (head, head))
    return [  # gradio's sliders need a range, also for a model of one layer or one head
        dict(label=label, maximum=max(maximum, 1), value=value, interactive=maximum > 0)
        for label, (maximum, value) in zip(labels, limits)
    ]


def draw(trace: Trace, tokens="", layer=0, head=0, small=ALL_HEADS, layers=(0, 0), heads=(0, 0), token=None) -> list:
    """The values of the tab's outputs: [note, strip, large map, small maps, attention received, selected token].

    A layer without attention has a sentence in the note in place of its maps.
    """
    properties = sliders(trace.model)
    last_layer, last_head = (each["maximum"] if each["interactive"] else 0 for each in properties[:2])
    (layer,), (head,) = index_range("layers", layer, layer, last_layer), index_range("heads", head, head, last_head)
    layers, heads = index_range("layers", *layers, last_layer), index_range("heads", *heads, last_head)
    first, last = token_range(tokens, len(trace.ids))
    token = last - 1 if token not in range(first, last) else token
    names, note = trace.tokens[first:last], f"{len(trace.ids):,} tokens"
    if len(names) < len(trace.ids):
        note += f" · drawn: {first + 1:,} to {last:,}; “tokens” takes a range of at most {MAX_ATTENTION_TOKENS}"

    def maps_of(some_layers) -> dict:
        """{layer: (heads, tokens, tokens)} of those that have attention."""
        maps = {}
        for index in some_layers:
            with suppress(ValueError):
                maps[index] = trace.attention(index, first, last)[:, :, first:].cpu()
        return maps

    strip, large, small_maps, received = attended_lines(trace, torch.zeros(0), token), None, None, None
    try:
        weights_HQT = trace.attention(layer, first, last)
        (head,) = index_range("heads", head, head, len(weights_HQT) - 1)
        strip = attended_lines(trace, weights_HQT[head, token - first], token)
        large = attention_map(names, weights_HQT[head, :, first:].cpu(), f"layer {layer}, head {head}", first)
    except ValueError as error:
        note += f" · {error}"
    if small == ALL_HEADS:
        maps = {
            f"head {index}": map_TT for map_HTT in maps_of([layer]).values() for index, map_TT in enumerate(map_HTT)
        }
    else:
        maps = {f"layer {index}": map_HTT[head] for index, map_HTT in maps_of(range(last_layer + 1)).items()}
    if maps:
        small_maps = attention_small(names, torch.stack(list(maps.values())), list(maps), first)
    if drawn := [map_HTT[heads.start : heads.stop] for map_HTT in maps_of(layers).values()]:
        received = attention_received(names, torch.cat(drawn).mean((0, 1)), first)
    return [note, strip, large, small_maps, received, token]


def build(model, generation: gr.State, first: Trace, checkpoint: gr.State, tab: gr.Tab) -> tuple[gr.Textbox, gr.HTML]:
    """Draws the tab with Trace `first` of the user's `generation`; returns the box of the text and its `sample_watch`."""
    properties = sliders(model)
    layer, head, *ranges = (each["value"] for each in properties)
    *drawn, token = draw(first, "", layer, head, ALL_HEADS, ranges[:2], ranges[2:])
    gr.Markdown("In every head of every layer, each token attends to the tokens before it. To which ones?")
    (box, button), watch = text_box(generation.value.text), sample_watch()
    with gr.Row():
        layer, head = (gr.Slider(0, step=1, min_width=200, **each) for each in properties[:2])
        hint = f"all, or a range of up to {MAX_ATTENTION_TOKENS}: 1-40"
        tokens = gr.Textbox("", label="tokens", placeholder=hint, min_width=200)
    note = gr.Markdown(drawn[0])
    # The text drawn, as ids where they are known, whose checkpoint drew it, and the token selected in it.
    selected = gr.State((generation.value.ids, checkpoint.value, token), time_to_live=3600)
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

    def redraw(model, tokenizer, text, generation, tokens, small, selected, layer, head, *ranges):
        text = as_sampled(text, generation, model)
        trace = trace_text(model, tokenizer, text)
        token = selected[2] if selected and selected[:2] == (text, model.name_or_path) else None
        if token is None:  # another text
            tokens = fitting_range(tokens, len(trace.ids))
        *drawn, token = draw(trace, tokens, layer, head, small, ranges[:2], ranges[2:], token)
        return [*drawn, (text, model.name_or_path, token), tokens]

    def select(checkpoint, selected, tokens, layer, head, lines, event: gr.EventData):
        """Colours the text by the attention of the clicked token."""
        model, tokenizer = model_registry.get_model(checkpoint)
        text, token = selected[0], event_int(event, "index")
        trace = trace_text(model, tokenizer, text)
        if token not in range(len(trace.ids)):
            return gr.skip()
        first, last = token_range(tokens, len(trace.ids))
        if token not in range(first, last):
            first, last = token, token + 1
        with user_errors():
            weights_HQT = trace.attention(layer, first, last)
        (head,) = index_range("heads", head, head, len(weights_HQT) - 1)
        return (lines or "") + attended_line(weights_HQT[head, token - first], token), (text, checkpoint, token)

    fitted = [layer, head, *ranges]
    view = connect_view(
        redraw,
        [box, generation, tokens, small, selected, layer, head, *ranges],
        [note, strip, large, maps, received, selected, tokens],
        checkpoint,
        [button.click, box.submit, tokens.submit, small.input, *(slider.release for slider in fitted)],
        [tab.select, watch.edit],
        num_watched=1,
        fitted=fitted,
        fit=sliders,
    )
    inputs = [checkpoint, selected, tokens, layer, head, strip]
    view.add(strip.select, select, inputs, [strip, selected], show_progress="hidden")
    return box, watch
