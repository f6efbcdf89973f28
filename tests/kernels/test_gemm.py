"""The compiled loops against NumPy and torch, and against themselves in other company."""

import numpy as np
import pytest
import torch

from deepseek.inference.packed_linear import PackedLinear
from deepseek.kernels import ops

KINDS = ["float32", "bfloat16", "int8"]


def product(kind, rows, columns, texts, seed=0):
    """(a Product whose matrix is kept as `kind`, the same matrix in float64, x)."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.empty(rows, columns).normal_(generator=generator)
    x = torch.empty(texts, columns).normal_(generator=generator).numpy()
    if kind == "int8":
        made = PackedLinear("int8", weight)
        return made, made.matrix[0].astype(np.float64) * made.scale[0][:, None], x
    weight = weight.bfloat16().float() if kind == "bfloat16" else weight
    made = PackedLinear("model", weight)
    assert made.matrix.dtype == (np.uint16 if kind == "bfloat16" else np.float32)
    return made, weight.double().numpy(), x


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows, columns, texts", [(64, 96, 1), (67, 33, 5), (3, 7, 9), (128, 64, 4), (1, 1, 1)])
def test_a_product_is_the_product(kind, rows, columns, texts):
    made, matrix, x = product(kind, rows, columns, texts)
    assert np.abs(made(x, threads=1) - x @ matrix.T).max() < 1e-4


def test_rows_may_have_matrices_of_their_own():
    weight, x = torch.randn(4, 10, 24), np.random.randn(7, 24).astype(np.float32)
    ends = np.array([2, 2, 6, 7])  # the second has no rows
    found = PackedLinear("model", weight)(x, 1, ends)
    for matrix, start, end in zip(weight.numpy(), [0, 2, 2, 6], ends):
        assert np.abs(found[start:end] - x[start:end] @ matrix.T).max(initial=0) < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_the_same_to_the_last_bit_in_any_company_and_on_any_number_of_threads(kind):
    made, _, x = product(kind, 1030, 200, 11)
    alone = np.concatenate([made(x[r : r + 1], threads=1) for r in range(11)])
    for threads in (1, 2, 3):
        for count in (1, 2, 3, 4, 7, 8, 11):
            assert np.array_equal(made(x[:count], threads), alone[:count])


def test_int8_keeps_every_row_within_half_a_step():
    weight = torch.randn(300, 128)
    made, step = PackedLinear("int8", weight), weight.abs().amax(1) / 127
    restored = torch.from_numpy(made.matrix[0]) * torch.from_numpy(made.scale[0])[:, None]
    assert ((restored - weight).abs() <= step[:, None] * 0.5001).all()


def test_the_norm_is_torch_s():
    x, weight = torch.randn(3, 70), torch.randn(64)
    expected = torch.nn.functional.rms_norm(x[:, :64], (64,), weight, 1e-6)
    assert torch.allclose(torch.from_numpy(ops.rms_norm(x.numpy(), 0, weight.numpy(), 1e-6)), expected, atol=1e-6)


def test_the_gate_is_torch_s_from_end_to_end_of_its_range():
    gate, up = torch.linspace(-200, 200, 1001)[None], torch.randn(1, 1001)
    found = torch.from_numpy(ops.silu_and_mul(torch.cat([gate, up], 1).numpy()))
    assert torch.allclose(found, torch.nn.functional.silu(gate) * up, rtol=1e-5, atol=1e-30)


def test_routing_chooses_by_rank_and_weighs_by_score():
    logits, bias = torch.randn(50, 8), torch.randn(50, 8)
    bias[0, 3], bias[1, 4] = torch.inf, -torch.inf
    indices, weights = ops.topk_route(logits.numpy(), bias.numpy(), 2, 2.5)
    scores = logits.sigmoid()
    expected = (scores + bias).topk(2, -1).indices
    assert indices.tolist() == expected.tolist() and indices[0, 0] == 3 and 4 not in indices[1]
    kept = scores.gather(1, expected)
    assert torch.allclose(torch.from_numpy(weights), 2.5 * kept / kept.sum(-1, keepdim=True), atol=1e-6)


def test_a_number_that_is_not_one_stays_visible():
    made, _, x = product("float32", 8, 16, 1)
    x[0, 3] = np.nan
    assert np.isnan(made(x, threads=1)).all() and np.isnan(ops.rms_norm(x, 0, np.ones(16, np.float32), 1e-6)).all()
