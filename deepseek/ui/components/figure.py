"""A figure of the page with a button that downloads its data."""

import json
from pathlib import Path

import gradio as gr

from deepseek.ui.generation import UNQUEUED

SCRIPT = (Path(__file__).parents[3] / "assets" / "figure.js").read_text("utf-8")


def figure(value, name: str, **options) -> gr.Plot:
    """A gr.Plot of `value`, with the id `name` and a button that downloads its data as `name`.csv.

    `options` are those of gr.Plot. The browser writes the file from the figure it shows. The style sheet hides the button of
    an empty plot.
    """
    with gr.Column(elem_classes="figure"):
        plot = gr.Plot(value, show_label=False, **{"elem_id": name, **options})
        button = gr.Button("CSV", size="sm", elem_classes="csv", elem_id=f"csv-{name}")
    button.click(None, plot, None, js=f"plot => ({SCRIPT})(plot, {json.dumps(name)})", **UNQUEUED)
    return plot
