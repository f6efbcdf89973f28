"""What a token's experts decided, against the model run by hand with another choice of experts, on several families."""

import copy

import pytest
import torch
from small import clear_mixture, families

from deepseek.interpret.interventions import Intervention, intervened
from deepseek.interpret.moe_layers import moe_layers, recorded_experts
from deepseek.interpret.trace import trace
from deepseek.interpret.what_if import what_if

TEXT = "Once upon a time a fox ran over the hill"


@pytest.fixture(params=["ours", *families()])
def mixture(request, model):
    """A model without hooks of another test, with routers that differ clearly between tokens."""
    return copy.deepcopy(model) if request.param == "ours" else clear_mixture(request.param)


@torch.no_grad()
def probabilities(model, ids, position):
    return model(torch.tensor([ids])).logits[0, position].softmax(-1)


def assert_words(entries, order, before, after):
    assert [entry["id"] for entry in entries] == order.topk(8).indices.tolist()
    for entry in entries:
        assert entry["before"] == pytest.approx(before[entry["id"]].item(), abs=1e-5)
        assert entry["after"] == pytest.approx(after[entry["id"]].item(), abs=1e-5)


@pytest.mark.parametrize("action", ["off", "runner-up"])
def test_only_this_token_in_this_layer_is_routed_otherwise(mixture, tokenizer, action):
    traced = trace(mixture, tokenizer, TEXT)
    entry, position = traced.routing[-1], 5
    expert = entry.indices[position, 0].item()
    answer = what_if(traced, position, entry.layer, expert, action)

    replaced = copy.deepcopy(mixture)  # the same by a hook of its own
    router, row = moe_layers(replaced)[entry.layer].router, traced.walk(position)["layers"][entry.layer]["router"]
    rest = {one["expert"]: one["weight"] for one in row["chosen"] if one["expert"] != expert}
    if action == "runner-up":
        barred = [Intervention(expert, "off", entry.layer)]
        with torch.no_grad(), intervened(mixture, barred), recorded_experts(mixture) as experts:
            mixture(torch.tensor([traced.ids]))
        own = experts[entry.layer]
        rest = dict(zip(own.indices[position].tolist(), own.weights[position].tolist()))
        assert expert not in rest
    ran = {one["expert"]: one["weight"] for one in answer["chosen"] if one["weight"]}
    assert ran == pytest.approx(rest, abs=1e-5)

    def substitute(_, __, output):
        logits, weights, indices = (part.clone() for part in output)
        padded = [*rest.items(), (expert, 0.0)][: indices.shape[1]]
        indices[position] = torch.tensor([one for one, _ in padded])
        weights[position] = torch.tensor([weight for _, weight in padded])
        return logits, weights, indices

    before = probabilities(mixture, traced.ids, position)
    router.register_forward_hook(substitute)
    after = probabilities(replaced, traced.ids, position)
    assert answer["kl"] == pytest.approx((before * (before / after).log()).sum().item(), abs=1e-5)
    assert_words(answer["before"], before, before, after)
    assert_words(answer["after"], after, before, after)
    assert sum(abs(one["after"] - one["before"]) for one in answer["moved"]) > 0
    torch.testing.assert_close(probabilities(mixture, traced.ids, position), before)  # and it is over


def test_for_a_single_token_the_runner_up_is_what_an_intervention_gives(model, tokenizer):
    traced = trace(model, tokenizer, [7])
    expert = traced.routing[0].indices[0, 0].item()
    answer = what_if(traced, 0, traced.routing[0].layer, expert, "runner-up")
    with intervened(model, [Intervention(expert, "off", traced.routing[0].layer)]):
        after = probabilities(model, [7], 0)
    assert [one["after"] for one in answer["after"]] == pytest.approx(after.topk(8).values.tolist(), abs=1e-6)
    assert answer["kl"] > 0


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(position=99), "^position is 99; it must be a whole number from 0 to"),
        (dict(layer=0), "^layer is 0; it must be one with experts: 1, 2"),
        (dict(layer=True), "^layer is True"),
        (dict(expert=8), "^expert is 8; it must be one that this token chose"),
        (dict(expert="1"), "^expert is '1'"),
        (dict(action="on"), "^action is 'on'; it must be one of off, runner-up"),
    ],
)
def test_what_there_is_not_is_refused(model, tokenizer, change, message):
    traced = trace(model, tokenizer, TEXT)
    arguments = dict(position=3, layer=1, expert=traced.routing[0].indices[3, 0].item(), action="off")
    with pytest.raises(ValueError, match=message):
        what_if(traced, **arguments | change)


def test_a_dense_model_is_refused(llama, tokenizer):
    with pytest.raises(ValueError, match="^layer is 0; it must be one with experts, and there is none"):
        what_if(trace(llama, tokenizer, TEXT), 3, 0, 0, "off")
