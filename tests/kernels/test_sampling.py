"""The loops of a draw, beside the same by putting the whole vocabulary in order."""

import math

import numpy as np
import pytest
import torch

from deepseek.kernels.sampling import (
    array_equal,
    lookup_probs,
    sample_index,
    softmax_entropy,
    top_k_indices,
    top_p_indices,
)

SIZES = [1, 2, 7, 65, 200, 5000]


def random_logits(seed, size, ties=False):
    logits_N = 4 * torch.randn(size, generator=torch.Generator().manual_seed(seed))
    return logits_N.round() if ties else logits_N


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scale", [0, 1, 30, 1e4])
def test_probabilities_and_their_entropy(size, scale):
    for seed in range(20):
        logits_N = scale * random_logits(seed, size)
        shares_N, entropy = softmax_entropy(logits_N.numpy())
        expected_N = logits_N.double().softmax(-1)
        np.testing.assert_allclose(shares_N, expected_N, rtol=2e-5, atol=1e-37)
        assert entropy >= 0
        assert entropy == pytest.approx(torch.special.entr(expected_N).sum().item(), rel=1e-5, abs=1e-5)


def test_a_token_that_is_ruled_out_has_no_probability():
    shares_N, entropy = softmax_entropy(np.array([1, -math.inf, 1, -200], np.float32))
    assert shares_N.tolist() == [0.5, 0, 0.5, 0] and entropy == pytest.approx(math.log(2))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("ties", [False, True])
def test_the_highest_are_those_of_a_sort_and_whatever_is_as_high_as_the_last(size, ties):
    for seed in range(50):
        logits_N = random_logits(seed, size, ties)
        logits_N[:: seed + 2] = -math.inf  # as of a model that rules tokens out
        for count in (1, 3, 50, 400, 10_000):
            lowest = logits_N.sort(descending=True).values[min(count, size) - 1]
            assert top_k_indices(logits_N.numpy(), count).tolist() == (logits_N >= lowest).nonzero()[:, 0].tolist()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("p", [0.001, 0.3, 0.95, 0.9999])
def test_the_nucleus_is_that_of_a_sort(size, ties, p):
    for seed in range(50):
        shares_N, _ = softmax_entropy(random_logits(seed, size, ties).numpy())
        kept = top_p_indices(shares_N, p)
        order = np.argsort(-shares_N, kind="stable")
        assert kept.tolist() == sorted(order[: len(kept)])
        whole = shares_N[kept].sum(dtype=np.float64)
        assert whole > p - 4e-6 and whole - shares_N[kept].min() < p + 4e-6


@pytest.mark.parametrize("p, kept", [(0.5, [1]), (0.6, [0, 1]), (0.75, [0, 1]), (0.76, [0, 1, 3]), (0.999, [0, 1, 3])])
def test_of_equal_shares_the_first_are_kept_and_only_as_many_as_needed(p, kept):
    assert top_p_indices(np.array([0.25, 0.5, 0, 0.25], np.float32), p).tolist() == kept


def test_a_share_is_hit_as_often_as_it_is_large_and_one_of_nothing_never():
    shares_N = np.array([0, 0.5, 0, 0.125, 0.375, 0], np.float32)
    hits = [sample_index(shares_N, uniform) for uniform in np.linspace(0, 1, 800, endpoint=False)]
    assert np.bincount(hits, minlength=6).tolist() == [0, 400, 0, 100, 300, 0]
    assert sample_index(shares_N, 1 - 2**-53) == 4


def test_candidates_are_found_by_their_ids():
    ids_N, shares_N = np.array([2, 3, 7, 11]), np.array([0.1, 0, 0.3, 0.6], np.float32)
    shares_M, there_M = lookup_probs(ids_N, shares_N, np.array([11, 0, 3, 2, 5, 12]))
    assert shares_M.tolist() == np.array([0.6, 0, 0, 0.1, 0, 0], np.float32).tolist()
    assert there_M.tolist() == [True, False, True, True, False, False]


def test_rows_are_alike_where_all_their_numbers_are():
    row = np.array([1, -math.inf, 3], np.float32)
    assert array_equal(row, row.copy())
    assert not array_equal(row, row[:2]) and not array_equal(row, np.array([1, -math.inf, 4], np.float32))
