"""The Layers tab: the logit lens, and the KV cache of the text."""

from statistics import fmean

import gradio as gr

from deepseek.interpret.trace import Trace, context_length
from deepseek.ui.components.traces import trace_text
from deepseek.ui.components.view import connect_view, figure, text_box
from deepseek.ui.plots.layers import cache_bytes, latent_norms, lens_map


def draw(model, trace: Trace) -> list:
    """[note and figure of the logit lens, note, size and latent norms of the cache]; None for what the model lacks."""
    lens_figure, norms, cache = None, None, trace.cache()
    try:
        lens = trace.lens()
    except ValueError as error:  # its final norm is not found
        lens_note = str(error)
    else:
        first_match, last = lens.first_match_layer, len(lens.texts) - 1
        early = fmean(row < last for row in first_match)
        lens_note = (
            f"{len(first_match)} tokens · for {early:.0%} of them a layer before the last already predicts the model's "
            f"token · on average the first to predict it is layer {fmean(first_match) - 1:.1f} of 0 to {last - 1}"
        )
        lens_figure = lens_map(trace.tokens, lens)
    cache_note = f"{cache.bytes:,} bytes per token, as keys and values: this model has no latent attention."
    if cache.cached_norms is not None:
        cache_note = (
            f"{cache.bytes:,} bytes per token as latents; keys and values of the same heads would take "
            f"{cache.uncompressed:,}, {cache.uncompressed / cache.bytes:.1f} × as many."
        )
        norms = latent_norms(cache)
    return [lens_note, lens_figure, cache_note, cache_bytes(cache, len(trace.ids), context_length(model)), norms]


def build(model, text: str, first: Trace, checkpoint: gr.State, tab: gr.Tab) -> gr.Textbox:
    """Draws the tab with Trace `first` of `text`; returns the box of the text."""
    gr.Markdown("Layer by layer: what each layer would predict, and what the model caches.")
    box, button = text_box(text)
    lens_note, lens, cache_note, sizes, norms = draw(model, first)
    gr.Markdown(
        "### Logit lens\nIf the model had to predict the next token after each layer, what would it say? "
        "(Each layer's output goes through the final norm and the output matrix.)"
    )
    lens_note = gr.Markdown(lens_note)
    lens = figure(lens, "logit-lens", elem_classes="wide")
    gr.Markdown(
        "### KV cache\nTo continue a text, a model keeps something of every token it has processed: the KV cache. "
        "Latent attention caches one short vector, c_kv, and a rotary key in place of every head's keys and values."
    )
    cache_note = gr.Markdown(cache_note)
    with gr.Row():
        with gr.Column(min_width=320):
            gr.Markdown("#### Size of the cache\nIn KiB, for this text and for the model's full context.")
            sizes = figure(sizes, "cache-bytes")
        with gr.Column(min_width=320, visible=norms is not None) as latents:
            gr.Markdown("#### Norms of the latents\nMean over the text, with bars from the minimum to the maximum.")
            norms = figure(norms, "latent-norms")

    def redraw(model, tokenizer, text):
        *drawn, norms = draw(model, trace_text(model, tokenizer, text))
        return [*drawn, norms, gr.update(visible=norms is not None)]

    outputs = [lens_note, lens, cache_note, sizes, norms, latents]
    connect_view(redraw, [box], outputs, checkpoint, [button.click, box.submit], [tab.select], num_watched=1)
    return box
