"""The Layers tab: what each layer would say next."""

import gradio as gr

from deepseek.plots.lens import lens_map
from deepseek.ui.controls import refusal
from deepseek.ui.subject import View, look, subject_box


def draw(trace):
    """(lens figure, note) of a Trace."""
    try:
        lens = trace.lens()
    except ValueError as error:
        raise refusal(error) from error
    first = lens.first_lead
    last = len(lens.texts) - 1
    early = sum(row < last for row in first) / len(first)
    note = (
        f"{len(first)} tokens · for {early:.0%} of them some layer before the last already has the model's answer first"
    )
    return lens_map(trace.tokens, lens), note


def build(model, tokenizer, text: str, first) -> View:
    """Draws the tab with Trace `first` of `text` in it."""
    gr.Markdown(
        "If the model had to answer after each layer, what would it say comes next? "
        "(Logit lens: each layer's output through the final norm and the output matrix.)"
    )
    box, button = subject_box(text)
    figure, note = draw(first)
    note = gr.Markdown(note)
    plot = gr.Plot(figure, show_label=False, elem_classes="wide")
    return View(box, button, lambda text: draw(look(model, tokenizer, text)), [plot, note])
