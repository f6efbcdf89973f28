"""The MoE layers of a model; test_families.py has those of all families."""

import pytest
import torch

from deepseek.interpret.moe_layers import biased_experts, moe_layers, parameter_counts, recorded_experts, why_no_experts


def run(model):
    with torch.no_grad():
        return model(torch.tensor([[5, 9, 17]]), use_cache=False).logits


def test_the_layers_of_our_model(model):
    layers = moe_layers(model)
    assert list(layers) == [1, 2] and all(layer.has_shared and layer.ranks for layer in layers.values())
    assert {(layer.num_experts, layer.top_k) for layer in layers.values()} == {(8, 2)}


def test_a_dense_model_says_so(llama):
    assert moe_layers(llama) == {} and why_no_experts(llama) == "This model is dense: it has no experts."
    assert parameter_counts(llama)[0] == parameter_counts(llama)[1]


def test_of_the_experts_a_fraction_is_active(mixtral):
    experts = sum(parameter.numel() for layer in mixtral.model.layers for parameter in layer.mlp.experts.parameters())
    total, active = parameter_counts(mixtral)
    assert total == sum(parameter.numel() for parameter in mixtral.parameters()) and total - active == experts // 2


def test_a_pass_that_fails_in_the_experts_leaves_no_watch(mixtral):
    before = run(mixtral)
    hook = mixtral.model.layers[1].mlp.experts.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), recorded_experts(mixtral):
        run(mixtral)
    hook.remove()
    assert torch.overrides._get_current_function_mode_stack() == [] and torch.equal(run(mixtral), before)


def test_a_router_that_does_not_rank_says_so(mixtral, monkeypatch):
    router = moe_layers(mixtral)[0].router
    monkeypatch.setattr(router, "forward", lambda x: (x, torch.ones(3, 1), torch.zeros(3, 1, dtype=torch.long)))
    with recorded_experts(mixtral) as ran:
        run(mixtral)
    assert ran[0].indices.tolist() == [[0]] * 3 and ran[0].scores.tolist() == [[1.0, 0.0, 0.0, 0.0]] * 3
    with (
        pytest.raises(ValueError, match="layer 0 does not rank its experts"),
        biased_experts(mixtral, {0: torch.zeros(4)}),
    ):
        run(mixtral)
