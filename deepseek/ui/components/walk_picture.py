"""The Walk's picture: an element that scripts in assets/ draw, and its data from a Trace."""

import html
import json
from pathlib import Path

import gradio as gr

from deepseek.inference.sampling import SAMPLERS
from deepseek.interpret.trace import Trace
from deepseek.ui.components.token_strip import script_json
from deepseek.ui.generation import Generation
from deepseek.ui.plots.style import EXPERT_COLOURS, show_invisible

ASSETS = Path(__file__).parents[3] / "assets"
DEFINITIONS = f"const definitions = {(ASSETS / 'definitions.json').read_text('utf-8')};\n"
SCRIPT = DEFINITIONS + "".join((ASSETS / name).read_text("utf-8") for name in ("walk_picture.js", "walk.js"))
# Hands the server's answer about a part of the picture to the picture.
HAND_OVER = """const hand = () => props.value && document.querySelector('#walk .walk')
  .dispatchEvent(new CustomEvent('answer', {detail: JSON.parse(props.value)}));
watch('value', hand);"""
NUM_CANDIDATES = 8  # drawn of each sampler stage
DIGITS = 7  # of a number: all that float32 has


def picture() -> gr.HTML:
    """The element, empty at first. Events: select {index}, row and what_if, see assets/walk.js."""
    colours = html.escape(json.dumps(EXPERT_COLOURS))
    template = f"""
        <div class="walk" data-colours="{colours}">
          <div class="bar">
            <button class="out" aria-label="smaller picture">−</button><button class="in" aria-label="larger picture">+</button>
            <button class="all">Open or close all layers</button>
          </div>
          <div class="text" role="listbox" tabindex="0" aria-label="the text; arrow keys step from token to token"></div>
          <div class="columns"><div class="stage"></div><div class="detail"></div></div>
          <div class="tip" hidden></div>
        </div>"""
    return gr.HTML(html_template=template, js_on_load=SCRIPT, elem_id="walk", value="", apply_default_css=False)


def answers() -> gr.HTML:
    """An element that shows nothing: what is written into it reaches the picture."""
    return gr.HTML(
        html_template="<div></div>", js_on_load=HAND_OVER, elem_id="walk-answers", value="", visible="hidden"
    )


def answer_value(ask: int, **values) -> str:
    """The value of `answers` for the picture's request number `ask`."""
    return script_json({"ask": ask, **shown(values)})


def picture_value(trace: Trace, position: int, generation: Generation | None) -> str:
    """The value of `picture` for the token at `position`, or the last one if the text is shorter.

    `generation` gives the sampler's stages where the text is its own.
    """
    position = min(position, len(trace.ids) - 1)
    return script_json(
        {
            "position": position,
            "ids": trace.ids,
            "tokens": [_readable(token) for token in trace.tokens],
            "width": trace.hidden_states[0].shape[-1],
            "walk": shown(trace.walk(position)),
            "sampler": sampler(trace, position, generation),
        }
    )


def _readable(token: str) -> str:
    """A token's text within a text: `show_invisible`, but a space before a word stays one."""
    return " " + show_invisible(token[1:]) if token.startswith(" ") and token != " " else show_invisible(token)


def sampler(trace: Trace, position: int, generation: Generation | None) -> dict | None:
    """How the token after `position` was sampled, None if it was not: at the text's end, in a prompt, in another's text."""
    if not generation or list(generation.ids) != trace.ids:
        return None
    index = position + 1 - len(generation.prompt_ids)
    if index not in range(len(generation.tokens)):
        return None
    token = generation.tokens[index]
    stages = [
        {
            "name": stage.name,
            "active": stage.active,
            "changed": stage.changed,
            "num_candidates": stage.num_candidates,
            "says": " ".join(SAMPLERS[stage.name].apply.__doc__.split()),
        }
        for stage in token.stages
    ]
    candidates = [
        {"id": each.id, "token": each.text, "probabilities": each.probabilities, "removed_by": each.removed_by}
        for each in token.candidates[:NUM_CANDIDATES]
    ]
    return shown(
        {"token": token.id, "probability": token.sampler_probability, "stages": stages, "candidates": candidates}
    )


def shown(value):
    """JSON's types as the picture shows them: tokens' texts with invisible characters as signs, numbers with DIGITS digits."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, list):
        return [shown(each) for each in value]
    if isinstance(value, dict):
        visible = {"token": show_invisible(value["token"])} if isinstance(value.get("token"), str) else {}
        return {key: shown(each) for key, each in value.items()} | visible
    return value
