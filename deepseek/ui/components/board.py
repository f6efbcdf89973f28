"""The live board: layers x experts, lit as each token of a strip is routed. Drawn by board.js from what the strip shows."""

import html
import json
from pathlib import Path

import gradio as gr

from deepseek.ui.plots.style import EXPERT_COLOURS

SCRIPT = (Path(__file__).parents[3] / "assets" / "board.js").read_text("utf-8")
HELP = "layers by experts; arrow keys move from expert to expert, Enter lists the tokens that one took"


def board(strip_id: str) -> gr.HTML:
    """The board of the token strip with this id, which hands its lines on within the page: the server sends nothing more."""
    colours = html.escape(json.dumps(EXPERT_COLOURS))
    template = f"""
        <div class="board" data-colours="{colours}" data-strip="{strip_id}">
          <div class="top"><span class="now"></span></div>
          <canvas tabindex="0" role="application" aria-label="{HELP}"></canvas>
          <div class="tip" aria-live="polite" hidden></div>
          <div class="info"></div>
        </div>"""
    return gr.HTML(html_template=template, js_on_load=SCRIPT, elem_id="board", value="")
