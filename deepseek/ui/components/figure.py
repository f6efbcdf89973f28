"""A figure of the page, and below it a small button that downloads its data."""

import json
from pathlib import Path

import gradio as gr

from deepseek.ui.generation import UNQUEUED

SCRIPT = (Path(__file__).parents[3] / "assets" / "figure.js").read_text("utf-8")


def figure(value, name: str, **options) -> gr.Plot:
    """A gr.Plot of `value`; its button downloads what is drawn now as `name`.csv. `options` are those of gr.Plot.

    The browser writes the file from the figure itself, so it holds for whatever figure a handler puts there later; a
    plot that shows nothing shows no button (the style sheet sees to that).
    """
    with gr.Column(elem_classes="figure"):
        plot = gr.Plot(value, show_label=False, **options)
        button = gr.Button("CSV", size="sm", elem_classes="csv", elem_id=f"csv-{name}")
    button.click(None, plot, None, js=f"plot => ({SCRIPT})(plot, {json.dumps(name)})", **UNQUEUED)
    return plot
