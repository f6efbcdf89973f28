"""Norm, activation, routing and rotary embedding against the NumPy reference."""

import numba
import numpy as np
import pytest

from deepseek.kernels import ops, reference


@pytest.fixture
def normal():
    generator = np.random.default_rng(0)
    return lambda *shape: generator.standard_normal(shape).astype(np.float32)


def test_rms_norm(normal):
    x, weight = normal(3, 70), normal(64)
    for offset in (0, 6):
        expected = reference.rms_norm(x, offset, weight, 1e-6)
        np.testing.assert_allclose(ops.rms_norm(x, offset, weight, 1e-6), expected, atol=1e-6)
    x[0, 3] = np.nan
    assert np.isnan(ops.rms_norm(x, 0, weight, 1e-6)[0]).all(), "nan propagates"


def test_silu_and_mul_over_the_whole_range_of_gates(normal):
    gate_up = np.concatenate([np.linspace(-200, 200, 1001, dtype=np.float32)[None], normal(1, 1001)], 1)
    np.testing.assert_allclose(ops.silu_and_mul(gate_up), reference.silu_and_mul(gate_up), rtol=1e-5, atol=1e-30)


def test_router_scores(normal):
    logits = 20 * normal(50, 8)
    for name in ("sigmoid", "softmax"):
        expected = getattr(reference, name)(logits.astype(np.float64))
        np.testing.assert_allclose(getattr(ops, name)(logits), expected, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("normalize", [True, False])
def test_topk_route(normal, normalize):
    scores, bias = reference.sigmoid(normal(50, 8)), normal(50, 8)
    bias[0, 3], bias[1, 4] = np.inf, -np.inf
    offset = np.abs(normal(50, 8))
    indices, weights = ops.topk_route(scores, bias, offset, 2, normalize, 2.5)
    expected_indices, expected_weights = reference.topk_route(scores, bias, offset, 2, normalize, 2.5)
    assert indices.tolist() == expected_indices.tolist() and indices[0, 0] == 3 and 4 not in indices[1]
    np.testing.assert_allclose(weights, expected_weights, atol=1e-6)


@pytest.mark.parametrize("num_tokens", [1, 5, 64, 130])
def test_exp_scores_of_a_softmax(normal, num_tokens):
    @numba.njit
    def softmax(scores, scale):
        return scores / ops.exp_scores(scores, scale)

    scores = 20 * normal(num_tokens)
    np.testing.assert_allclose(softmax(scores.copy(), 0.3), reference.softmax(0.3 * scores), rtol=1e-5, atol=1e-30)


def test_combine_experts(normal):
    outputs, weights, order = normal(10, 16), normal(5, 2), np.random.default_rng(0).permutation(10)
    y = normal(5, 16)
    expected = y.copy()
    ops.combine_experts(outputs, order, weights, y)
    reference.combine_experts(outputs, order, weights, expected)
    np.testing.assert_allclose(y, expected, atol=1e-6)


def test_apply_rotary_emb(normal):
    @numba.njit
    def rotate(x, cos, sin):
        y = np.zeros(12, np.float32)
        ops.apply_rotary_emb(x, 2, cos, sin, y, 3)
        return y

    x, cos, sin = normal(11), normal(4), normal(4)
    y = rotate(x, cos, sin)
    np.testing.assert_allclose(y[3:11], reference.apply_rotary_emb(x[2:10], cos, sin), atol=1e-6)
    assert not y[:3].any() and not y[11:].any()
