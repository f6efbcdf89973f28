"""The Layers tab: what each layer would say next, and what its attention keeps of the text."""

import gradio as gr

from deepseek.interpret.trace import context_length
from deepseek.ui.components.figure import figure
from deepseek.ui.components.text_view import TextView, look, subject_box
from deepseek.ui.plots.cache import cache_bytes, latent_norms
from deepseek.ui.plots.lens import lens_map


def draw_lens(trace):
    """(note, lens figure) of a Trace; no figure for a model whose final norm is not found."""
    try:
        lens = trace.lens()
    except ValueError as error:
        return str(error), None
    first = lens.first_match_layer
    last = len(lens.texts) - 1
    early = sum(row < last for row in first) / len(first)
    note = (
        f"{len(first)} tokens · for {early:.0%} of them some layer before the last already has the model's answer first "
        f"· on average it first leads at layer {sum(first) / len(first) - 1:.1f} of 0 to {last - 1}"
    )
    return note, lens_map(trace.tokens, lens)


def draw_cache(trace, context: int | None):
    """(note, bytes figure, norms figure or None) of a Trace on a model that reads `context` tokens."""
    cache = trace.cache()
    sizes = cache_bytes(cache, len(trace.ids), context)
    if cache.kept is None:
        note = f"{cache.bytes:,} bytes a token, as keys and values: this model has no latents to keep in their place."
        return note, sizes, None
    note = (
        f"{cache.bytes:,} bytes a token as latents; keys and values of the same heads would take "
        f"{cache.uncompressed:,}, {cache.uncompressed / cache.bytes:.1f} times as much."
    )
    return note, sizes, latent_norms(cache)


def draw(model, trace):
    """The values of the tab's outputs for a Trace."""
    return [*draw_lens(trace), *draw_cache(trace, context_length(model))]


def build(model, tokenizer, text: str, first, checkpoint: gr.State) -> TextView:
    """Draws the tab with Trace `first` of `text` in it."""
    gr.Markdown("Inside the model, layer by layer: what each would answer, and what the model keeps in memory.")
    box, button = subject_box(text)
    note, lens, kept, sizes, norms = draw(model, first)
    gr.Markdown(
        "### What each layer would say\nIf the model had to answer after each layer, what would it say comes next? "
        "(Logit lens: each layer's output through the final norm and the output matrix.)"
    )
    note = gr.Markdown(note)
    lens = figure(lens, "logit-lens", elem_classes="wide")
    gr.Markdown(
        "### What it keeps of the text\nTo go on, a model keeps something of every token it has read: its cache. "
        "Latent attention keeps one short vector, c_kv, and a rotary key in place of every head's keys and values."
    )
    kept = gr.Markdown(kept)
    with gr.Row():
        with gr.Column(min_width=320):
            gr.Markdown("#### Size of the cache\nIn KiB, for this text and for the longest that the model reads.")
            sizes = figure(sizes, "cache-bytes")
        with gr.Column(min_width=320, visible=norms is not None) as latents:
            gr.Markdown(
                "#### How large the latents are\nMean over the text; the bars reach from the smallest to the largest."
            )
            norms = figure(norms, "latent-norms")

    def redraw(model, tokenizer, text):
        *drawn, norms = draw(model, look(model, tokenizer, text))
        return [*drawn, norms, gr.update(visible=norms is not None)]

    return TextView(box, button, redraw, [note, lens, kept, sizes, norms, latents])
