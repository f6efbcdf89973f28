"""Two samples of one prompt and seed side by side: the original, and the one under interventions."""

import gradio as gr

from deepseek.interpret.interventions import Intervention
from deepseek.ui.components.token_strip import token_strip
from deepseek.ui.generation import Generation, first_difference, generate, interleave


def side_by_side(model, tokenizer, prompt, params, interventions: list[Intervention], **options):
    """`interleave` of the original sample and the one under interventions, with `options` of `generate`. Raises gr.Error."""
    sides = ([], interventions)
    return interleave([generate(model, tokenizer, prompt, params, interventions=side, **options) for side in sides])


def verdict(original: Generation, changed: Generation) -> str:
    """One line on the first difference of two samples."""
    position = first_difference(original, changed)
    if position is None:
        return f"The samples are identical, all {len(original.tokens)} tokens."
    same = sum(a.id == b.id for a, b in zip(original.tokens, changed.tokens))
    return f"The samples diverge at token {position + 1}; {same} of {len(original.tokens)} tokens are equal at the same position."


def two_strips(name: str) -> list[gr.HTML]:
    """Draws the strips of the original and the changed sample, side by side; their ids begin with `name`."""
    strips = []
    with gr.Row():
        for side in ("original", "changed"):
            with gr.Column(min_width=320):
                gr.Markdown(f"### {side.capitalize()}")
                help = f"{side} sample, token by token; the bar marks the first token that differs"
                strips.append(token_strip(f"{name}-{side}", "probability", help, ""))
    return strips
