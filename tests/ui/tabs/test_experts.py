"""The sub-tabs of the Experts tab and the Intervene tab, on six families of mixtures and a dense model."""

import json
import math
import re

import gradio as gr
import numpy as np
import pytest
import torch
from small import families
from transformers import AutoModelForCausalLM

from deepseek import SamplingParams, trace
from deepseek.interpret import routing_stats
from deepseek.interpret.interventions import Intervention
from deepseek.ui.components.found_experts import find_experts
from deepseek.ui.components.intervention_box import read_interventions
from deepseek.ui.components.traces import trace_long
from deepseek.ui.tabs import compare_domains, experts, importance, intervene, long_text, steering

TEXT = "Once upon a time a fox ran over the hill."
PARAMS = SamplingParams(seed=3, max_new_tokens=12)


@pytest.fixture(params=["mixtral", "olmoe", "qwen3", "deepseek_v2", "deepseek_v3", "gpt_oss"])
def mixture(request):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(families()[request.param]).eval()


def test_every_panel_draws_any_mixture(mixture, tokenizer):
    traced = trace(mixture, tokenizer, TEXT)
    _, *figures, note, state = experts.draw(traced)
    top_k, num_experts = traced.routing[0].indices.shape[1], traced.routing[0].num_experts
    assert all(figures) and f"each routed to {top_k} of {num_experts} experts" in note and state.tokens == traced.tokens
    long = trace_long(mixture, tokenizer, TEXT * 6)
    note, vocabulary, co_activation, transitions = long_text.draw(long, traced.routing[-1].layer)
    assert (
        len(vocabulary.data[0].y) == len(co_activation.data[0].y) == num_experts
        and len(transitions.data[0].link.value) > 1
    )
    summary, bars, heading, loads = compare_domains.draw(
        {"A": long, "B": trace_long(mixture, tokenizer, "déjà vu " * 30)}
    )
    assert "**A and B: 0." in summary and bars.data and heading.startswith("### Layer ") and len(loads.data) == 2
    measured = list(
        importance.measure(mixture, tokenizer, TEXT, traced.routing[-1].layer, f"0@{traced.routing[-1].layer}")
    )
    note, loss_change, knock_outs, table = measured[0][:4]
    assert len(loss_change.data) == num_experts and note.startswith("Largest effect")
    assert knock_outs.data[0].y[0] == f"0@{traced.routing[-1].layer}" and len(json.loads(table)) == num_experts
    curves, cumulative, runner_ups = measured[1][4], measured[2][5], measured[3][6]
    assert [line.name for line in curves.data][0] == "top routed" and len(cumulative.data) == 3
    assert np.shape(runner_ups.data[0].z) == (1, len(traced.ids))
    *_, (original, changed) = intervene.side_by_side(mixture, tokenizer, TEXT, PARAMS, [Intervention(1, "force")])
    assert len(original.tokens) == len(changed.tokens) == 12
    for token in changed.tokens[:-1]:
        assert token.experts and all(1 in dict(to) for to in token.experts.values())
    found = find_experts(mixture, tokenizer, {"A": "a fox\nran\nover\na hill", "B": "12\n34 5\n6 7\n8"})
    drawn, note = steering.measure(mixture, tokenizer, found, [Intervention(1, "promote", strength=0.5)])
    assert (
        len(drawn.data) == 3
        and note.startswith("Held-out loss")
        and found.held_out == {"A": ["ran", "a hill"], "B": ["34 5", "8"]}
    )
    expert, layer = intervene.expert_choices(mixture), intervene.layer_choices(mixture)
    assert len(expert["choices"]) == num_experts and len(layer["choices"]) == 1 + len(traced.routing)


def test_every_panel_says_that_a_dense_model_has_no_experts(llama, tokenizer):
    _, *figures, note, _ = experts.draw(trace(llama, tokenizer, TEXT))
    assert figures == [None] * 4 and "has no experts" in note
    traced = trace_long(llama, tokenizer, TEXT)
    note, *figures = long_text.draw(traced, None)
    assert figures == [None] * 3 and "has no experts" in note
    summary, *drawn = compare_domains.draw({"A": traced, "B": traced})
    assert "has no experts" in summary and not any(drawn)
    [(note, *figures)] = importance.measure(llama, tokenizer, TEXT, importance.EVERY_LAYER)
    assert figures == [None, None, "[]", None, None, None] and "has no experts" in note
    with pytest.raises(gr.Error, match="has no experts"):
        list(intervene.side_by_side(llama, tokenizer, TEXT, PARAMS, [Intervention(0, "off")]))


def test_the_summary_is_the_mean_over_the_layers(model, tokenizer):
    texts = {"A": "a fox ran over the hill " * 5, "B": "12 34 56 78 " * 10, "C": TEXT * 3}
    traces = {name: trace_long(model, tokenizer, text) for name, text in texts.items()}
    summary, bars, heading, loads = compare_domains.draw(traces)

    def load(name, layer):
        chosen = traces[name].routing[layer].indices.flatten().tolist()
        return [chosen.count(expert) / len(chosen) for expert in range(8)]

    def bits(p, q):
        middle = [(a + b) / 2 for a, b in zip(p, q)]
        return sum(sum(x * math.log2(x / m) for x, m in zip(side, middle) if x) for side in (p, q)) / 2

    for a, b in ("AB", "AC", "BC"):
        divergences = [bits(load(a, layer), load(b, layer)) for layer in range(2)]
        assert f"**{a} and {b}: {sum(divergences) / 2:.3f} bits**" in summary
        bar = next(bar for bar in bars.data if bar.name == f"{a} and {b}")
        assert list(bar.y) == pytest.approx(divergences, abs=1e-4)
    layer = int(heading.split("Layer ")[1].split(",")[0]) - 1
    for bar in loads.data:
        assert list(bar.y) == pytest.approx(load(bar.name, layer), abs=1e-4)


def test_both_samples_mark_the_first_difference(model, tokenizer):
    *_, (original, changed) = intervene.side_by_side(model, tokenizer, TEXT, PARAMS, [Intervention(2, "force")])
    ids = [[token.id for token in side.tokens] for side in (original, changed)]
    position = next(i for i, (a, b) in enumerate(zip(*ids)) if a != b)
    for side in (original, changed):
        assert f'{{"mark": {position}}}' in side.strip
    assert intervene.verdict(original, changed).startswith(f"The samples diverge at token {position + 1}; ")
    assert intervene.verdict(original, original).startswith("The samples are identical, all 12")


@pytest.mark.parametrize(
    "work, refusal",
    [
        (lambda *model: trace_long(*model, "a" * 20_001), "text has 20,001 characters"),
        (lambda *model: trace_long(*model, ""), "text is empty"),
        (lambda *model: trace_long(*model, 5), "text is 5; it must be text"),
        (
            lambda *model: list(importance.measure(*model, 5, importance.EVERY_LAYER)),
            "text is 5; it must be text",
        ),
        (
            lambda *model: list(importance.measure(*model, TEXT, 77)),
            "layer is 77; it must be one that has experts",
        ),
        (
            lambda *model: list(importance.measure(*model, TEXT * 40, 1)),
            "text has .* tokens; the model reads 256 at most",
        ),
        (lambda *model: list(intervene.side_by_side(*model, "", PARAMS, [Intervention(0, "off")])), "prompt is empty"),
        (
            lambda *model: list(intervene.side_by_side(*model, TEXT, PARAMS, [Intervention(None, "off")])),
            "expert is None; it must",
        ),
        (
            lambda *model: list(intervene.side_by_side(*model, TEXT, PARAMS, [Intervention(0, "dim")])),
            "action is 'dim'; it must",
        ),
        (lambda *model: read_interventions("off 1\ndim 2"), "intervention is 'dim 2'; it must be an action"),
        (lambda *model: read_interventions("off 1\n" * 501), "interventions are 501; there must be at most 500"),
        (
            lambda *model: find_experts(*model, {"A": "a\nb", "B": "c"}),
            "list A has 2 texts; it must have 4 or more",
        ),
        (lambda *model: find_experts(*model, {"A": "a\n" * 300}), "lists A and B have 300 texts"),
    ],
)
def test_refusals_are_one_sentence(model, tokenizer, work, refusal):
    with pytest.raises(gr.Error) as caught:
        work(model, tokenizer)
    assert re.match(refusal, caught.value.message)


def test_an_uploaded_file_must_be_text_of_bounded_length(tmp_path):
    file = tmp_path / "text"
    file.write_bytes("\ufeffdéjà vu".encode())
    assert long_text.read_file(file) == "déjà vu"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(gr.Error, match="not text in UTF-8"):
        long_text.read_file(file)
    file.write_text("a" * (routing_stats.MAX_CHARACTERS + 1))
    with pytest.raises(gr.Error, match="more than 20,000 characters"):
        long_text.read_file(file)
    file.write_text("a" * routing_stats.MAX_CHARACTERS)
    assert len(long_text.read_file(file)) == routing_stats.MAX_CHARACTERS
