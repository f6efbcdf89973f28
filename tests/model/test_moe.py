"""Experts against all experts on all tokens, and the router's correction bias."""

import math

import pytest
import torch

from deepseek.model.config import preset
from deepseek.model.moe import DeepseekV3Experts, DeepseekV3TopkRouter

WIDTH, NUM_EXPERTS, TOP_K = 72, 8, 2


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(1)


@pytest.fixture
def experts(generator):
    experts = DeepseekV3Experts(preset("tiny"))
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    return experts


def random_routing(rows, generator, num_experts=NUM_EXPERTS):
    """(x, weights, indices) of `rows` tokens."""
    x, weights = torch.randn(rows, WIDTH, generator=generator), torch.rand(rows, TOP_K, generator=generator)
    return x, weights, torch.rand(rows, num_experts, generator=generator).topk(TOP_K).indices


@pytest.mark.parametrize("rows", [1, 2, 50])
def test_values_and_gradients_equal_every_expert_on_every_token(experts, generator, rows):
    x, weights, indices = random_routing(rows, generator)
    inputs = [x.requires_grad_(), *experts.parameters()]
    actual = experts(x, weights, indices)
    weights_XE = torch.zeros(rows, NUM_EXPERTS).scatter(1, indices, weights)
    outputs = [experts.expert_forward(x, expert) for expert in range(NUM_EXPERTS)]
    expected = (weights_XE.unsqueeze(-1) * torch.stack(outputs, 1)).sum(1)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    gradients, expected_gradients = (torch.autograd.grad(y.square().sum(), inputs) for y in (actual, expected))
    torch.testing.assert_close(gradients, expected_gradients, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rows", [1, 20])
def test_an_idle_expert_is_not_run_and_gets_no_gradient(experts, generator, rows):
    experts.down_proj.data[5:] = math.nan
    x, weights, indices = random_routing(rows, generator, num_experts=5)
    output = experts(x, weights, indices)
    assert output.isfinite().all() and experts(x, weights, indices + 3).isnan().any()
    output.sum().backward()
    assert experts.down_proj.grad.isfinite().all() and experts.down_proj.grad[5:].eq(0).all()


@pytest.mark.parametrize("rows", [1, 20])
def test_bf16_rows_are_computed_in_bf16_over_fp32_weights(experts, generator, rows):
    x, weights, indices = random_routing(rows, generator)
    output = experts(x.bfloat16(), weights, indices)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), experts(x, weights, indices), rtol=5e-2, atol=5e-2)


@pytest.fixture
def router(generator):
    router = DeepseekV3TopkRouter(preset("tiny"))
    torch.nn.init.normal_(router.weight, std=0.25, generator=generator)
    return router


def test_an_equal_bias_changes_nothing(router, generator):
    x = torch.randn(16, WIDTH, generator=generator)
    _, weights, indices = router(x)
    router.e_score_correction_bias.fill_(100.0)
    _, biased_weights, biased_indices = router(x)
    assert torch.equal(biased_indices.sort().values, indices.sort().values)
    torch.testing.assert_close(biased_weights.sort().values, weights.sort().values)


def test_a_bias_selects_experts_and_never_weighs_them(router, generator):
    x = torch.randn(16, WIDTH, generator=generator)
    unbiased_indices = router(x)[2]
    router.e_score_correction_bias[:2] = 100.0
    logits, weights, indices = router(x)
    assert (indices.sort().values == torch.tensor([0, 1])).all() and not torch.equal(unbiased_indices, indices)
    scores = logits.sigmoid().gather(1, indices)
    torch.testing.assert_close(weights, scores / scores.sum(-1, keepdim=True))
