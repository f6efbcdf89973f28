"""The box of interventions, one a line, and the controls that write its last line."""

import gradio as gr

from deepseek.interpret.importance import ranked_layers
from deepseek.interpret.interventions import ACTIONS, Intervention, parse_interventions
from deepseek.interpret.moe_layers import moe_layers
from deepseek.ui.errors import user_errors
from deepseek.ui.generation import QUICK_QUEUE

EVERY_LAYER = -1  # a dropdown takes no None
MAX_INTERVENTIONS = 500
NAMES = {"off": "ablate", "force": "force", "promote": "promote", "suppress": "suppress"}
# In the browser, so that whoever clicks at once gets what is shown. Writes a line in place of the last, or after it.
WRITE_LINE = f"""(text, action, expert, layer, strength) => {{
  if (expert == null) return text;
  const steers = action === 'promote' || action === 'suppress', amount = Math.round(strength * 100) / 100;
  const line = action + ' ' + expert + (layer === {EVERY_LAYER} ? '' : '@' + layer) + (steers && amount < 1 ? ' ' + amount : '');
  const lines = text.trim() ? text.split('\\n') : [];
  lines.splice(%s, lines.length, line);
  return lines.join('\\n') }}"""


def expert_choices(model) -> dict:
    """Choices and value of the dropdown of experts."""
    experts = range(max((layer.num_experts for layer in moe_layers(model).values()), default=0))
    return dict(choices=[(f"expert {expert}", expert) for expert in experts], value=0 if experts else None)


def layer_choices(model) -> dict:
    """Choices and value of a dropdown of the MoE layers in which experts can be ablated and steered."""
    layers = [("every layer", EVERY_LAYER), *((f"layer {layer}", layer) for layer in ranked_layers(model))]
    return dict(choices=layers, value=EVERY_LAYER)


def interventions_box(text: str, **options) -> gr.Textbox:
    """The box, with `text` in it; `options` are gradio's."""
    info = "one a line: off 3 · force 3@2, in layer 2 · promote 3@2 0.5 · suppress 3"
    return gr.Textbox(text, **dict(label="interventions", info=info, lines=1, max_lines=8) | options)


@user_errors()
def read_interventions(text: str) -> list[Intervention]:
    """The interventions in a box. Raises gr.Error."""
    interventions = parse_interventions(text or "")
    if len(interventions) > MAX_INTERVENTIONS:
        raise ValueError(f"interventions are {len(interventions)}; there must be at most {MAX_INTERVENTIONS}.")
    return interventions


def build(model, text: str) -> tuple[gr.Textbox, list[gr.Dropdown]]:
    """Draws the box and the controls that write its last line.

    Returns the box, and the dropdowns of `expert_choices` and `layer_choices`.
    """
    with gr.Row():
        choices = [(NAMES[action], action) for action in ACTIONS]
        action = gr.Radio(choices, value="off", label="intervention", min_width=320)
        expert = gr.Dropdown(**expert_choices(model), label="expert", min_width=120)
        layer = gr.Dropdown(**layer_choices(model), label="at", min_width=120)
        label = "strength of promote and suppress"
        strength = gr.Slider(0.05, 1, 1, step=0.05, label=label, min_width=200)
    box = interventions_box(text)
    another = gr.Button("Add another intervention", size="sm")
    controls = [action, expert, layer, strength]

    for control in controls:
        control.input(None, [box, *controls], box, js=WRITE_LINE % "-1", **QUICK_QUEUE)
    another.click(None, [box, *controls], box, js=WRITE_LINE % "lines.length", **QUICK_QUEUE)
    return box, [expert, layer]
