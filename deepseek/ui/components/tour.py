"""A guided tour of six steps over the live page, by tour.js."""

from pathlib import Path

import gradio as gr

SCRIPT = (Path(__file__).parents[3] / "assets" / "tour.js").read_text("utf-8")
TEMPLATE = """
<div class="tour">
  <button>Take the tour</button>
  <div class="card" role="dialog" aria-label="guided tour" hidden>
    <span class="step"></span>
    <h2></h2>
    <div class="say" aria-live="polite"></div>
    <div class="buttons">
      <button class="leave">Leave</button><button class="back">Back</button><button class="next">Next</button>
    </div>
  </div>
</div>"""


def tour() -> gr.HTML:
    """The button that starts the tour."""
    return gr.HTML(html_template=TEMPLATE, js_on_load=SCRIPT, elem_id="tour", value="")
