"""The selected token: what the sampler did, the other candidates, and the branch that takes one of them."""

from pathlib import Path

import gradio as gr

from deepseek.inference.grammar import CONSTRAINTS
from deepseek.ui.components.token_strip import script_json
from deepseek.ui.components.view import figure
from deepseek.ui.plots.routing import normalized
from deepseek.ui.plots.sampling import funnel
from deepseek.ui.plots.style import show_invisible

ASSETS = Path(__file__).parents[3] / "assets"


def script_table(script: str, css_class: str, label: str, headers: list[str], value: str, elem_id: str) -> gr.HTML:
    """A table whose rows a script in assets/ makes from `value`."""
    names = "".join(f'<th scope="col">{name}</th>' for name in headers)
    table = f'<table aria-label="{label}"><thead><tr>{names}</tr></thead><tbody></tbody></table>'
    template = f'<div class="{css_class}">{table}</div>'
    code = (ASSETS / script).read_text("utf-8")
    return gr.HTML(html_template=template, js_on_load=code, value=value, elem_id=elem_id)


def heading(generation, index: int) -> str:
    """Markdown about the selected token. The token itself stands in the strip and the table."""
    token = generation.tokens[index]
    text = (
        f"### Token {index + 1}: what the sampler did\n"
        f"{token.probability:.1%} under the model (rank {token.rank}), {token.sampler_probability:.1%} after the sampler"
        f" · entropy {token.entropy:.2f} nats"
    )
    if generation.params.dynamic_temperature:
        text += f" · dynamic temperature {token.temperature:.2f}"
        if token.temperature_entropy is not None:
            candidates = next(stage.num_candidates for stage in token.stages if stage.name == "temperature")
            text += f", from {token.temperature_entropy:.2f} nats over {candidates:,} candidates"
    if index in generation.forced_tokens:
        text += " · forced by you"
    elif token.stages:
        text += f" · decided by {token.decided_by}"
    if token.experts:
        layers = []
        for layer, chosen in sorted(token.experts.items()):
            experts, weights = zip(*chosen)
            percents = (f"{expert} ({weight:.0%})" for expert, weight in zip(experts, normalized(weights)))
            layers.append(f"layer {layer}: {', '.join(percents)}")
        text += "\n\nRouted to experts: " + " · ".join(layers)
    dry = next((stage for stage in token.stages if stage.name == "DRY" and stage.details.get("match")), None)
    if dry:
        length = int(dry.details["match"])
        text += f"\n\nThe {length} tokens before it stood in the text once before; DRY makes what followed them less likely."
    grammar = next((stage for stage in token.stages if stage.name == "grammar" and stage.active), None)
    if grammar:
        constraint = next(name for name in CONSTRAINTS if getattr(generation.params, name))
        text += f"\n\nThe {constraint.replace('_', ' ')} allows {grammar.num_candidates:,} tokens here"
        text += f"; the others had {grammar.moved:.1%} of the probability."
    return text + "\n\nSamplers in use: " + " → ".join(["model", *(s.name for s in token.stages if s.active)])


def rows(generation) -> str:
    """The value of the text's table: one row per token."""
    table = []
    for position, token in enumerate(generation.tokens, 1):
        layers = sorted(token.experts.items())
        experts = " ".join(f"{layer}:" + "+".join(str(expert) for expert, _ in chosen) for layer, chosen in layers)
        numbers = [f"{token.probability:.1%}", token.rank, f"{token.entropy:.2f}", f"{token.temperature:.2f}"]
        table.append([position, show_invisible(token.text), *numbers, experts])
    return script_json(table)


def candidates(token, index: int) -> str:
    """The value of the table of the candidates of `token`, the one at `index`."""
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
    return script_json({"index": index, "rows": rows})


def show(generation, index: int):
    """(heading, funnel, candidates) of the token at `index`, or of the last one if there are fewer."""
    index = min(index, len(generation.tokens) - 1)
    token = generation.tokens[index]
    return heading(generation, index), funnel(token, generation.params), candidates(token, index)


def text_table(generation) -> gr.HTML:
    """Draws the text as a plain table, for screen readers and for copying."""
    headers = ["position", "token", "probability", "rank", "entropy", "temperature", "layer:experts"]
    label = "the text, one row per token"
    return script_table("table.js", "candidates long", label, headers, rows(generation), "text-table")


def build(generation):
    """Draws the panel for the first token of `generation`; returns its (heading, funnel, candidates) components."""
    text, plot, value = show(generation, 0)
    head = gr.Markdown(text, elem_id="token-heading")
    plot = figure(plot, "funnel", elem_classes="wide")
    with gr.Accordion("candidates: click one to continue from here with it", open=False):
        label, headers = "candidates of the selected token", ["token", "model", "sampler", "removed by"]
        return head, plot, script_table("candidates.js", "candidates", label, headers, value, "candidates")
