"""Steer, in the Intervene tab: the experts that two lists of texts use most differently, promoted and suppressed."""

import gradio as gr

from deepseek.interpret import steering
from deepseek.interpret.importance import ranked_layers
from deepseek.interpret.moe_layers import why_no_experts
from deepseek.ui.components import chat, sampler_controls
from deepseek.ui.components.found_experts import Found, find_experts
from deepseek.ui.components.side_by_side import side_by_side, two_strips, verdict
from deepseek.ui.components.traces import EXAMPLE_TEXTS
from deepseek.ui.components.view import connect_view, figure
from deepseek.ui.errors import user_errors
from deepseek.ui.generation import GENERATION_QUEUE, QUICK_QUEUE
from deepseek.ui.plots import importance as plots

NAMES = "AB"
EXAMPLES = ("story", "encyclopedia")  # of traces.EXAMPLE_TEXTS
HELP = """**Finding experts**, as [SteerMoE](https://arxiv.org/abs/2509.09660) does: an expert's activation rate in a list is the
fraction of the list's tokens that are routed to it; the bars are its rate in A less its rate in B, with the standard error over
texts. p values come from permuting which text belongs to which list, and hold each expert against the largest difference of any
expert, so that a difference that counts is no accident of many experts. Every second text is held out.

**Steering**: toward A, experts that A uses more are promoted and those that B uses more are suppressed; toward B the reverse. At
strength 1 an expert's score passes the token's largest or smallest one.

**The effect** is measured on the held-out texts: the loss on each list with steering less the loss without, and how often the
steered experts run."""


def measure(model, tokenizer, found: Found, interventions) -> tuple:
    """(figure, note) of what interventions do to the held-out texts. Raises gr.Error."""
    effects, progress, total = {}, gr.Progress(), sum(map(len, found.held_out.values()))
    done = iter(range(1, total + 1))
    for name, texts in found.held_out.items():
        with user_errors():
            effects[f"list {name}"] = steering.measure_effect(
                model, tokenizer, texts, interventions, lambda: progress((next(done), total), unit="texts")
            )
    notes = (f"{name} {each.loss_change:+.3f} ± {each.loss_error:.3f}" for name, each in effects.items())
    return plots.steering_effect(
        effects
    ), f"Held-out loss with steering less without, nats per token: {', '.join(notes)}."


def build(prompt: str, chat_inputs, seed, settings: dict, playground_box: gr.Textbox, **connection) -> None:
    """Draws the sub-tab; chat, seed and `settings` are those of the sub-tab Generate, `connection` is for `connect_view`."""
    gr.Markdown(
        "Which experts tell two kinds of text apart, and what does the model write if you turn them up or down?"
    )
    texts, info = [EXAMPLE_TEXTS[name] for name in EXAMPLES], "texts, one a line; of one paragraph, its sentences"
    with gr.Row():
        boxes = [
            gr.Textbox(text, label=name, info=info, lines=4, max_lines=8, min_width=240)
            for name, text in zip(NAMES, texts)
        ]
    with gr.Row():
        label, info = "strength", "-1 is toward B, 1 toward A; 0 leaves the model as it is"
        strength = gr.Slider(-1, 1, 0.5, step=0.05, label=label, info=info, min_width=240)
        count = gr.Slider(1, 64, 6, step=1, label="experts", info="those that differ most", min_width=200)
    box = gr.Textbox(prompt, label="prompt", lines=1, max_lines=6)
    with gr.Row():
        button = gr.Button("Steer", variant="primary", min_width=120)
        stop = gr.Button("Stop", min_width=80)
        reset = gr.Button("Back to the examples", min_width=160)
    gr.Markdown("Seed, chat and sampler settings are those of Generate.")
    strips = two_strips("steer")
    note = gr.Markdown(elem_id="steer-note")
    gr.Markdown(
        "### Experts that A and B use differently\nActivation rate in A less that in B, with its standard error. Pale bars are "
        "no better than chance. 1@4 is expert 1 of layer 4."
    )
    summary = gr.Markdown(elem_id="steer-verdict")
    rates = figure(None, "rate-differences")
    gr.Markdown(
        "### Effect on held-out texts\nBelow 0: the list became easier to predict. Bars are standard errors over texts."
    )
    effect_note = gr.Markdown(elem_id="steer-effect-note")
    effect = figure(None, "steering-effect")
    interventions = gr.Textbox("", label="these interventions", interactive=False, buttons=["copy"], max_lines=8)
    use = gr.Button("Use in the Playground", size="sm")
    with gr.Accordion("what these numbers are", open=False):
        gr.Markdown(HELP)
    state = gr.State(None, time_to_live=3600)

    def redraw(turn, model, tokenizer, found, a, b, strength, count, prompt, is_chat, system, seed, *values):
        params = sampler_controls.to_params(settings, values, seed, locked=True)
        if not ranked_layers(model):
            yield ["", "", "", why_no_experts(model), None, "", None, "", None]
            return
        key = model.name_or_path, a, b
        if not found or found.key != key:
            found = find_experts(model, tokenizer, dict(zip(NAMES, (a, b))), key)
        with user_errors():
            changes = steering.steering(found.differences, count, strength)
        figures = steering.verdict(found.differences), plots.rate_differences(found.differences)
        rest = [*figures, "", None, "\n".join(map(str, changes)), found]
        request = chat.request_of(tokenizer, prompt, is_chat, system)
        for original, changed in side_by_side(model, tokenizer, request, params, changes, is_over=turn.is_over):
            yield [original.strip, changed.strip, "", *rest]
            rest = [gr.skip()] * 6
        yield [original.strip, changed.strip, verdict(original, changed), *rest]
        if not turn.is_over():
            drawn, text = measure(model, tokenizer, found, changes)
            yield [gr.skip(), gr.skip(), gr.skip(), gr.skip(), gr.skip(), text, drawn, gr.skip(), gr.skip()]

    view = connect_view(
        redraw,
        [state, *boxes, strength, count, box, *chat_inputs, seed, *settings.values()],
        [*strips, note, summary, rates, effect_note, effect, interventions, state],
        requested=[button.click, box.submit, strength.release],
        is_drawn=False,
        **connection,
        **GENERATION_QUEUE,
    )
    view.stop_on(stop.click)
    reset.click(lambda: texts, None, boxes, **QUICK_QUEUE)
    use.click(lambda text: text, interventions, playground_box, **QUICK_QUEUE)
