"""What the report holds besides the sections: how the routers of the checkpoint's run settled, importance, and steering."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import count, islice
from math import nan, sqrt
from pathlib import Path
from statistics import fmean

from deepseek.data.tokenizer import encode_prompt, token_texts
from deepseek.interpret import importance, steering
from deepseek.interpret.moe_layers import moe_layers
from deepseek.interpret.trace import context_length
from deepseek.training import runs
from deepseek.training.router_alarms import alarm_sentences, router_alarms
from deepseek.training.router_history import CURVES, router_curves
from deepseek.ui.components.sections import Step, format_number
from deepseek.ui.plots import importance as plots
from deepseek.ui.plots import router_history
from deepseek.ui.plots.routing import ablation_bars

MAX_TEXT_TOKENS = 64  # of the text that experts are knocked out of, a pass for each expert
MAX_TEXTS = 32  # of each kind that experts are steered by
COUNT, STRENGTH = 6, 0.5  # experts that are steered, and how much: those of the tab Steer
NO_RANKS = "This model's routers do not rank their experts, so none can be switched off or steered."


@dataclass
class Findings:
    """What a part found: lines, figures by heading, (headers, rows) of tables by summary, and numbers to compare checkpoints by.

    `numbers` are {what: (value, standard error)}, NaN for an error that is not known.
    """

    lines: list[str]
    figures: dict
    tables: dict[str, tuple[list[str], list[list]]]
    numbers: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Part:
    """One part of the report. `words` say what it shows; `measure(model, tokenizer, kinds of text, step)` finds it."""

    name: str
    title: str
    words: str
    measure: Callable[[object, object, Mapping[str, str], Step], Findings]


def difference_rows(a: Findings, b: Findings) -> list[list[str]]:
    """Rows (what, A, B, B less A, its standard error) of the numbers that both have, the furthest apart first."""
    rows = []
    for name in a.numbers.keys() & b.numbers.keys():
        (own, own_error), (other, other_error) = a.numbers[name], b.numbers[name]
        rows.append((name, own, other, other - own, sqrt(own_error**2 + other_error**2)))
    rows.sort(key=lambda row: (-abs(row[3]), row[0]))
    return [
        [name, *(format(value, "+.3f") for value in values), format_number(error, ".3f")]
        for name, *values, error in rows
    ]


def measure_learning(model, tokenizer, texts: Mapping[str, str], step: Step) -> Findings:
    """How the routers of the run that the checkpoint lies in settled, in whole and at its own step."""
    folder = Path(model.name_or_path)
    in_run = re.fullmatch(r"step-(\d+)", folder.name)
    history = runs.history(folder.parent) if in_run else None
    if not history or len(history.router_records) < 2:
        return Findings(["nothing to draw: this checkpoint lies in no run that has recorded its routing"], {}, {}, {})
    curves = router_curves(history.router_records)
    index = max(0, sum(each <= int(in_run[1]) for each in curves["steps"]) - 1)
    own_step = curves["steps"][index]
    means = {name: [_mean(row) for row in curves["curves"][name]] for name in CURVES}
    lines = [f"at step {own_step:,} of {curves['steps'][-1]:,}, mean over the layers:"]
    for name, values in means.items():
        chance = f"; chance {_mean(curves['chance'][name][index])}" if name in curves["chance"] else ""
        lines.append(f"{CURVES[name]}: {values[index]}{chance}")
    if best := runs.best_checkpoint(folder.parent):
        lines.append(f"best checkpoint by validation loss: {best.name}")
    rows = [[str(each), *row] for each, *row in zip(curves["steps"], *means.values())]
    numbers = {
        f"{CURVES[name]}, layer {layer}": (value, nan)
        for name in CURVES
        for layer, value in zip(curves["layers"], curves["curves"][name][index])
        if value is not None
    }
    return Findings(
        lines + alarm_sentences(router_alarms(history)),
        {
            "Over the steps; dotted is chance, and the upright line this checkpoint": router_history.router_curves(
                curves, own_step
            )
        },
        {"every checkpoint": (["step", *CURVES.values()], rows)},
        numbers,
    )


def _mean(values: list[float | None]) -> str:
    """The mean of a curve over its layers; nothing where it is not known."""
    return "" if None in values else format(fmean(values), ".3f")


def measure_importance(model, tokenizer, texts: Mapping[str, str], step: Step) -> Findings:
    """What the beginning of the first text loses without each expert; of many experts, those of the last layer."""
    if not (layers := importance.affordable_layers(model)):
        return Findings([NO_RANKS], {}, {}, {})
    kind, text = next(iter(texts.items()))
    ids = encode_prompt(tokenizer, text, None)[: min(MAX_TEXT_TOKENS, context_length(model) or MAX_TEXT_TOKENS)]
    num_experts = sum(moe_layers(model)[layer].num_experts for layer in layers)
    outs = _stepped(importance.knock_outs(model, tokenizer, ids, layers), step, 0, 0.4 / num_experts)
    order = [(each.layer, each.expert) for each in sorted(outs, key=lambda each: -each.loss_change)]
    disabled = _stepped(importance.top_disabled(model, tokenizer, ids), step, 0.4, 0.2 / 30)
    in_turn = _stepped(importance.cumulative(model, tokenizer, ids, order), step, 0.6, 0.2 / 40)
    others = _stepped(importance.runner_ups(model, tokenizer, ids, layers), step, 0.8, 0.2 / len(layers))
    tokens, own = token_texts(tokenizer, ids), disabled[0].loss
    changed = sum(a != b for row in others for a, b in zip(row.own, row.rerouted))
    words = {token: tokenizer.decode([token]) for row in others for token in {*row.own, *row.rerouted}}
    lines = [
        f"text: the first {len(ids)} tokens of {kind}; loss {own:.3f} nats per token",
        importance.verdict(outs),
        *_curve_lines(disabled, own),
        f"re-routed to its next expert in one layer: another next word in {changed} of {len(ids) * len(others)} cases",
    ]
    if layers != importance.ranked_layers(model):
        lines.append(f"experts one by one: those of layer {layers[0]} alone, since each takes a pass over the text")
    effects = [[each.loss_change for each in outs if each.layer == layer] for layer in layers]
    kl = "Where each expert matters: KL divergence of the next-token distribution without it, after each token"
    figures = {
        "Change in loss without each expert": ablation_bars(effects, layers),
        kl: plots.knock_out_map(tokens, plots.shown_experts(outs)),
        "Top experts of each token disabled": plots.loss_curves(disabled, "experts disabled per token"),
        "Experts switched off one after another, for all tokens": plots.loss_curves(in_turn, "experts switched off"),
        "Each token with its next expert": plots.runner_up_map(tokens, others, words) if others else None,
    }
    rows = plots.knock_out_rows(sorted(outs, key=lambda each: -each.mean_kl))
    numbers = {
        f"KL without expert {_name(each)}": (each.mean_kl, float(each.kl_T.std()) / sqrt(len(ids))) for each in outs
    }
    numbers |= {
        f"change in loss, {each.curve}, {each.num_disabled} disabled": (each.loss - own, nan)
        for each in disabled
        if each.num_disabled
    }
    return Findings(lines, figures, {"every expert": (plots.HEADERS, rows)}, numbers)


def _stepped(results: Iterable, step: Step, done: float, share: float) -> list:
    """All results; tells `step` that `done` is done and, with each result, `share` more."""
    kept = []
    for each in results:
        kept.append(each)
        step(done + share * len(kept))
    return kept


def _name(each) -> str:
    return plots.expert_name(each.layer, each.expert)


def _curve_lines(points: list[importance.LossPoint], own: float) -> list[str]:
    """What the first and the last point of each curve cost, beside the whole model."""
    lines = []
    for curve in dict.fromkeys(each.curve for each in points if each.num_disabled):
        line = [each for each in points if each.curve == curve and each.num_disabled]
        costs = (f"{each.loss - own:+.3f} with {each.num_disabled} disabled" for each in (line[:1] + line[1:][-1:]))
        lines.append(f"{curve}: loss {', '.join(costs)}")
    return lines


def measure_steering(model, tokenizer, texts: Mapping[str, str], step: Step) -> Findings:
    """The experts that the first two kinds of text use differently, and what steering toward either does to parts held out."""
    if not importance.ranked_layers(model):
        return Findings([NO_RANKS], {}, {}, {})
    lists = _lists(model, tokenizer, texts)
    if len(lists) < 2:
        rule = f"it takes two of {2 * steering.MIN_TEXTS} or more lines or sentences, of which every second one is held out"
        return Findings([f"nothing to compare: {rule}"], {}, {}, {})
    a, b = lists
    used, held = ([half[side] for half in map(steering.held_out, lists.values())] for side in (0, 1))
    total, done = sum(map(len, used)) + 2 * sum(map(len, held)), count(1)

    def told():
        step(next(done) / total)

    routing = [[], []]
    for side, parts in zip(routing, used):
        for part in parts:
            side += steering.trace_texts(model, tokenizer, [part])
            told()
    found = steering.rate_differences(*routing)
    sizes = (f"{len(each)} ({len(out)}) of {name}" for name, each, out in zip(lists, used, held))
    lines = [f"lines or sentences compared (and held out): {', '.join(sizes)}", steering.verdict(found)]
    rates = f"Activation rate in {a} less that in {b}, with its standard error; pale bars are no better than chance"
    figures = {rates: plots.rate_differences(found, (a, b))}
    numbers = {f"rate of expert {_name(each)}, {a} less {b}": (each.difference, each.error) for each in found}
    for toward, strength in ((a, STRENGTH), (b, -STRENGTH)):
        changes = steering.steering(found, COUNT, strength)
        effects = {
            name: steering.measure_effect(model, tokenizer, parts, changes, told) for name, parts in zip(lists, held)
        }
        figures[f"Steered toward {toward}: effect on the held-out parts"] = plots.steering_effect(effects)
        numbers |= {
            f"change in loss of {name}, steered toward {toward}": (each.loss_change, each.loss_error)
            for name, each in effects.items()
        }
        losses = (f"{name} {each.loss_change:+.3f} ± {each.loss_error:.3f}" for name, each in effects.items())
        lines.append(f"toward {toward} ({', '.join(map(str, changes))}), held-out loss changes: {', '.join(losses)}")
    headers = ["expert", f"rate in {a}", f"rate in {b}", "difference", "its standard error", "p"]
    rows = [
        [
            _name(each),
            *(f"{rate:.1%}" for rate in (each.rate_a, each.rate_b)),
            f"{each.difference:+.1%}",
            f"{each.error:.1%}",
            f"{each.p_value:.3f}",
        ]
        for each in found
    ]
    return Findings(lines, figures, {"every expert": (headers, rows)}, numbers)


def _lists(model, tokenizer, texts: Mapping[str, str]) -> dict[str, list[list[int]]]:
    """The token ids of the parts of the first two kinds of text that have enough of them."""
    lists = {}
    for kind, text in texts.items():
        parts = (encode_prompt(tokenizer, part, None)[: context_length(model)] for part in steering.split_texts(text))
        lists[kind] = list(islice((part for part in parts if len(part) > 1), MAX_TEXTS))
    return dict(islice(((kind, parts) for kind, parts in lists.items() if len(parts) >= 2 * steering.MIN_TEXTS), 2))


PARTS = (
    Part(
        "While it learns",
        "While it learns",
        "How did the routers settle? At every checkpoint of the run that this one lies in, on the same tokens: how many choices "
        "are already those of the newest checkpoint (router saturation, OLMoE), how often a token that comes again goes to the "
        "same expert, how many of an expert's tokens its most frequent partner gets too, how far the busiest expert is above "
        "an even load (MaxVio), and how far the balancing bias pushes experts apart.",
        measure_learning,
    ),
    Part(
        "Importance",
        "Importance",
        f"What does a text lose without an expert? The first {MAX_TEXT_TOKENS} tokens of the first kind of text, with one expert "
        "switched off at a time; with the experts that each token's router ranks highest disabled in every layer, beside as "
        "many at random (DeepSeekMoE, figure 4), without the shared experts, and with as many more routed experts in their "
        "place; with experts switched off one after another, beside two other orders; and with one token at a time re-routed "
        "to its next expert.",
        measure_importance,
    ),
    Part(
        "Steer",
        "Steering",
        "Which experts tell two kinds of text apart, and what do they do? Activation rates of the first two kinds (SteerMoE), "
        "with their lines or sentences as samples; p values come from permuting which of them belongs to which kind, and hold "
        f"each expert against the largest difference of any. The {COUNT} experts that differ most are promoted and suppressed "
        f"at strength {STRENGTH:g}, toward either kind. The effect is measured on every second line or sentence, held out.",
        measure_steering,
    ),
)
