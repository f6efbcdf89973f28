"""The balancing loss against torch's own KL divergence, and the bias against a skewed router."""

import math

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from deepseek.model.load_balancing import (
    kl_to_uniform,
    load_balancing_loss,
    load_shares,
    max_violation,
    sequence_balance_loss,
    tokens_per_expert,
    update_expert_bias,
)

NUM_EXPERTS = 8


def random_logits(rows=64, scale=3.0, seed=0):
    return scale * torch.randn(rows, NUM_EXPERTS, generator=torch.Generator().manual_seed(seed))


# The KL loss


@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
def test_kl_equals_torchs_divergence_of_the_mean_scores_from_uniform(scale):
    logits = random_logits(scale=scale)
    scores = logits.sigmoid()
    mean = (scores / scores.sum(-1, keepdim=True)).mean(0)
    expected = kl_divergence(Categorical(probs=mean), Categorical(probs=torch.ones(NUM_EXPERTS)))
    torch.testing.assert_close(kl_to_uniform(logits), expected, atol=1e-6, rtol=1e-5)


def test_kl_ranges_from_zero_to_log_of_num_experts():
    even = torch.full((5, NUM_EXPERTS), 1.7)
    collapsed = torch.full((5, NUM_EXPERTS), -20.0).index_fill(1, torch.tensor([3]), 20.0)
    assert kl_to_uniform(even).item() == pytest.approx(0, abs=1e-6)
    assert kl_to_uniform(collapsed).item() == pytest.approx(math.log(NUM_EXPERTS), abs=1e-5)
    assert kl_to_uniform(torch.eye(NUM_EXPERTS) * 40 - 20).item() == pytest.approx(0, abs=1e-6)  # even over the batch


def test_kl_gradient_equals_finite_differences_and_descends():
    logits = random_logits(rows=6, scale=1.0).double().requires_grad_()
    assert torch.autograd.gradcheck(kl_to_uniform, logits, eps=1e-2, atol=1e-4, rtol=1e-2)  # it computes in fp32
    loss = kl_to_uniform(logits)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert kl_to_uniform(logits - gradient) < loss


def test_kl_excludes_padding():
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


# The balance loss within sequences


def test_sequence_balance_loss_equals_the_equations_by_the_letter():
    """DeepSeek-V3, section 2.1.2, equations 17 to 20, in loops, without alpha."""
    layers, top_k, length = [random_logits(12, seed=0), random_logits(12, seed=1)], 2, 4
    losses = []
    for logits in layers:
        for scores in logits.sigmoid().split(length):
            for i in range(NUM_EXPERTS):
                chosen = sum(i in row.topk(top_k).indices for row in scores)
                f_i = NUM_EXPERTS / (top_k * length) * chosen
                p_i = sum(row[i] / row.sum() for row in scores) / length
                losses.append(f_i * p_i)
    expected = torch.stack(losses).sum() / 6  # over layers and sequences
    torch.testing.assert_close(sequence_balance_loss(layers, top_k, num_sequences=3), expected)


def test_sequence_balance_loss_sees_what_evens_out_over_the_batch():
    """Two sequences that use an expert each, the other's never: even together, as uneven as can be alone."""
    one_each = torch.full((8, 2), -20.0)
    one_each[:4, 0] = one_each[4:, 1] = 20.0
    assert kl_to_uniform(one_each).item() == pytest.approx(0, abs=1e-6)
    assert sequence_balance_loss([one_each], 1, num_sequences=1).item() == pytest.approx(1)
    assert sequence_balance_loss([one_each], 1, num_sequences=2).item() == pytest.approx(2)


# Counts


def test_counts_exclude_padding():
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
    bias = update_expert_bias(torch.full((3,), 0.5), torch.tensor([4, 0, 2]), gamma=0.1)
    torch.testing.assert_close(bias, torch.tensor([0.4, 0.6, 0.5]))


def test_the_bias_balances_a_skewed_router():
    scores = (random_logits(2000, scale=0.5) + torch.linspace(-1, 1, NUM_EXPERTS)).sigmoid()
    bias, violations = torch.zeros(NUM_EXPERTS), []
    for _ in range(400):
        counts = tokens_per_expert((scores + bias).topk(2).indices, NUM_EXPERTS)
        violations.append(max_violation(counts).item())
        bias = update_expert_bias(bias, counts, gamma=0.001)
    assert violations[0] > 1
    assert max(violations[-50:]) < 0.1
