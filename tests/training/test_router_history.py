"""The figures of how routers change, against the definitions of the papers computed token by token."""

import itertools
import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from deepseek.training import runs
from deepseek.training.router_history import RouterRecord, co_activation, reassigned, router_curves, saturation

ROOT = Path(__file__).parents[2]
LAYERS, EXPERTS, TOKENS, K = 2, 6, 40, 2


def record(step, seed, tokens=None, experts=EXPERTS, k=K):
    """Random choices, more of them for the first experts."""
    rng = random.Random(seed)
    words = tokens or [f"w{rng.randrange(9)}" for _ in range(TOKENS)]

    def choices():
        ranks = sorted(range(experts), key=lambda expert: rng.random() * (expert + 1))
        return ranks[:k]

    values = {"tokens": words, "layers": [1, 2], "experts": experts}
    values["indices"] = [[choices() for _ in words] for _ in range(LAYERS)]
    values["bias"] = [[rng.uniform(-1, 1) for _ in range(experts)] for _ in range(LAYERS)]
    return RouterRecord.parse(step, json.loads(json.dumps(values)))


def common(ours, theirs, k):
    """The mean fraction of k experts that two tokens have in common."""
    return np.mean([len(a & b) / k for a, b in zip(ours, theirs)])


def test_router_saturation_is_the_fraction_of_experts_in_common_with_the_newest_checkpoint():
    """OLMoE, section 5.1. Its control is the exact mean over all orders of the tokens, here of four."""
    words = ["a", "b", "a", "c"]
    old, new = record(0, 1, words), record(5, 2, words)
    for k, depth in ((1, 1), (None, K)):
        value, chance = saturation(old, new, k)
        for layer in range(LAYERS):
            ours, theirs = ([set(choice[:depth]) for choice in each.indices[layer].tolist()] for each in (old, new))
            assert value[layer] == pytest.approx(common(ours, theirs, depth))
            orders = [common(ours, order, depth) for order in itertools.permutations(theirs)]
            assert chance[layer] == pytest.approx(np.mean(orders))
    assert saturation(new, new)[0].tolist() == [1, 1]


def test_vocabulary_specialization_is_the_share_of_a_words_most_frequent_expert():
    one = record(0, 3)
    for layer in range(LAYERS):
        experts = {}
        for word, choice in zip(one.tokens, one.indices[layer].tolist()):
            experts.setdefault(word, []).append(choice[0])
        shares = [Counter(each).most_common(1)[0][1] / len(each) for each in experts.values() if len(each) > 1]
        assert one.vocabulary[0, layer] == pytest.approx(np.mean(shares))
    assert (one.vocabulary[1] < 1).all() and one.vocabulary[1] == pytest.approx(one.vocabulary[0], abs=0.15)
    by_word = record(0, 4)
    by_word.indices[..., 0] = np.unique(by_word.tokens, return_inverse=True)[1] % EXPERTS
    assert by_word.vocabulary[0].tolist() == [1, 1] and (by_word.vocabulary[1] < 0.7).all()
    assert np.isnan(record(0, 5, tokens=["a", "b", "c"]).vocabulary).all(), "no word comes again"


def test_co_activation_is_the_share_of_an_experts_tokens_that_its_most_frequent_partner_gets_too():
    one = record(0, 6)
    for layer in range(LAYERS):
        tokens = [set(choice) for choice in one.indices[layer].tolist()]
        with_partner = 0
        for expert in range(EXPERTS):
            others = [sum({expert, other} <= token for token in tokens) for other in range(EXPERTS) if other != expert]
            with_partner += max(others)
        assert one.partners[0, layer] == pytest.approx(with_partner / (TOKENS * K))
    assert one.partners[1] == pytest.approx(one.partners[0], abs=0.12), "what was random is what chance gives"
    assert co_activation(np.array([[[0], [1]]]), 2).tolist() == [0], "one expert a token has no partner"


@pytest.mark.parametrize("experts, k", [(6, 2), (32, 8), (4, 4)])
def test_experts_dealt_out_again_keep_their_loads_and_lose_their_partners(experts, k):
    rng = np.random.default_rng(0)
    first = k * rng.integers(experts // k, size=(LAYERS, 200, 1))
    together = first + np.arange(k)  # experts 0 to k - 1 always together, and so on
    dealt = reassigned(together, rng)
    for before, after in zip(together, dealt):
        assert (np.bincount(before.ravel()) == np.bincount(after.ravel())).all()
        assert all(len(set(token)) == k for token in after.tolist())
    assert (co_activation(together, experts) == 1).all()
    if k < experts:
        many = [reassigned(together, np.random.default_rng(seed)) for seed in range(1, 4)]
        longer = [reassigned(reassigned(each, rng), rng) for each in many]
        expected = np.mean([co_activation(each, experts) for each in longer])
        assert np.mean([co_activation(each, experts) for each in many]) == pytest.approx(expected, abs=0.02)
        assert expected < 0.75


def test_load_max_violation_and_bias():
    one = record(0, 7)
    counts = Counter(expert for choice in one.indices[1].tolist() for expert in choice)
    assert one.load[1].tolist() == [counts[expert] / (TOKENS * K) for expert in range(EXPERTS)]
    assert one.max_violation[1] == pytest.approx(max(counts.values()) / (TOKENS * K / EXPERTS) - 1)
    assert one.bias_spread[0] == pytest.approx(max(one.bias[0]) - min(one.bias[0]))


def test_curves_hold_every_checkpoint_of_the_same_tokens():
    words = record(0, 8).tokens
    records = [record(0, 8), *(record(step, step, words) for step in (5, 10, 15))]
    records.insert(2, record(7, 9, [*words[:-1], "other"]))  # resumed with other held-out texts, and back
    curves = router_curves(records)
    assert curves["steps"] == [0, 5, 10, 15] and curves["layers"] == [1, 2]
    assert json.dumps(curves, allow_nan=False)
    expected = saturation(records[1], records[-1], 1)
    assert curves["curves"]["saturation_top_1"][1] == pytest.approx(expected[0], abs=1e-5)
    assert curves["chance"]["saturation_top_1"][1] == pytest.approx(expected[1], abs=1e-5)
    assert curves["curves"]["saturation_top_k"][-1] == [1, 1]
    assert curves["curves"]["max_violation"][-1] == pytest.approx(records[-1].max_violation, abs=1e-5)
    assert router_curves([])["steps"] == []


def test_a_run_of_version_0_1_has_curves_from_its_probes():
    history = runs.history(ROOT / "tests" / "fixtures" / "v0.1" / "runs" / "old")
    curves = router_curves(history.router_records)
    assert curves["steps"] == [step for step, _ in history.probes] and len(curves["steps"]) > 1
    assert curves["curves"]["saturation_top_k"][-1] == [1] and curves["curves"]["bias_spread"][-1] == [None]
