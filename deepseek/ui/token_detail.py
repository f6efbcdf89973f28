"""The selected token: what the sampler did, who else could have come, and the branch that takes another one."""

import json
from pathlib import Path

import gradio as gr

from deepseek.plots.sampling import funnel
from deepseek.plots.style import visible
from deepseek.ui.figure import figure

HEADERS = ["", "token", "probability", "rank", "entropy", "temperature", "layer:experts"]
SCRIPT = (Path(__file__).parents[2] / "assets" / "candidates.js").read_text()
TEMPLATE = """
    <div class="candidates"><table aria-label="candidates of the selected token">
      <thead><tr><th>token</th><th>model</th><th>sampler</th><th>removed by</th></tr></thead>
      <tbody></tbody></table></div>"""


def heading(generation, index: int) -> str:
    """One line about the selected token, in Markdown; the token itself stands in the strip and the table."""
    token = generation.tokens[index]
    seen = f"### Token {index + 1}: what the sampler did\n"
    seen += f"{token.probability:.1%} under the model (rank {token.rank}), {token.sampler_probability:.1%} after the sampler"
    seen += f" · entropy {token.entropy:.2f} nats"
    if generation.params.dynamic_temperature:
        seen += f" · dynamic temperature {token.temperature:.2f}"
    if index in generation.forced:
        seen += " · put here by you"
    if token.experts:
        places = (
            f"layer {layer}: " + ", ".join(f"{e} ({w:.0%})" for e, w in to)
            for layer, to in sorted(token.experts.items())
        )
        seen += "\n\nSent to experts " + " · ".join(places)
    return seen + "\n\nOrder in force: model → " + " → ".join(stage.name for stage in token.stages)


def rows(generation) -> list[list]:
    """The whole text as a plain table, a row a token."""
    return [
        [
            place,
            visible(token.text),
            f"{token.probability:.1%}",
            token.rank,
            f"{token.entropy:.2f}",
            f"{token.temperature:.2f}",
            " ".join(
                f"{layer}:" + "+".join(str(e) for e, _ in chosen) for layer, chosen in sorted(token.experts.items())
            ),
        ]
        for place, token in enumerate(generation.tokens, 1)
    ]


def table(token) -> str:
    """The value of the candidates' table."""
    rows = [
        {
            "id": candidate.id,
            "text": visible(candidate.text),
            "model": f"{candidate.probabilities[0]:.2%}",
            "sampler": f"{candidate.probabilities[-1]:.2%}" if candidate.probabilities[-1] else "",
            "removed_by": candidate.removed_by,
            "chosen": candidate.id == token.id,
        }
        for candidate in token.candidates
    ]
    return json.dumps({"rows": rows}).replace("<", "\\u003c")


def show(generation, index: int):
    """(heading, funnel, table) of one token of a generation, or of its last if it has fewer."""
    index = min(index, len(generation.tokens) - 1)
    token = generation.tokens[index]
    return heading(generation, index), funnel(token), table(token)


def build(generation):
    """Draws the panel for the first token of `generation`; returns its (heading, funnel, table)."""
    text, drawn, rows = show(generation, 0)
    head = gr.Markdown(text, elem_id="token-heading")
    funnel = figure(drawn, "funnel", elem_classes="wide", elem_id="funnel")
    with gr.Accordion("candidates: click one to go on from here with it instead", open=False):
        candidates = gr.HTML(html_template=TEMPLATE, js_on_load=SCRIPT, value=rows, elem_id="candidates")
    return head, funnel, candidates
