"""Importance and steering in the report, against the functions that measure them and counts by hand."""

from math import isnan
from types import SimpleNamespace

import pytest
import torch
from running import ROOT
from small import families
from transformers import AutoModelForCausalLM

from deepseek.interpret import importance, steering
from deepseek.interpret.moe_layers import moe_layers
from deepseek.interpret.trace import trace
from deepseek.training import runs
from deepseek.training.router_history import saturation
from deepseek.ui.components.report_parts import (
    MAX_TEXT_TOKENS,
    Findings,
    difference_rows,
    measure_importance,
    measure_learning,
    measure_steering,
)

FOXES = [f"Once upon a time fox number {i} ran over the hill." for i in range(5)]
NUMBERS = [" ".join(str((i + 3) * k) for k in range(9, 20)) for i in range(6)]
TEXTS = {"foxes": "\n".join(FOXES), "short": "Hello", "numbers": "\n".join(NUMBERS)}


@pytest.fixture(scope="module")
def importances(model, tokenizer):
    done = []
    found = measure_importance(model, tokenizer, TEXTS, done.append)
    assert done == sorted(done) and done[0] > 0 and done[-1] <= 1
    return found


@pytest.fixture(scope="module")
def steered(model, tokenizer):
    done = []
    found = measure_steering(model, tokenizer, TEXTS, done.append)
    assert done == sorted(done) and done[-1] == 1
    return found


def test_a_checkpoint_of_a_run_has_its_curves_and_any_other_says_that_it_has_none(tmp_path):
    run = ROOT / "tests" / "fixtures" / "v0.1" / "runs" / "old"
    records = runs.history(run).router_records
    steps = [record.step for record in records]
    found = measure_learning(SimpleNamespace(name_or_path=str(run / f"step-{steps[1]:06d}")), None, {}, None)
    assert found.lines[0] == f"at step {steps[1]} of {steps[-1]}, mean over the layers:"
    value, chance = saturation(records[1], records[-1], 1)
    assert f"router saturation, top-1: {value.mean():.3f}; chance {chance.mean():.3f}" in found.lines
    assert found.numbers["router saturation, top-1, layer 1"][0] == pytest.approx(value[0], abs=1e-5)
    assert [row[0] for row in found.tables["every checkpoint"][1]] == [str(step) for step in steps]
    (figure,) = found.figures.values()
    assert figure.layout.shapes[0].x0 == steps[1] > 0
    for path in ("assets/demo", str(tmp_path / "step-000005"), "org/step-5"):
        found = measure_learning(SimpleNamespace(name_or_path=path), None, {}, None)
        assert found.lines[0].startswith("nothing to draw: ") and not found.figures


def test_importance_is_that_of_the_beginning_of_the_first_text(model, tokenizer, importances):
    ids = tokenizer(TEXTS["foxes"])["input_ids"][:MAX_TEXT_TOKENS]
    outs = list(importance.knock_outs(model, tokenizer, ids))
    assert len(ids) == MAX_TEXT_TOKENS and importances.lines[0].startswith("text: the first 64 tokens of foxes; loss ")
    assert importances.lines[1] == importance.verdict(outs)
    headers, rows = importances.tables["every expert"]
    assert len(rows) == len(outs) == 16 and [float(row[3]) for row in rows] == sorted(
        (float(r[3]) for r in rows), reverse=True
    )
    loss, kl, top, in_turn, others = importances.figures.values()
    assert len(loss.data) > 0
    first = max(outs, key=lambda each: each.mean_kl)
    assert kl.data[0].y[0] == f"{first.expert}@{first.layer}" and list(kl.data[0].z[0]) == pytest.approx(
        first.kl_T.tolist(), abs=1e-4
    )
    points = list(importance.top_disabled(model, tokenizer, ids))
    for line in top.data:
        assert list(line.y) == pytest.approx([p.loss for p in points if p.curve == line.name], abs=1e-3)
    assert [line.name for line in in_turn.data] == ["most important first", "at random", "least important first"]
    changed = sum(a != b for row in importance.runner_ups(model, tokenizer, ids) for a, b in zip(row.own, row.rerouted))
    assert (
        importances.lines[-1].endswith(f"another next word in {changed} of 128 cases")
        and len(others.data[1].x) == changed
    )
    value, error = importances.numbers[f"KL without expert {first.expert}@{first.layer}"]
    assert value == pytest.approx(first.mean_kl) and error == pytest.approx(float(first.kl_T.std()) / 8)


def test_kinds_of_text_are_steered_by_their_first_lines_and_measured_on_the_others(model, tokenizer, steered):
    routing = [steering.trace_texts(model, tokenizer, texts[::2]) for texts in (FOXES, NUMBERS)]
    found = steering.rate_differences(*routing)
    assert steered.lines[:2] == [
        "lines or sentences compared (and held out): 3 (2) of foxes, 3 (3) of numbers",
        steering.verdict(found),
    ]
    headers, rows = steered.tables["every expert"]
    assert headers[1:3] == ["rate in foxes", "rate in numbers"] and len(rows) == 16
    first, layer = found[0], next(r.layer for r in routing[0][0])
    assert rows[0][0] == f"{first.expert}@{first.layer}" and layer == 1
    chosen = [first.expert in row for text in FOXES[::2] for routed in trace(model, tokenizer, text).routing
              if routed.layer == first.layer for row in routed.indices.tolist()]  # fmt: skip
    assert rows[0][1] == f"{sum(chosen) / len(chosen):.1%}"
    for toward, strength in (("foxes", 0.5), ("numbers", -0.5)):
        changes = steering.steering(found, 6, strength)
        effect = steering.measure_effect(model, tokenizer, NUMBERS[1::2], changes)
        assert steered.numbers[f"change in loss of numbers, steered toward {toward}"] == pytest.approx(
            (effect.loss_change, effect.loss_error)
        )
        assert steered.figures[f"Steered toward {toward}: effect on the held-out parts"].data[0].x == (
            "foxes",
            "numbers",
        )


def test_texts_that_are_too_few_are_said_to_be_nothing_to_compare(model, tokenizer):
    found = measure_steering(model, tokenizer, {"foxes": TEXTS["foxes"], "short": "Hello"}, lambda fraction: None)
    assert found.lines[0].startswith("nothing to compare: it takes two of 4 or more lines") and not found.figures


def test_the_difference_is_that_of_the_numbers_that_both_have():
    a = Findings([], {}, {}, {"x": (1.0, 0.3), "y": (0.0, float("nan")), "only a": (9.0, 0.0)})
    b = Findings([], {}, {}, {"y": (2.5, float("nan")), "x": (0.5, 0.4)})
    assert isnan(a.numbers["y"][1])
    assert difference_rows(a, b) == [
        ["y", "+0.000", "+2.500", "+2.500", ""],
        ["x", "+1.000", "+0.500", "-0.500", "0.500"],
    ]


def test_of_many_experts_those_of_the_last_layer_are_knocked_out(tokenizer):
    torch.manual_seed(0)
    config = families()["qwen3"]
    config.num_experts = 128
    many = AutoModelForCausalLM.from_config(config).eval()
    found = measure_importance(many, tokenizer, {"foxes": FOXES[0]}, lambda fraction: None)
    assert len(moe_layers(many)) == 3 and len(found.tables["every expert"][1]) == 128
    assert found.lines[-1] == "experts one by one: those of layer 2 alone, since each takes a pass over the text"
    assert len(list(found.figures.values())[1].data[0].y) == 16
