"""The Attention tab: where every head looked."""

import re

import gradio as gr
import torch

from deepseek.interpret.trace import MAX_ATTENTION_TOKENS
from deepseek.ui.components.figure import figure
from deepseek.ui.components.text_view import TextView, look, subject_box
from deepseek.ui.components.token_strip import attended_line, attended_lines, event_int, token_strip
from deepseek.ui.errors import user_error
from deepseek.ui.generation import MODEL_QUEUE
from deepseek.ui.plots.attention import attention_map, attention_received, attention_small
from deepseek.ui.server import model_registry

SMALL = ["all heads of this layer", "this head in all layers"]


def window(text: str, tokens: int) -> tuple[int, int]:
    """(first, last) of the range that a reader wrote, "3-40" or nothing, last excluded. Raises gr.Error."""
    if not (text or "").strip():
        return 0, min(tokens, MAX_ATTENTION_TOKENS)
    found = re.fullmatch(r"\s*(\d{1,9})\s*[-–]\s*(\d{1,9})\s*", text)
    first, last = map(int, found.groups()) if found else (0, 0)
    if not 0 < first <= last <= tokens or last - first >= MAX_ATTENTION_TOKENS:
        allowed = f"it must be a range such as 1-{min(tokens, MAX_ATTENTION_TOKENS)}, within 1-{tokens}"
        raise user_error(ValueError(f"tokens are {text!r:.40}; {allowed}, of {MAX_ATTENTION_TOKENS} tokens at most."))
    return first - 1, last


def span(name: str, first: int, last: int, most: int) -> range:
    """The whole numbers from `first` to `last`, both in 0 to `most`. Raises gr.Error."""
    if not (first in range(most + 1) and last in range(int(first), most + 1)):
        message = f"{name} are {first} to {last}; they must be whole numbers from 0 to {most}, the first no larger."
        raise user_error(ValueError(message))
    return range(int(first), int(last) + 1)


def draw(trace, config, tokens="", layer=0, head=0, small=SMALL[0], layers=(0, 0), heads=(0, 0), token=None):
    """The values of the tab's outputs (note, strip, large map, small maps, average, selected token) for a Trace."""
    last_layer, last_head = config.num_hidden_layers - 1, config.num_attention_heads - 1
    (layer,), (head,) = span("layers", layer, layer, last_layer), span("heads", head, head, last_head)
    layers, heads = span("layers", *layers, last_layer), span("heads", *heads, last_head)
    first, last = window(tokens, len(trace.ids))
    token = last - 1 if token not in range(first, last) else token

    def seen(layer):
        return trace.attention(layer, first, last)[:, :, first:].cpu()

    here = seen(layer)
    if small == SMALL[0]:
        maps, titles = here, [f"head {number}" for number in range(last_head + 1)]
    else:
        maps = torch.stack([seen(number)[head] for number in range(last_layer + 1)])
        titles = [f"layer {number}" for number in range(last_layer + 1)]
    average = torch.stack([seen(number)[heads.start : heads.stop] for number in layers]).mean((0, 1, 2))
    names = trace.tokens[first:last]
    note = f"{len(trace.ids):,} tokens"
    if len(names) < len(trace.ids):
        note += (
            f" · drawn: {first + 1:,} to {last:,}; a range of at most {MAX_ATTENTION_TOKENS} can be set under “tokens”"
        )
    return [
        note,
        attended_lines(trace.tokens, trace.attention(layer, first, last)[head, token - first], token),
        attention_map(names, here[head], f"layer {layer}, head {head}", first),
        attention_small(names, maps, titles, first),
        attention_received(names, average, first),
        token,
    ]


def build(model, tokenizer, text: str, first, checkpoint: gr.State) -> TextView:
    """Draws the tab with Trace `first` of `text` in it."""
    config = model.config
    layers, heads = config.num_hidden_layers - 1, config.num_attention_heads - 1
    start = layers // 2
    drawn = draw(first, config, layer=start, layers=(0, layers), heads=(0, heads))
    gr.Markdown("Each token gathers from the tokens before it, in every head of every layer. From which ones?")
    box, button = subject_box(text)
    with gr.Row():
        layer = gr.Slider(0, layers, value=start, step=1, label="layer", min_width=200)
        head = gr.Slider(0, heads, value=0, step=1, label="head", min_width=200)
        tokens = gr.Textbox(
            "", label="tokens", placeholder=f"all, or a range of up to {MAX_ATTENTION_TOKENS}: 1-40", min_width=200
        )
    note = gr.Markdown(drawn[0])
    chosen = gr.State((text, drawn[-1]), time_to_live=3600)  # the text drawn and the token selected in it
    gr.Markdown(
        "### What one token looked at\nClick a token: the stronger another one's colour, the more this head took from it."
    )
    strip = token_strip(
        "attention-strip", "attention", "the text, coloured by what the selected token looked at", drawn[1]
    )
    gr.Markdown("### One head\nEach row is a token; its columns are the tokens it looked at.")
    large = figure(drawn[2], "attention", elem_classes="wide", elem_id="attention")
    gr.Markdown("### Many heads")
    small = gr.Radio(SMALL, value=SMALL[0], show_label=False, container=False)
    maps = figure(drawn[3], "attention-maps", elem_id="attention-maps")
    gr.Markdown(
        "### On average\nThe share of the attention that each token received: the mean over these layers, these heads, "
        "and all tokens drawn. (A text's first tokens are there for every later one to look at, its last ones are not.)"
    )
    with gr.Row():
        ranges = [
            gr.Slider(0, most, value=value, step=1, label=label, min_width=180)
            for label, most, value in (
                ("layers from", layers, 0),
                ("to", layers, layers),
                ("heads from", heads, 0),
                ("to", heads, heads),
            )
        ]
    average = figure(drawn[4], "attention-received", elem_classes="wide", elem_id="attention-received")

    def redraw(model, tokenizer, text, tokens, layer, head, small, layer_a, layer_b, head_a, head_b, chosen):
        trace = look(model, tokenizer, text)
        token = chosen[1] if chosen[0] == text else None
        ranges = (layer_a, layer_b), (head_a, head_b)
        *drawn, token = draw(trace, model.config, tokens, layer, head, small, *ranges, token)
        return [*drawn, (text, token)]

    def fit(model):
        layers, heads = model.config.num_hidden_layers - 1, model.config.num_attention_heads - 1
        sliders = ((layers, layers // 2), (heads, 0), (layers, 0), (layers, layers), (heads, 0), (heads, heads))
        one, two, *rest = (gr.update(maximum=most, value=value) for most, value in sliders)
        return [gr.update(value=""), one, two, gr.skip(), *rest]

    def select(checkpoint, chosen, tokens, layer, head, shown, event: gr.EventData):
        """Colours the text by what the clicked token looked at."""
        model, tokenizer = model_registry.get_model(checkpoint)
        text, index = chosen[0], event_int(event, "index")
        trace = look(model, tokenizer, text)
        if index not in range(len(trace.ids)):
            return gr.skip(), gr.skip()
        (layer,) = span("layers", layer, layer, model.config.num_hidden_layers - 1)
        (head,) = span("heads", head, head, model.config.num_attention_heads - 1)
        first, last = window(tokens, len(trace.ids))
        if index not in range(first, last):
            first, last = index, index + 1
        weights = trace.attention(layer, first, last)[head, index - first]
        return (shown or "") + attended_line(weights, index), (text, index)

    strip.select(
        select,
        [checkpoint, chosen, tokens, layer, head, strip],
        [strip, chosen],
        show_progress="hidden",
        trigger_mode="multiple",
        api_visibility="private",
        **MODEL_QUEUE,
    )
    choices = [tokens, layer, head, small, *ranges, chosen]
    return TextView(box, button, redraw, [note, strip, large, maps, average, chosen], choices, fit)
