"""The balancing loss against torch's own KL divergence, and the bias against a router that plays favourites."""

import math

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from deepseek.model.config import preset
from deepseek.model.deepseek_v3 import DeepseekV3TopkRouter
from deepseek.model.load_balancing import (
    kl_to_uniform,
    load_balancing_loss,
    load_shares,
    max_violation,
    tokens_per_expert,
    update_expert_bias,
)

EXPERTS = 8


def random_logits(rows=64, scale=3.0, seed=0):
    return scale * torch.randn(rows, EXPERTS, generator=torch.Generator().manual_seed(seed))


# The KL loss


@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
def test_kl_is_torchs_kl_divergence_of_the_mean_scores_from_uniform(scale):
    logits = random_logits(scale=scale)
    scores = logits.sigmoid()
    mean = (scores / scores.sum(-1, keepdim=True)).mean(0)
    expected = kl_divergence(Categorical(probs=mean), Categorical(probs=torch.ones(EXPERTS)))
    torch.testing.assert_close(kl_to_uniform(logits), expected, atol=1e-6, rtol=1e-5)


def test_kl_runs_from_zero_to_log_of_the_experts():
    even = torch.full((5, EXPERTS), 1.7)
    one_takes_all = torch.full((5, EXPERTS), -20.0).index_fill(1, torch.tensor([3]), 20.0)
    assert kl_to_uniform(even).item() == pytest.approx(0, abs=1e-6)
    assert kl_to_uniform(one_takes_all).item() == pytest.approx(math.log(EXPERTS), abs=1e-5)
    assert kl_to_uniform(torch.eye(EXPERTS) * 40 - 20).item() == pytest.approx(0, abs=1e-6)  # even over the batch


def test_kl_gradient_equals_finite_differences_and_leads_down():
    logits = random_logits(rows=6, scale=1.0).double().requires_grad_()
    assert torch.autograd.gradcheck(kl_to_uniform, logits, eps=1e-2, atol=1e-4, rtol=1e-2)  # it computes in fp32
    loss = kl_to_uniform(logits)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert kl_to_uniform(logits - gradient) < loss


def test_kl_leaves_padding_out():
    logits, mask = random_logits(), (torch.arange(64) % 3 > 0).long()
    torch.testing.assert_close(kl_to_uniform(logits, mask), kl_to_uniform(logits[mask.bool()]))
    assert abs(kl_to_uniform(logits, mask) - kl_to_uniform(logits)) > 1e-4


def test_kl_of_half_precision_logits_is_computed_in_fp32():
    logits = random_logits().bfloat16()
    assert torch.equal(kl_to_uniform(logits), kl_to_uniform(logits.float()))


def test_balancing_loss_averages_over_layers():
    layers = [random_logits(seed=0), random_logits(seed=1)]
    expected = (kl_to_uniform(layers[0]) + kl_to_uniform(layers[1])) / 2
    torch.testing.assert_close(load_balancing_loss(layers), expected)


# Hard load


def test_counts_leave_padding_out():
    indices = torch.tensor([[0, 1], [0, 2], [5, 5]])
    assert tokens_per_expert(indices, 6).tolist() == [2, 1, 1, 0, 0, 2]
    assert tokens_per_expert(indices, 6, torch.tensor([1, 1, 0])).tolist() == [2, 1, 1, 0, 0, 0]


def test_load_shares_sum_to_one():
    assert load_shares(torch.tensor([[1, 3], [0, 0]])).tolist() == [[0.25, 0.75], [0, 0]]


@pytest.mark.parametrize("counts, expected", [([9] * 8, 0), ([0] * 7 + [72], 7), ([1, 1, 1, 3], 1)])
def test_max_violation(counts, expected):
    assert max_violation(torch.tensor(counts)).item() == pytest.approx(expected)


# The bias


def test_the_bias_moves_by_gamma_towards_the_mean_load():
    step = update_expert_bias(torch.full((3,), 0.5), torch.tensor([4, 0, 2]), gamma=0.1)
    torch.testing.assert_close(step, torch.tensor([0.4, 0.6, 0.5]))


def test_the_bias_evens_out_a_skewed_router():
    scores = (random_logits(2000, scale=0.5) + torch.linspace(-1, 1, EXPERTS)).sigmoid()
    bias, violations = torch.zeros(EXPERTS), []
    for _ in range(400):
        counts = tokens_per_expert((scores + bias).topk(2).indices, EXPERTS)
        violations.append(max_violation(counts).item())
        bias = update_expert_bias(bias, counts, gamma=0.001)
    assert violations[0] > 1
    assert max(violations[-50:]) < 0.1


@pytest.fixture
def router():
    router = DeepseekV3TopkRouter(preset("tiny"))
    router.weight.data = torch.randn(EXPERTS, 72, generator=torch.Generator().manual_seed(0)) / 4
    return router


def test_a_bias_that_changes_no_choice_changes_nothing(router):
    x = torch.randn(16, 72, generator=torch.Generator().manual_seed(1))
    _, weights, indices = router(x)
    router.e_score_correction_bias.fill_(100.0)
    _, biased_weights, biased_indices = router(x)
    assert torch.equal(biased_indices.sort().values, indices.sort().values)
    torch.testing.assert_close(biased_weights.sort().values, weights.sort().values)


def test_a_bias_chooses_experts_and_never_weighs_them(router):
    x = torch.randn(16, 72, generator=torch.Generator().manual_seed(1))
    before = router(x)[2]
    router.e_score_correction_bias[:2] = 100.0
    logits, weights, indices = router(x)
    assert (indices.sort().values == torch.tensor([0, 1])).all() and not torch.equal(before, indices)
    scores = logits.sigmoid().gather(1, indices)
    torch.testing.assert_close(weights, scores / scores.sum(-1, keepdim=True))
