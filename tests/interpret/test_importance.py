"""Knock-outs, curves and runner-ups, each against the model run by hand under the same change."""

import copy
from contextlib import nullcontext

import pytest
import torch
from small import clear_mixture, families
from transformers import AutoModelForCausalLM

from deepseek.interpret import importance
from deepseek.interpret.importance import cumulative, knock_outs, runner_ups, top_disabled
from deepseek.interpret.interventions import Intervention, intervened
from deepseek.interpret.moe_layers import moe_layers
from deepseek.interpret.trace import trace
from deepseek.interpret.what_if import what_if

TEXT = "Once upon a time a fox ran over the hill"


@pytest.fixture(params=["ours", "qwen3", "deepseek_v3", "gpt_oss"])
def mixture(request, model):
    """A model without hooks of another test, with routers that differ clearly between tokens."""
    return copy.deepcopy(model) if request.param == "ours" else clear_mixture(request.param)


@torch.no_grad()
def log_probs(model, ids, change=None):
    with change or nullcontext():
        return model(torch.tensor([ids])).logits[0].double().log_softmax(-1)


def loss(log_probs_TV, ids):
    return -sum(log_probs_TV[i, token].item() for i, token in enumerate(ids[1:])) / (len(ids) - 1)


def test_a_knock_out_is_the_difference_of_two_passes(mixture, tokenizer):
    ids = tokenizer(TEXT)["input_ids"]
    own, routing = log_probs(mixture, ids), {r.layer: r for r in trace(mixture, tokenizer, TEXT).routing}
    measured = list(knock_outs(mixture, tokenizer, TEXT))
    assert [(each.layer, each.expert) for each in measured] == [
        (r, e) for r in routing for e in range(routing[r].num_experts)
    ]
    for each in measured:
        without = log_probs(mixture, ids, intervened(mixture, [Intervention(each.expert, "off", each.layer)]))
        kl_T = (own.exp() * (own - without)).sum(-1)
        torch.testing.assert_close(each.kl_T.double(), kl_T, atol=1e-6, rtol=1e-4)
        assert each.loss_change == pytest.approx(loss(without, ids) - loss(own, ids), abs=2e-5)
        chosen = (routing[each.layer].indices == each.expert).any(-1)
        assert each.num_tokens == chosen.sum()
        first = int(chosen.int().argmax()) if chosen.any() else len(ids)
        assert each.mean_kl == pytest.approx(kl_T.mean().item(), abs=1e-6)
        if getattr(mixture.config, "n_group", 1) == 1:  # a barred expert may cost its group the choice
            assert (each.kl_T[:first] < 1e-6).all()
    assert any(abs(each.loss_change) > 1e-5 for each in measured)
    last = max(routing)
    assert {each.layer for each in knock_outs(mixture, tokenizer, TEXT, [last])} == {last}


def hooked_router(model, forbidden):
    """A copy whose routers choose by V3's rule among the experts not `forbidden`: (ranks (T, E)) -> mask."""
    changed = copy.deepcopy(model)
    for layer in moe_layers(changed).values():
        router = layer.router

        def choose(router, inputs, output, config=model.config):
            scores = (inputs[0].float() @ router.weight.float().T).sigmoid().flatten(0, -2)
            ranks = scores + router.e_score_correction_bias
            indices = ranks.masked_fill(forbidden(ranks), -torch.inf).topk(config.num_experts_per_tok).indices
            weights = scores.gather(1, indices)
            weights = weights / weights.sum(-1, keepdim=True) * config.routed_scaling_factor
            return output[0], weights, indices

        router.register_forward_hook(choose)
    return changed


def test_disabling_the_top_experts_of_each_token_is_figure_4(model, tokenizer):
    model, ids = copy.deepcopy(model), tokenizer(TEXT)["input_ids"]
    points = list(top_disabled(model, tokenizer, TEXT))
    curves = {
        name: {p.num_disabled: p.loss for p in points if p.curve == name}
        for name in ("top routed", "random routed", "shared", "shared, routed in their place")
    }
    assert list(curves["top routed"]) == list(curves["random routed"]) == list(range(7)) and list(curves["shared"]) == [
        0,
        1,
    ]
    own = loss(log_probs(model, ids), ids)
    assert all(curve[0] == pytest.approx(own, abs=1e-5) for curve in curves.values())
    for number in (1, 3, 6):

        def top(ranks, number=number):
            return torch.zeros_like(ranks, dtype=torch.bool).scatter(1, ranks.topk(number).indices, True)

        by_hand = loss(log_probs(hooked_router(model, top), ids), ids)
        assert curves["top routed"][number] == pytest.approx(by_hand, abs=1e-4)
    without = copy.deepcopy(model)
    for layer in without.model.layers[1:]:
        layer.mlp.shared_experts.down_proj.weight.data.zero_()
    assert curves["shared"][1] == pytest.approx(loss(log_probs(without, ids), ids), abs=1e-5)
    without.config.num_experts_per_tok += 1
    one_more = curves["shared, routed in their place"][1]
    assert one_more == pytest.approx(loss(log_probs(without, ids), ids), abs=1e-5) and one_more != curves["shared"][1]
    assert len({round(value, 4) for value in curves["random routed"].values()}) > 3
    again = [p.loss for p in top_disabled(model, tokenizer, TEXT)]
    assert again == [p.loss for p in points]  # the random experts are from a fixed seed


def test_experts_are_switched_off_one_after_another(model, tokenizer):
    ids = tokenizer(TEXT)["input_ids"]
    order = [
        (each.layer, each.expert) for each in sorted(knock_outs(model, tokenizer, TEXT), key=lambda k: -k.loss_change)
    ]
    points = list(cumulative(model, tokenizer, TEXT, order))
    names = ["most important first", "at random", "least important first"]
    assert list(dict.fromkeys(p.curve for p in points)) == names
    for name in names:
        curve = {p.num_disabled: p.loss for p in points if p.curve == name}
        assert list(curve)[0] == 0 and list(curve)[-1] == 12  # 2 layers keep 2 of 8
        assert curve[0] == pytest.approx(loss(log_probs(model, ids), ids), abs=1e-5)
    for name, first in ((names[0], order[:1]), (names[2], order[-1:])):
        ((layer, expert),) = first
        by_hand = loss(log_probs(model, ids, intervened(model, [Intervention(expert, "off", layer)])), ids)
        assert next(p.loss for p in points if p.curve == name and p.num_disabled == 1) == pytest.approx(
            by_hand, abs=1e-5
        )
    left = {layer: [pair for pair in order if pair[0] == layer][:6] for layer in (1, 2)}
    all_off = [Intervention(expert, "off", layer) for pairs in left.values() for layer, expert in pairs]
    last = next(p.loss for p in points if p.curve == names[0] and p.num_disabled == 12)
    assert last == pytest.approx(loss(log_probs(model, ids, intervened(model, all_off)), ids), abs=1e-5)


def test_a_runner_up_is_the_same_what_if_of_one_token(mixture, tokenizer, monkeypatch):
    traced = trace(mixture, tokenizer, TEXT)
    rows = list(runner_ups(mixture, tokenizer, TEXT))
    assert [row.layer for row in rows] == list(moe_layers(mixture))
    for row, routing in zip(rows, traced.routing):
        for position in range(1, len(traced.ids), 3):
            expert = routing.indices[position, 0].item()
            answer = what_if(traced, position, routing.layer, expert, "runner-up")
            assert row.experts[position][0] == expert and row.kl_T[position].item() == pytest.approx(
                answer["kl"], abs=1e-5
            )
            new = {each["expert"] for each in answer["chosen"]} - {*routing.indices[position].tolist()}
            assert row.experts[position][1] in new
            assert row.own[position] == answer["before"][0]["id"] and row.rerouted[position] == answer["after"][0]["id"]
            assert (row.reach[position] > 0) or row.own[position] == row.rerouted[position]
    monkeypatch.setattr(importance, "MAX_LOGITS", 1)  # one copy of the text at a time
    for row, alone in zip(rows, runner_ups(mixture, tokenizer, TEXT)):
        torch.testing.assert_close(row.kl_T, alone.kl_T, atol=1e-5, rtol=1e-3)
        assert (row.experts, row.own) == (alone.experts, alone.own)


def test_a_layer_without_other_experts_has_no_runner_up(tokenizer):
    config = families()["mixtral"]
    config.num_experts_per_tok = config.num_local_experts
    assert list(runner_ups(AutoModelForCausalLM.from_config(config).eval(), tokenizer, TEXT)) == []


def test_a_dense_model_has_nothing_to_disable_and_one_token_no_loss(llama, model, tokenizer):
    for measure in (knock_outs, top_disabled, runner_ups):
        assert list(measure(llama, tokenizer, TEXT)) == []
        with pytest.raises(ValueError, match="^text has 1 token"):
            list(measure(model, tokenizer, [5]))


def test_a_curve_of_many_experts_has_few_points():
    assert importance.spread(0) == [] and importance.spread(5) == [1, 2, 3, 4, 5]
    many = importance.spread(6000)
    assert len(many) == importance.MAX_POINTS and many[0] == 1 and many[-1] == 6000
