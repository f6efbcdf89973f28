"""The Attention tab: where every head looked."""

import gradio as gr

from deepseek.plots.attention import attention_heads, attention_map
from deepseek.ui.subject import View, look, subject_box


def draw(trace, layer: int, head: int):
    """(one head large, all heads of the layer small) of a Trace."""
    weights = trace.attention(layer).cpu()
    return attention_map(trace.tokens, weights[head], f"layer {layer}, head {head}"), attention_heads(
        weights, trace.tokens
    )


def build(model, tokenizer, text: str, first) -> View:
    """Draws the tab with Trace `first` of `text` in it."""
    layers, heads = model.config.num_hidden_layers, model.config.num_attention_heads
    gr.Markdown("Each token gathers from the tokens before it, in every head of every layer. From which ones?")
    box, button = subject_box(text)
    start = (layers // 2, 0)
    large, small = draw(first, *start)
    with gr.Row():
        layer = gr.Slider(0, layers - 1, value=start[0], step=1, label="layer")
        head = gr.Slider(0, heads - 1, value=start[1], step=1, label="head")
    gr.Markdown("### One head\nEach row is a token; its columns are the tokens it looked at.")
    large = gr.Plot(large, show_label=False, elem_classes="wide")
    gr.Markdown(f"### All {heads} heads of the layer")
    small = gr.Plot(small, show_label=False)

    def redraw(text, layer, head):
        if not (layer in range(layers) and head in range(heads)):
            raise gr.Error(f"layer is {layer}, head {head}; they must be from 0 to {layers - 1} and {heads - 1}.")
        return draw(look(model, tokenizer, text), int(layer), int(head))

    return View(box, button, redraw, [large, small], [layer, head])
