"""Softmax, top-k, top-p and drawing against their NumPy references, which sort the whole vocabulary."""

import math

import numpy as np
import pytest

from deepseek.kernels import reference
from deepseek.kernels.sampling import lookup_probs, sample_index, softmax_entropy, top_k_indices, top_p_indices

every_size = pytest.mark.parametrize("size", [1, 2, 7, 65, 79, 200, 5000])
with_and_without_ties = pytest.mark.parametrize("ties", [False, True])


def random_logits(seed, size, ties=False):
    logits_N = 4 * np.random.default_rng(seed).standard_normal(size).astype(np.float32)
    return logits_N.round() if ties else logits_N


@every_size
@pytest.mark.parametrize("scale", [0, 1, 30, 1e4])
def test_softmax_entropy(size, scale):
    for seed in range(20):
        logits_N = np.float32(scale) * random_logits(seed, size)
        probs_N, entropy = softmax_entropy(logits_N)
        expected_N, expected_entropy = reference.softmax_entropy(logits_N)
        np.testing.assert_allclose(probs_N, expected_N, rtol=2e-5, atol=1e-37)
        assert entropy >= 0
        assert entropy == pytest.approx(expected_entropy, rel=1e-5, abs=1e-5)


def test_a_removed_token_has_no_probability():
    probs_N, entropy = softmax_entropy(np.array([1, -math.inf, 1, -200], np.float32))
    assert probs_N.tolist() == [0.5, 0, 0.5, 0] and entropy == pytest.approx(math.log(2))


@every_size
@with_and_without_ties
def test_top_k_keeps_the_k_highest_and_all_equal_to_the_kth(size, ties):
    for seed in range(50):
        logits_N = random_logits(seed, size, ties)
        logits_N[:: seed + 2] = -math.inf  # tokens that the model rules out
        for k in (1, 3, 50, 400, 10_000):
            assert np.array_equal(top_k_indices(logits_N, k), reference.top_k_indices(logits_N, k))


@every_size
@with_and_without_ties
@pytest.mark.parametrize("p", [0.001, 0.3, 0.95, 0.9999])
def test_top_p_keeps_the_fewest_that_reach_p(size, ties, p):
    """Sums in float32 may stop one token earlier or later than exact ones."""
    for seed in range(50):
        probs_N, _ = softmax_entropy(random_logits(seed, size, ties))
        indices = top_p_indices(probs_N, p)
        order = np.argsort(-probs_N, kind="stable")
        assert indices.tolist() == sorted(order[: len(indices)])
        total = probs_N[indices].sum(dtype=np.float64)
        assert total > p - 4e-6 and total - probs_N[indices].min() < p + 4e-6


@pytest.mark.parametrize("p, kept", [(0.5, [1]), (0.6, [0, 1]), (0.75, [0, 1]), (0.76, [0, 1, 3]), (0.999, [0, 1, 3])])
def test_top_p_keeps_the_first_of_equal_probabilities(p, kept):
    probs_N = np.array([0.25, 0.5, 0, 0.25], np.float32)
    assert top_p_indices(probs_N, p).tolist() == kept == reference.top_p_indices(probs_N, p).tolist()


def test_an_index_is_drawn_as_often_as_it_is_probable():
    probs_N = np.array([0, 0.5, 0, 0.125, 0.375, 0], np.float32)
    uniforms = np.linspace(0, 1, 800, endpoint=False)
    drawn = [sample_index(probs_N, uniform) for uniform in uniforms]
    assert np.bincount(drawn, minlength=6).tolist() == [0, 400, 0, 100, 300, 0]
    assert drawn == [reference.sample_index(probs_N, uniform) for uniform in uniforms]
    assert sample_index(probs_N, 1 - 2**-53) == 4
    probs_N, _ = softmax_entropy(random_logits(0, 5000))
    for uniform in np.random.default_rng(0).random(50):
        assert sample_index(probs_N, uniform) == reference.sample_index(probs_N, uniform)


def test_probabilities_are_looked_up_by_id():
    ids_N, probs_N = np.array([2, 3, 7, 11]), np.array([0.1, 0, 0.3, 0.6], np.float32)
    probs_M, is_candidate_M = lookup_probs(ids_N, probs_N, np.array([11, 0, 3, 2, 5, 12]))
    assert probs_M.tolist() == np.array([0.6, 0, 0, 0.1, 0, 0], np.float32).tolist()
    assert is_candidate_M.tolist() == [True, False, True, True, False, False]
