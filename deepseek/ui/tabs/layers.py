"""The Layers tab: the logit lens, and the KV cache of the text."""

from statistics import fmean

import gradio as gr

from deepseek.interpret.trace import LogitLens, Trace, context_length
from deepseek.ui.components.token_detail import script_table
from deepseek.ui.components.token_strip import event_int, script_json, token_strip, traced_lines
from deepseek.ui.components.traces import as_sampled, trace_text
from deepseek.ui.components.view import connect_view, figure, sample_watch, text_box
from deepseek.ui.generation import QUICK_QUEUE
from deepseek.ui.plots.layers import cache_bytes, latent_norms, lens_map
from deepseek.ui.plots.style import show_invisible


def lens_rows(lens: LogitLens, token: int) -> str:
    """The value of the table of one token's column of the lens."""
    places = ["embedding", *(f"layer {layer}" for layer in range(len(lens.texts) - 1))]
    return script_json(
        [
            [place, show_invisible(texts[token]), f"{float(probabilities[token]):.1%}"]
            for place, texts, probabilities in zip(places, lens.texts, lens.probabilities)
        ]
    )


def draw(model, trace: Trace) -> list:
    """[note and figure of the logit lens, the lens, note, size and latent norms of the cache]; None for what the model lacks."""
    norms, cache, lens = None, trace.cache(), trace.lens()
    first_match, last = lens.first_match_layer, len(lens.texts) - 1
    early = fmean(row < last for row in first_match)
    lens_note = (
        f"{len(first_match)} tokens · for {early:.0%} of them a layer before the last already predicts the model's "
        f"token · on average the first to predict it is layer {fmean(first_match) - 1:.1f} of 0 to {last - 1}"
    )
    cache_note = f"{cache.bytes:,} bytes per token, as keys and values: this model has no latent attention."
    if cache.cached_norms is not None:
        cache_note = (
            f"{cache.bytes:,} bytes per token as latents; keys and values of the same heads would take "
            f"{cache.uncompressed:,}, {cache.uncompressed / cache.bytes:.1f} × as many."
        )
        norms = latent_norms(cache)
    sizes = cache_bytes(cache, len(trace.ids), context_length(model))
    return [lens_note, lens_map(trace.tokens, lens), lens, cache_note, sizes, norms]


def build(model, generation: gr.State, first: Trace, checkpoint: gr.State, tab: gr.Tab) -> tuple[gr.Textbox, gr.HTML]:
    """Draws the tab with Trace `first` of the user's `generation`; returns the box of the text and its `sample_watch`."""
    gr.Markdown("Layer by layer: what each layer would predict, and what the model caches.")
    (box, button), watch = text_box(generation.value.text), sample_watch()
    lens_note, lens_figure, lens, cache_note, sizes, norms = draw(model, first)
    gr.Markdown(
        "### Logit lens\nIf the model had to predict the next token after each layer, what would it say? "
        "(Each layer's output goes through the final norm and the output matrix.)"
    )
    lens_note = gr.Markdown(lens_note)
    lens_figure = figure(lens_figure, "logit-lens", elem_classes="wide")
    gr.Markdown("#### One token's column\nSelect a token: what each layer would predict after it.")
    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            strip = token_strip(
                "layers-strip", "probability", "the text; arrow keys move along it", traced_lines(first)
            )
        with gr.Column(scale=2, min_width=280):
            value = lens_rows(lens, len(first.ids) - 1)
            names = "the selected token's logit lens", ["after", "would predict", "probability"]
            column = script_table("table.js", "candidates", *names, value, "lens-column")
    lens = gr.State(lens, time_to_live=3600)
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

    def redraw(model, tokenizer, text, generation):
        trace = trace_text(model, tokenizer, as_sampled(text, generation, model))
        *drawn, norms = draw(model, trace)
        token = len(trace.ids) - 1
        return [*drawn, norms, gr.update(visible=norms is not None), traced_lines(trace), lens_rows(drawn[2], token)]

    def select(lens, event: gr.EventData):
        index = event_int(event, "index")
        return lens_rows(lens, index) if index in range(len(lens.texts[0])) else gr.skip()

    outputs = [lens_note, lens_figure, lens, cache_note, sizes, norms, latents, strip, column]
    events = [button.click, box.submit], [tab.select, watch.edit]
    view = connect_view(redraw, [box, generation], outputs, checkpoint, *events, num_watched=1)
    view.add(strip.select, select, [lens], column, **QUICK_QUEUE)
    return box, watch
