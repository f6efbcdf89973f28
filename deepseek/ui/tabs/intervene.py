"""The Intervene tab: an expert switched off or forced, what the text becomes, and which experts a text needs."""

import time

import gradio as gr

from deepseek.interpret.interventions import Intervention, ablation_effects
from deepseek.interpret.trace import routers
from deepseek.model.config import num_experts
from deepseek.ui.components import sampler_controls
from deepseek.ui.components.figure import figure
from deepseek.ui.components.token_strip import token_strip
from deepseek.ui.errors import user_error
from deepseek.ui.generation import (
    DEADLINE_S,
    GENERATION_QUEUE,
    MODEL_QUEUE,
    UNQUEUED,
    first_difference,
    generate,
    interleave,
)
from deepseek.ui.plots.routing import ablation_bars
from deepseek.ui.server import model_registry

DENSE = "This model is dense: it has no experts to switch off."
EVERY = -1  # the choice of all layers; a dropdown takes no None
HELP = """**Off**: the expert does not run; for each token that had chosen it, the router's next best takes its place.
**Force**: it runs for every token, in the place of the weakest chosen one. The weights follow the router's scores and add up
to what they did before. Nobody else's text is touched: the change holds for this text alone."""


def choices(model) -> tuple[dict, dict]:
    """(of the expert's dropdown, of a layer's dropdown): choices and value."""
    router = routers(model)
    experts = num_experts(model.config) if router else 0
    layers = [("every layer", EVERY), *((f"layer {layer}", layer) for layer in sorted(router))]
    expert = dict(choices=[(f"expert {e}", e) for e in range(experts)], value=0 if experts else None)
    return expert, dict(choices=layers, value=EVERY)


def beside(model, tokenizer, prompt, params, change: Intervention):
    """`in_turn` of the untouched text and the changed one."""
    plain = generate(model, tokenizer, prompt, params)
    return interleave([plain, generate(model, tokenizer, prompt, params, interventions=[change])])


def verdict(plain, changed) -> str:
    """One line on where two Generations part."""
    place = first_difference(plain, changed)
    if place is None:
        return f"The same text, all {len(plain.tokens)} tokens of it."
    same = sum(one.id == other.id for one, other in zip(plain.tokens, changed.tokens))
    return f"They part at token {place + 1}; {same} of {len(plain.tokens)} tokens are the same in the same place."


def measured(model, tokenizer, text, layer: int):
    """Yields (figure, note) of the loss with each expert off in turn, layer by layer or at one. Raises gr.Error."""
    if not routers(model):
        yield None, DENSE
        return
    for rows in losses(model, tokenizer, text, sorted(routers(model)) if layer == EVERY else [layer]):
        ranked = sorted(((change, here, e) for here, row in rows.items() for e, change in enumerate(row)), reverse=True)
        most = ", ".join(f"expert {e} of layer {here} ({change:+.3f})" for change, here, e in ranked[:3])
        yield ablation_bars(list(rows.values()), list(rows)), f"Needed most, in nats a token: {most}."


def losses(model, tokenizer, text, wanted: list[int]):
    """Yields {layer: change in loss with each of its experts off}, a layer more each time, within DEADLINE seconds.

    Raises gr.Error.
    """
    rows, began = {}, time.monotonic()
    try:
        if not isinstance(text, str):
            raise ValueError(f"text is {text!r:.60}; it must be text.")
        if not set(wanted) <= set(routers(model)):
            raise ValueError(f"layer is {wanted[0]!r:.20}; it must be one that has experts.")
        for here, _, change in ablation_effects(model, tokenizer, text, wanted):
            row = rows.setdefault(here, [])
            row.append(change)
            if len(row) == len(routers(model)[here].weight):
                yield rows
            if time.monotonic() - began > DEADLINE_S:
                raise ValueError(f"measuring took over {DEADLINE_S} seconds; choose one layer or a shorter text.")
    except ValueError as error:
        raise user_error(error) from error


def build(model, prompt: str, checkpoint: gr.State, tab: gr.Tab) -> None:
    """Draws the tab; both panels are filled when it is first opened, and again for another checkpoint."""
    expert_choices, layer_choices = choices(model)
    gr.Markdown("Switch an expert off, or make every token use it. What does the model write then, from the same seed?")
    box = gr.Textbox(prompt, label="prompt", lines=2, max_lines=6)
    with gr.Row():
        action = gr.Radio([("switch off", "off"), ("force", "force")], value="off", label="what to do", min_width=200)
        expert = gr.Dropdown(**expert_choices, label="expert", min_width=120)
        layer = gr.Dropdown(**layer_choices, label="at", min_width=120)
        seed = gr.Number(7, label="seed of both", min_width=120)
    with gr.Row():
        go = gr.Button("Write both", variant="primary", min_width=120)
        stop = gr.Button("Stop", min_width=120)
    strips = []
    with gr.Row():
        for name in ("untouched", "changed"):
            with gr.Column(min_width=320):
                gr.Markdown(f"### {name.capitalize()}")
                help = f"text {name}, token by token; the bar marks the first token that differs"
                strips.append(token_strip(f"strip-{name}", "probability", help, ""))
    note = gr.Markdown(elem_id="intervene-note")
    with gr.Accordion("what off and force mean", open=False):
        gr.Markdown(HELP)
    with gr.Accordion("settings of the sampler", open=False):
        preset, settings = sampler_controls.sampler_controls()
        settings["max_new_tokens"].value = 64
        sampler_controls.apply_preset(preset, settings)
    gr.Markdown(
        "### Which expert a text needs\nThe loss on this text with one expert off, less the loss with none off. "
        "Above 0: the text is harder without it."
    )
    text = gr.Textbox(prompt + " there was a little fox. She wanted to play.", label="text", lines=2, max_lines=8)
    where = gr.Dropdown(**layer_choices, label="experts of")
    with gr.Row():
        measure = gr.Button("Measure", variant="primary", min_width=120)
        halt = gr.Button("Stop measuring", min_width=120)
    found = gr.Markdown(elem_id="needed-note")
    plot = figure(None, "loss-change", elem_classes="wide", elem_id="loss-change")
    drawn = gr.State("", time_to_live=3600)

    def write(checkpoint, prompt, action, expert, layer, seed, *values):
        model, tokenizer = model_registry.get_model(checkpoint)
        params = sampler_controls.to_params(settings, values, seed, locked=True)
        if not routers(model):
            yield "", "", DENSE
            return
        change = Intervention(expert, action, None if layer == EVERY else layer)
        for plain, changed in beside(model, tokenizer, prompt, params, change):
            yield plain.strip, changed.strip, ""
        yield plain.strip, changed.strip, verdict(plain, changed)

    def needed(checkpoint, text, layer):
        yield from measured(*model_registry.get_model(checkpoint), text, layer)

    inputs, outputs = [checkpoint, box, action, expert, layer, seed, *settings.values()], [*strips, note]
    options = dict(api_visibility="private", show_progress="hidden", **GENERATION_QUEUE)
    events = [go.click(write, inputs, outputs, **options), box.submit(write, inputs, outputs, **options)]
    loss_inputs, loss_outputs = [checkpoint, text, where], [plot, found]
    measuring = measure.click(needed, loss_inputs, loss_outputs, api_visibility="private", **MODEL_QUEUE)

    def write_when_new(drawn, checkpoint, *values):
        if drawn == checkpoint:
            yield [gr.skip() for _ in outputs]
        else:
            yield from write(checkpoint, *values)

    def needed_when_new(drawn, checkpoint, *values):
        if drawn == checkpoint:
            yield gr.skip(), gr.skip()
        else:
            yield from needed(checkpoint, *values)

    first = tab.select(write_when_new, [drawn, *inputs], outputs, **options)
    second = first.then(needed_when_new, [drawn, *loss_inputs], loss_outputs, api_visibility="private", **MODEL_QUEUE)
    second.then(lambda checkpoint: checkpoint, checkpoint, drawn, **UNQUEUED)
    stop.click(None, cancels=[*events, first], **UNQUEUED)
    halt.click(None, cancels=[measuring, second], **UNQUEUED)

    def fit(checkpoint):
        expert, layer = (gr.update(**each) for each in choices(model_registry.get_model(checkpoint)[0]))
        return expert, layer, layer

    checkpoint.change(fit, checkpoint, [expert, layer, where], **UNQUEUED)
