"""Importance, in the Intervene tab: what a text loses without each expert, without the top ones, and with the next one."""

import re
from collections.abc import Iterator

import gradio as gr

from deepseek.data.tokenizer import token_texts
from deepseek.interpret import importance
from deepseek.interpret.moe_layers import moe_layers, why_no_experts
from deepseek.ui.components.intervention_box import EVERY_LAYER, layer_choices
from deepseek.ui.components.token_detail import script_table
from deepseek.ui.components.token_strip import script_json
from deepseek.ui.components.traces import as_sampled, knocked_out, within_deadline
from deepseek.ui.components.view import connect_view, figure
from deepseek.ui.plots import importance as plots
from deepseek.ui.plots.routing import ablation_bars

HELP = """**Expert by expert.** One expert is switched off and the text read again: the change in its loss, and at every token the
Kullback–Leibler divergence of the next-token distribution with all experts from the one without it, in nats. 0 means that the
prediction after this token is the same.

**Top experts of each token** is figure 4 of [DeepSeekMoE](https://arxiv.org/abs/2401.06066): the experts that a token's router
ranks highest are barred in every layer, and it chooses among the others. The control bars as many at random. Shared experts run
for every token, so they are switched off as a whole; *routed in their place* is the paper's other comparison: each token runs as
many more routed experts instead.

**One after another**: experts are switched off for all tokens and stay off, from the most important on. The controls take them
at random and from the least important on.

**Runner-up**: a token's expert of largest weight is barred for that token alone, so its next expert runs there."""


def ablation_choices(model) -> dict:
    """`layer_choices`, at first all layers or, of many experts, the last."""
    choices, layers = layer_choices(model), importance.affordable_layers(model)
    return choices if layers == importance.ranked_layers(model) else {**choices, "value": layers[0]}


def found_experts(text: str) -> list[tuple[int, int]]:
    """The (layer, expert) pairs that a search such as "3@2, 17@4" names."""
    return [(int(layer), int(expert)) for expert, layer in re.findall(r"(\d{1,6})\s*@\s*(\d{1,6})", text or "")]


def measure(model, tokenizer, text, layer: int, find: str = "") -> Iterator[list]:
    """Yields [note, loss change, KL map, rows of the table, top disabled, one after another, runner-ups] as they come.

    What is not measured yet is None; what an update leaves as it is, is skipped. Raises gr.Error.
    """
    if not (ranked := importance.ranked_layers(model)):
        yield [why_no_experts(model), None, None, "[]", None, None, None]
        return
    layers, measured, by_layer = ranked if layer == EVERY_LAYER else [layer], [], {}
    same = [gr.skip()] * 3
    for each in knocked_out(model, tokenizer, text, layers):
        measured.append(each)
        by_layer.setdefault(each.layer, []).append(each.loss_change)
        if len(by_layer[each.layer]) == moe_layers(model)[each.layer].num_experts:
            tokens = token_texts(tokenizer, importance.text_ids(model, tokenizer, text))
            shown = plots.shown_experts(measured, found_experts(find))
            ranking = sorted(measured, key=lambda each: -each.mean_kl)
            figures = ablation_bars(list(by_layer.values()), list(by_layer)), plots.knock_out_map(tokens, shown)
            table = script_json(plots.knock_out_rows(ranking))
            yield [
                _note(measured, len(by_layer), len(layers)),
                *figures,
                table,
                *(same if len(by_layer) > 1 else [None] * 3),
            ]
    note, same = _note(measured, 1, 1), [gr.skip()] * 3
    points = list(within_deadline(importance.top_disabled(model, tokenizer, text), text, "disabling the top experts"))
    yield [note, *same, plots.loss_curves(points, "experts disabled per token"), gr.skip(), gr.skip()]
    order = [(each.layer, each.expert) for each in sorted(measured, key=lambda each: -each.loss_change)]
    points = list(within_deadline(importance.cumulative(model, tokenizer, text, order), text, "switching experts off"))
    yield [note, *same, gr.skip(), plots.loss_curves(points, "experts switched off"), gr.skip()]
    others = []
    for each in within_deadline(importance.runner_ups(model, tokenizer, text, layers), text, "re-routing"):
        others.append(each)
        words = {token: tokenizer.decode([token]) for row in others for token in {*row.own, *row.rerouted}}
        yield [note, *same, gr.skip(), gr.skip(), plots.runner_up_map(tokens, others, words)]


def _note(measured: list[importance.KnockOut], done: int, layers: int) -> str:
    return importance.verdict(measured) + (f" Measured {done} of {layers} layers." if done < layers else "")


def build(model, generation: gr.State, **connection) -> None:
    """Draws the sub-tab for a text that goes on from the prompt; `connection` are arguments of `connect_view`."""
    gr.Markdown("Which experts does this text need, where, and what happens without them?")
    prompt = generation.value.prompt
    text = gr.Textbox(prompt + " there was a little fox. She wanted to play.", label="text", lines=2, max_lines=8)
    with gr.Row():
        where = gr.Dropdown(**ablation_choices(model), label="experts of", min_width=140)
        info = "shown first, beside the most important ones"
        find = gr.Textbox("", label="find experts: expert@layer", info=info, max_lines=1, min_width=200)
        button = gr.Button("Measure", variant="primary", min_width=120)
        stop = gr.Button("Stop measuring", min_width=120)
    note = gr.Markdown(elem_id="ablation-note")
    gr.Markdown(
        "### Effect of each expert\nThe loss on this text with one expert ablated, less the loss with none ablated. "
        "Above 0: the text needs the expert."
    )
    bars = figure(None, "loss-change", elem_classes="wide")
    gr.Markdown(
        "### Where each expert matters\nHow far the next-token distribution after each token moves without the expert: the "
        f"{plots.MAX_SHOWN} experts of the largest mean, the most important on top. 5@3 is expert 5 of layer 3."
    )
    kl_map = figure(None, "knock-outs", elem_classes="wide")
    with gr.Accordion("all experts as a table", open=False):
        table = script_table("table.js", "candidates", "every expert's effect", plots.HEADERS, "[]", "knock-out-table")
    gr.Markdown(
        "### Top experts of each token disabled\nHow many of its best experts can every token do without? DeepSeekMoE's "
        "figure 4, beside experts disabled at random, and the shared experts."
    )
    top = figure(None, "top-disabled")
    gr.Markdown(
        "### Experts switched off one after another\nFor all tokens, from the most important on, and two other orders."
    )
    cumulative = figure(None, "one-after-another")
    gr.Markdown(
        "### Each token with its next expert\nOne token at a time loses its first expert in one layer. How far does the "
        "prediction after it move? A cross marks where the next word changes."
    )
    runner_ups = figure(None, "runner-ups", elem_classes="wide")
    with gr.Accordion("what these numbers are", open=False):
        gr.Markdown(HELP)

    def redraw(turn, model, tokenizer, text, where, find, generation):
        for drawing in measure(model, tokenizer, as_sampled(text, generation, model), where, find):
            yield drawing
            if turn.is_over():
                break

    view = connect_view(
        redraw,
        [text, where, find, generation],
        [note, bars, kl_map, table, top, cumulative, runner_ups],
        requested=[button.click, text.submit, find.submit],
        fitted=[where],
        fit=lambda model: [ablation_choices(model)],
        is_drawn=False,
        **connection,
    )
    view.stop_on(stop.click)
