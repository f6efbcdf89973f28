"""The control of the samplers' order, and lines that say what is in force and what conflicts."""

import html
import json
from pathlib import Path

import gradio as gr

from deepseek.inference.sampler_order import SAMPLER_ORDERS, conflicts, parse_order
from deepseek.inference.sampling import SAMPLERS, SamplingParams, is_active

SCRIPT = (Path(__file__).parents[3] / "assets" / "order.js").read_text("utf-8")
HINT = "Drag a sampler, or move it with Shift and the arrow keys. Those in bold are in use."


def order_control(params: SamplingParams) -> gr.HTML:
    """A list of all samplers to drag into any order, with buttons for the named ones. Its value is `SamplingParams.order`."""
    named = html.escape(json.dumps(SAMPLER_ORDERS))
    buttons = "".join(f'<button data-name="{name}" aria-pressed="false">{name}</button>' for name in SAMPLER_ORDERS)
    template = f"""
        <div class="order" data-named="{named}">
          <div class="bar" role="group" aria-label="named orders">{buttons}</div><p>{HINT}</p>
          <ol class="stages" role="listbox" aria-label="order of the samplers; Shift with the arrow keys moves one"></ol>
        </div>"""
    active = active_samplers(params)
    return gr.HTML(html_template=template, js_on_load=SCRIPT, value=params.order, active=active)


def active_samplers(params: SamplingParams) -> list[str]:
    """The samplers that the settings have run, in their order."""
    return [name for name in ("grammar", *parse_order(params.order)) if is_active(name, params)]


def in_force(params: SamplingParams) -> str:
    """The samplers in use, in order, and a line for each conflict among the settings."""
    enabled = {name for name in SAMPLERS if SAMPLERS[name].active(params)}
    greedy = params.temperature == 0 and not params.dynamic_temperature
    notes = conflicts(parse_order(params.order), enabled, greedy)
    return "\n".join([" → ".join(["model", *active_samplers(params)]), *(f"⚠ {note}" for note in notes)])
