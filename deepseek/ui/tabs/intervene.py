"""The Intervene tab: a sample with one expert ablated or forced, and the effect of each ablation on the loss of a text."""

import gradio as gr

from deepseek.interpret.interventions import Intervention
from deepseek.interpret.trace import routers
from deepseek.model.config import num_experts
from deepseek.ui.components import sampler_controls
from deepseek.ui.components.token_strip import token_strip
from deepseek.ui.components.traces import ablate_layers
from deepseek.ui.components.view import connect_view, figure
from deepseek.ui.generation import GENERATION_QUEUE, UNQUEUED, Generation, first_difference, generate, interleave
from deepseek.ui.plots.routing import ablation_bars

DENSE = "This model is dense: it has no experts to ablate."
EVERY_LAYER = -1  # a dropdown takes no None
HELP = """**Ablate**: the expert does not run; each token that had chosen it gets the router's next best expert.
**Force**: every token runs it, in place of its lowest-ranked chosen expert. The weights follow the router's scores and keep
their sum. The change holds for this sample alone; other users' samples are untouched."""


def expert_choices(model) -> dict:
    """Choices and value of the dropdown of experts."""
    experts = range(num_experts(model.config) if routers(model) else 0)
    return dict(choices=[(f"expert {expert}", expert) for expert in experts], value=0 if experts else None)


def layer_choices(model) -> dict:
    """Choices and value of a dropdown of MoE layers."""
    layers = [("every layer", EVERY_LAYER), *((f"layer {layer}", layer) for layer in sorted(routers(model)))]
    return dict(choices=layers, value=EVERY_LAYER)


def side_by_side(model, tokenizer, prompt, params, intervention: Intervention):
    """`interleave` of the original sample and the one under `intervention`. Raises gr.Error."""
    original = generate(model, tokenizer, prompt, params)
    return interleave([original, generate(model, tokenizer, prompt, params, interventions=[intervention])])


def verdict(original: Generation, changed: Generation) -> str:
    """One line on the first difference of two samples."""
    position = first_difference(original, changed)
    if position is None:
        return f"The samples are identical, all {len(original.tokens)} tokens."
    same = sum(a.id == b.id for a, b in zip(original.tokens, changed.tokens))
    return f"The samples diverge at token {position + 1}; {same} of {len(original.tokens)} tokens are equal at the same position."


def measure_ablations(model, tokenizer, text, layer: int):
    """Yields (figure, note) of the change in loss with each expert of one layer, or of every layer, ablated. Raises gr.Error."""
    if not routers(model):
        yield None, DENSE
        return
    layers = sorted(routers(model)) if layer == EVERY_LAYER else [layer]
    for rows in ablate_layers(model, tokenizer, text, layers):
        effects = [(effect, layer, expert) for layer, row in rows.items() for expert, effect in enumerate(row)]
        top = (
            f"expert {expert} of layer {layer} ({effect:+.3f})"
            for effect, layer, expert in sorted(effects, reverse=True)[:3]
        )
        yield ablation_bars(list(rows.values()), list(rows)), f"Largest effect, in nats per token: {', '.join(top)}."


def build(model, prompt: str, checkpoint: gr.State, tab: gr.Tab) -> None:
    """Draws the tab; both panels are computed when it is first opened, and again for another checkpoint."""
    gr.Markdown("Ablate an expert, or force every token to use it. What is generated then, from the same seed?")
    box = gr.Textbox(prompt, label="prompt", lines=2, max_lines=6)
    with gr.Row():
        action = gr.Radio([("ablate", "off"), ("force", "force")], value="off", label="intervention", min_width=200)
        expert = gr.Dropdown(**expert_choices(model), label="expert", min_width=120)
        layer = gr.Dropdown(**layer_choices(model), label="at", min_width=120)
        seed = gr.Number(7, label="seed of both", min_width=120)
    with gr.Row():
        generate_button = gr.Button("Generate both", variant="primary", min_width=120)
        stop = gr.Button("Stop", min_width=120)
    strips = []
    with gr.Row():
        for name in ("original", "changed"):
            with gr.Column(min_width=320):
                gr.Markdown(f"### {name.capitalize()}")
                help = f"{name} sample, token by token; the bar marks the first token that differs"
                strips.append(token_strip(f"strip-{name}", "probability", help, ""))
    note = gr.Markdown(elem_id="intervene-note")
    with gr.Accordion("what ablate and force do", open=False):
        gr.Markdown(HELP)
    with gr.Accordion("sampler settings", open=False):
        _, settings = sampler_controls.sampler_controls()
        settings["max_new_tokens"].value = 64
    gr.Markdown(
        "### Effect of each expert\nThe loss on this text with one expert ablated, less the loss with none ablated. "
        "Above 0: the text needs the expert."
    )
    text = gr.Textbox(prompt + " there was a little fox. She wanted to play.", label="text", lines=2, max_lines=8)
    where = gr.Dropdown(**layer_choices(model), label="experts of")
    with gr.Row():
        measure = gr.Button("Measure", variant="primary", min_width=120)
        stop_measuring = gr.Button("Stop measuring", min_width=120)
    ablation_note = gr.Markdown(elem_id="ablation-note")
    plot = figure(None, "loss-change", elem_classes="wide")

    def redraw_samples(model, tokenizer, prompt, action, expert, layer, seed, *values):
        params = sampler_controls.to_params(settings, values, seed, locked=True)
        if not routers(model):
            yield ["", "", DENSE]
            return
        intervention = Intervention(expert, action, None if layer == EVERY_LAYER else layer)
        for original, changed in side_by_side(model, tokenizer, prompt, params, intervention):
            yield [original.strip, changed.strip, ""]
        yield [original.strip, changed.strip, verdict(original, changed)]

    requested, opened = connect_view(
        redraw_samples,
        [box, action, expert, layer, seed, *settings.values()],
        [*strips, note],
        checkpoint,
        [generate_button.click, box.submit],
        [tab.select],
        fitted=[expert, layer],
        fit=lambda model: [expert_choices(model), layer_choices(model)],
        is_drawn=False,
        show_progress="hidden",
        **GENERATION_QUEUE,
    )
    effects = [text, where], [plot, ablation_note], checkpoint, [measure.click], [opened[0].then]
    fitting = dict(fitted=[where], fit=lambda model: [layer_choices(model)])
    measured, measured_after = connect_view(measure_ablations, *effects, is_drawn=False, **fitting)
    stop.click(None, cancels=[*requested, *opened], **UNQUEUED)
    stop_measuring.click(None, cancels=[*measured, *measured_after], **UNQUEUED)
