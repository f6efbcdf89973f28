"""The Intervene tab: a sample under interventions beside the original, each expert's importance, and steering."""

import gradio as gr

from deepseek.interpret.importance import ranked_layers
from deepseek.interpret.moe_layers import why_no_experts
from deepseek.ui.components import chat, intervention_box, sampler_controls
from deepseek.ui.components.intervention_box import expert_choices, layer_choices, read_interventions
from deepseek.ui.components.side_by_side import side_by_side, two_strips, verdict
from deepseek.ui.components.view import connect_view, tab_id
from deepseek.ui.generation import GENERATION_QUEUE, QUICK_QUEUE
from deepseek.ui.tabs import importance, steering

SUB_TABS = ("Generate", "Importance", "Steer")
HELP = """**Ablate** (off): the expert does not run; each token that had chosen it gets the router's next best expert.
**Force**: every token runs it, in place of its lowest-ranked chosen expert. The weights follow by the router's own rule.
**Promote** and **suppress**: the expert's score is moved toward the token's largest, or its smallest, by the strength; at 1 it
passes it, as in [SteerMoE](https://arxiv.org/abs/2509.09660). The score ranks and weighs, so the weight changes too. The
changes hold for this sample alone; other users' samples are untouched."""


def build(
    model, generation: gr.State, checkpoint: gr.State, kept: gr.BrowserState, tab: gr.Tab, playground_box: gr.Textbox
) -> None:
    """Draws the tab for the prompt of the user's `generation`; `playground_box` takes interventions that are to be used there.

    A sub-tab is computed when it is first opened, and again for another checkpoint.
    """
    first = generation.value
    gr.Markdown(
        "What is an expert good for? Change what the router does, and see what the model writes and what it loses."
    )
    with gr.Tabs():
        for name in SUB_TABS:
            with gr.Tab(name, elem_id=tab_id(name)) as this:
                connection = dict(checkpoint=checkpoint, opened=[tab.select, this.select], tab=this)
                if name == "Generate":
                    chat_inputs, *sampler = _build_samples(model, first, kept, playground_box, **connection)
                elif name == "Importance":
                    importance.build(model, generation, **connection)
                else:
                    steering.build(chat.user_prompt(first), chat_inputs, *sampler, playground_box, **connection)


def _build_samples(model, first, kept, playground_box, **connection) -> tuple[list, gr.Textbox, dict]:
    gr.Markdown("Switch experts off, force, promote or suppress them. What is generated then, from the same seed?")
    box = gr.Textbox(chat.user_prompt(first), label="prompt", lines=2, max_lines=6)
    chat_inputs = chat.build_switch(connection["checkpoint"], "intervene-chat")
    interventions, fitted = intervention_box.build(model, "off 0")
    with gr.Row():
        seed = sampler_controls.seed_box(7, "seed of both", min_width=120)
        generate_button = gr.Button("Generate both", variant="primary", min_width=120)
        stop = gr.Button("Stop", min_width=80)
        use = gr.Button("Use in the Playground", min_width=160)
    strips = two_strips("strip")
    note = gr.Markdown(elem_id="intervene-note")
    with gr.Accordion("what the interventions do", open=False):
        gr.Markdown(HELP)
    with gr.Accordion("sampler settings", open=False):
        _, settings = sampler_controls.sampler_controls(kept, connection["checkpoint"])
        settings["max_new_tokens"].value = 64

    def redraw(turn, model, tokenizer, prompt, is_chat, system, interventions, seed, *rest):
        params = sampler_controls.to_params(settings, rest[len(fitted) :], seed, locked=True)
        if not ranked_layers(model):
            yield ["", "", why_no_experts(model)]
            return
        changes, request = read_interventions(interventions), chat.request_of(tokenizer, prompt, is_chat, system)
        for original, changed in side_by_side(model, tokenizer, request, params, changes, is_over=turn.is_over):
            yield [original.strip, changed.strip, ""]
        yield [original.strip, changed.strip, verdict(original, changed)]

    view = connect_view(
        redraw,
        [box, *chat_inputs, interventions, seed, *fitted, *settings.values()],
        [*strips, note],
        requested=[generate_button.click, box.submit],
        fitted=fitted,
        fit=lambda model: [expert_choices(model), layer_choices(model)],
        is_drawn=False,
        show_progress="hidden",
        **connection,
        **GENERATION_QUEUE,
    )
    view.stop_on(stop.click)
    use.click(lambda text: text, interventions, playground_box, **QUICK_QUEUE)
    return chat_inputs, seed, settings
