"""The selected token: what the sampler did, who else could have come, and the branch that takes another one."""

import json
from pathlib import Path

import gradio as gr

from deepseek.ui.components.figure import figure
from deepseek.ui.plots.routing import shares
from deepseek.ui.plots.sampling import funnel
from deepseek.ui.plots.style import show_invisible

HEADERS = ["place", "token", "probability", "rank", "entropy", "temperature", "layer:experts"]
ASSETS = Path(__file__).parents[3] / "assets"
CANDIDATE_HEADERS = ["token", "model", "sampler", "removed by"]


def template(kind: str, label: str, headers: list[str]) -> str:
    """A table without rows, which a script of the page's own fills."""
    names = "".join(f'<th scope="col">{name}</th>' for name in headers)
    return f"""
        <div class="{kind}"><table aria-label="{label}">
          <thead><tr>{names}</tr></thead>
          <tbody></tbody></table></div>"""


def heading(generation, index: int) -> str:
    """One line about the selected token, in Markdown; the token itself stands in the strip and the table."""
    token = generation.tokens[index]
    seen = f"### Token {index + 1}: what the sampler did\n"
    seen += f"{token.probability:.1%} under the model (rank {token.rank}), {token.sampler_probability:.1%} after the sampler"
    seen += f" · entropy {token.entropy:.2f} nats"
    if generation.params.dynamic_temperature:
        seen += f" · dynamic temperature {token.temperature:.2f}"
        if token.temperature_entropy is not None:
            left = next(stage.num_candidates for stage in token.stages if stage.name == "temperature")
            seen += f", from {token.temperature_entropy:.2f} nats over {left:,} candidates"
    if index in generation.forced:
        seen += " · put here by you"
    if token.experts:
        places = []
        for layer, chosen in sorted(token.experts.items()):
            experts, weights = zip(*chosen)
            parts = zip(experts, shares(weights))
            places.append(f"layer {layer}: " + ", ".join(f"{expert} ({share:.0%})" for expert, share in parts))
        seen += "\n\nSent to experts " + " · ".join(places)
    return seen + "\n\nOrder in force: model → " + " → ".join(stage.name for stage in token.stages)


def rows(generation) -> str:
    """The value of the whole text's table, a row a token."""
    rows = [
        [
            place,
            show_invisible(token.text),
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
    return _json(rows)


def table(token) -> str:
    """The value of the candidates' table."""
    rows = [
        {
            "id": candidate.id,
            "text": show_invisible(candidate.text),
            "model": f"{candidate.probabilities[0]:.2%}",
            "sampler": f"{candidate.probabilities[-1]:.2%}" if candidate.probabilities[-1] else "",
            "removed_by": candidate.removed_by,
            "chosen": candidate.id == token.id,
        }
        for candidate in token.candidates
    ]
    return _json({"rows": rows})


def _json(value) -> str:
    return json.dumps(value).replace("<", "\\u003c")  # see strip.py


def show(generation, index: int):
    """(heading, funnel, table) of one token of a generation, or of its last if it has fewer."""
    index = min(index, len(generation.tokens) - 1)
    token = generation.tokens[index]
    return heading(generation, index), funnel(token, generation.params), table(token)


def script(name: str) -> str:
    """A script of the page's own that fills a table."""
    return (ASSETS / f"{name}.js").read_text("utf-8")


def text_table(generation) -> gr.HTML:
    """Draws the whole text as a plain table, for readers of screens and for copying."""
    empty = template("candidates long", "the text, a row a token", HEADERS)
    return gr.HTML(html_template=empty, js_on_load=script("table"), value=rows(generation), elem_id="text-table")


def build(generation):
    """Draws the panel for the first token of `generation`; returns its (heading, funnel, table)."""
    text, drawn, rows = show(generation, 0)
    head = gr.Markdown(text, elem_id="token-heading")
    funnel = figure(drawn, "funnel", elem_classes="wide", elem_id="funnel")
    with gr.Accordion("candidates: click one to go on from here with it instead", open=False):
        empty = template("candidates", "candidates of the selected token", CANDIDATE_HEADERS)
        candidates = gr.HTML(html_template=empty, js_on_load=script("candidates"), value=rows, elem_id="candidates")
    return head, funnel, candidates
