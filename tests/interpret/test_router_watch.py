"""The watch over a router's code, on rules written out here; test_families.py has those of transformers."""

import pytest
import torch

from deepseek.interpret.router_watch import RouterWatch, steered

LOGITS = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
BIAS = torch.tensor([0.5, -0.5, 0.0, 0.3, -0.2, 0.1])


def softmax_first(logits):
    weights, indices = logits.softmax(-1).topk(2, -1)
    return weights / weights.sum(-1, keepdim=True), indices


def softmax_last(logits):
    values, indices = torch.topk(logits, 2)
    return torch.nn.functional.softmax(values, -1), indices


def biased_sigmoid(logits):
    scores = torch.sigmoid(logits)
    indices = torch.topk(scores + BIAS, k=2, dim=-1, sorted=False)[1]
    return scores.gather(1, indices), indices


def one_by_one(logits):
    """The best of all, weighed among all; then the best of the others, weighed among them."""
    first = logits.max(-1, keepdim=True)[1]
    left = logits.scatter(-1, first, -torch.inf)
    second = left.max(dim=-1, keepdim=True)[1]
    weights = [part.softmax(-1).gather(-1, index) for part, index in ((logits, first), (left, second))]
    return torch.cat(weights, -1), torch.cat([first, second], -1)


def watched(rule, *biased):
    bias_E = torch.zeros(6)
    for expert, bias in biased:
        bias_E[expert] = bias
    watch = RouterWatch(6, 2, bias_E)
    watch.start()
    weights, indices = rule(LOGITS.clone())
    watch.stop()
    return watch, weights, indices


@pytest.mark.parametrize("rule", [softmax_first, softmax_last, one_by_one])
@pytest.mark.parametrize("expert", range(6))
def test_a_barred_expert_leaves_the_rule_of_the_others(rule, expert):
    _, weights, indices = watched(rule, (expert, -torch.inf))
    others = [e for e in range(6) if e != expert]
    want_weights, want = rule(LOGITS[:, others])
    assert torch.equal(indices, torch.tensor(others)[want])
    torch.testing.assert_close(weights, want_weights)


def test_a_bias_still_ranks_and_does_not_weigh():
    watch, weights, indices = watched(biased_sigmoid, (0, -torch.inf))
    rank = (LOGITS.sigmoid() + BIAS)[:, 1:]
    assert torch.equal(indices.sort(-1).values, (rank.topk(2).indices + 1).sort(-1).values)
    assert torch.equal(weights, LOGITS.sigmoid().gather(1, indices))
    assert torch.equal(watch.scores, LOGITS.sigmoid()) and torch.equal(watch.ranks, LOGITS.sigmoid() + BIAS)
    assert watch.scoring == "sigmoid"


@pytest.mark.parametrize("rule", [softmax_first, softmax_last, biased_sigmoid, one_by_one])
def test_a_forced_expert_takes_the_place_of_the_lowest_ranked(rule):
    _, own = rule(LOGITS.clone())
    watch, weights, indices = watched(rule, (3, torch.inf))
    assert (indices == 3).any(-1).all() and weights.isfinite().all()
    best = [set(chosen) for chosen in own[:, :2].tolist()]
    assert all(set(chosen) - {3} < before for chosen, before in zip(indices.tolist(), best))


@pytest.mark.parametrize("rule", [softmax_first, softmax_last, one_by_one])
def test_scores_are_the_softmax_of_all_experts(rule):
    watch, weights, indices = watched(rule)
    torch.testing.assert_close(watch.scores, LOGITS.softmax(-1))
    assert watch.scoring == "softmax" and torch.equal(rule(LOGITS.clone())[1], indices)


@pytest.mark.parametrize("rule", [softmax_first, softmax_last, biased_sigmoid, one_by_one])
@pytest.mark.parametrize("strength", [-1.0, -0.4, 0.4, 1.0])
def test_a_steered_expert_runs_more_or_less_and_at_strength_1_always_or_never(rule, strength):
    _, own_weights, own = watched(rule)
    _, weights, indices = watched(rule, (3, strength))
    before, after = ((chosen == 3).any(-1) for chosen in (own, indices))
    assert (after >= before).all() if strength > 0 else (after <= before).all()
    if abs(strength) == 1:
        assert after.all() if strength > 0 else not after.any()
    else:
        assert before.sum() != after.sum() and not after.all() and after.any()
    assert weights.isfinite().all()
    untouched = ~before & ~after
    assert torch.equal(indices[untouched], own[untouched])
    if rule is not one_by_one:  # there every expert's weight depends on the scores of those left
        torch.testing.assert_close(weights[untouched], own_weights[untouched])


def test_at_strength_1_the_scores_are_those_of_steer_moe():
    """Its code sets log-softmax scores to the largest of the token + 0.01, or the smallest - 0.01, before softmax and top-k."""
    scores = LOGITS.log_softmax(-1)
    theirs = scores.clone()
    theirs[:, 3], theirs[:, 1] = scores.max(-1).values + 0.01, scores.min(-1).values - 0.01
    want = theirs.softmax(-1).topk(2)
    _, weights, indices = watched(softmax_last, (3, 1.0), (1, -1.0))
    assert torch.equal(indices, want.indices) and (indices[:, 0] == 3).all()
    torch.testing.assert_close(weights, want.values / want.values.sum(-1, keepdim=True), atol=0.02, rtol=0)
    torch.testing.assert_close(watched(softmax_first, (3, 1.0), (1, -1.0))[1], weights, atol=0.03, rtol=0)


def test_steering_adds_an_offset_that_grows_with_the_strength():
    row = torch.tensor([[0.1, 0.9, 0.5, 0.3]])
    for strength in (0.0, 0.25, 0.5, 1.0):
        moved = steered(row, torch.tensor([strength, 0, 0, 0]))
        assert torch.equal(moved[0, 1:], row[0, 1:])
        assert moved[0, 0].item() == pytest.approx(0.1 + strength * (0.9 + 0.01 * 0.8 - 0.1))
    both = steered(row, torch.tensor([1.0, 0, 1.0, -1.0]))[0]
    assert both[2] > both[0] > both[1] > both[3] and both[3] < 0.1  # of two above all, the own order
    excluded = steered(torch.tensor([[0.1, -torch.inf, 0.4]]), torch.tensor([1.0, 1.0, 0.0]))
    assert excluded[0, 1] == -torch.inf and excluded[0, 0] > 0.4 and excluded.isnan().sum() == 0


def test_a_bias_may_be_of_each_token_or_a_function_of_the_ranks():
    own = softmax_first(LOGITS)[1]
    bias_TE = torch.zeros(20, 6)
    bias_TE[4, own[4, 0]] = -torch.inf
    watch = RouterWatch(6, 2, bias_TE)
    watch.start()
    _, indices = softmax_first(LOGITS)
    watch.stop()
    assert torch.equal(indices[torch.arange(20) != 4], own[torch.arange(20) != 4])
    assert indices[4].tolist() == LOGITS[4].topk(3).indices[1:].tolist()
    watch = RouterWatch(6, 2, lambda ranks: torch.zeros_like(ranks).scatter(-1, ranks.topk(2).indices, -torch.inf))
    watch.start()
    _, indices = softmax_first(LOGITS)
    watch.stop()
    assert torch.equal(indices, LOGITS.topk(4).indices[:, 2:])
