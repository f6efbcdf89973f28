"""Packed layers against torch's products, and what each weight format stores."""

import numpy as np
import pytest
import torch

from deepseek.inference import packed_linear
from deepseek.inference.packed_linear import PackedLinear


@pytest.mark.parametrize("weights, dtype", [("model", np.float32), ("bf16", np.uint16), ("int8", np.int8)])
@torch.inference_mode()
def test_layers_that_share_an_input_are_one_product(weights, dtype):
    layers, x = [torch.nn.Linear(24, 10), torch.nn.Linear(24, 7, bias=False)], torch.randn(5, 24)
    packed = PackedLinear(weights, *layers)
    assert packed.matrix.dtype == dtype
    expected = torch.cat([layer(x) for layer in layers], 1).numpy()
    tolerance = {"model": 1e-5, "bf16": 2e-2, "int8": 5e-2}[weights]
    np.testing.assert_allclose(packed(x.numpy(), 1), expected, atol=tolerance)


def test_weights_that_bf16_represents_exactly_are_stored_in_it():
    assert PackedLinear("model", torch.randn(4, 8).bfloat16().float()).matrix.dtype == np.uint16


def test_int8_is_within_half_a_step_of_every_weight():
    weight = torch.randn(300, 128)
    packed, step = PackedLinear("int8", weight), weight.abs().amax(1) / 127
    restored = torch.from_numpy(packed.matrix[0]) * torch.from_numpy(packed.scale[0])[:, None]
    assert ((restored - weight).abs() <= step[:, None] * 0.5001).all()


@torch.inference_mode()
def test_order_permutes_the_outputs():
    layers, x, order = [torch.nn.Linear(24, 10), torch.nn.Linear(24, 7)], torch.randn(5, 24).numpy(), torch.randperm(17)
    permuted = PackedLinear("model", *layers, order=order)(x, 1)
    np.testing.assert_array_equal(permuted, PackedLinear("model", *layers)(x, 1)[:, order.numpy()])


def test_exact_weights_are_copied_to_bf16_only_where_memory_allows_it(monkeypatch):
    exact = torch.randn(3, 4, 8).bfloat16().float()
    monkeypatch.setattr(packed_linear, "free_memory", lambda: 1000)
    packed = PackedLinear("model", exact)
    assert packed.matrix.ctypes.data == exact.data_ptr()
    monkeypatch.setattr(packed_linear, "free_memory", lambda: None)  # unknown
    assert PackedLinear("model", exact).matrix.dtype == np.uint16


def test_bfloat16_and_stacked_weights_are_not_copied():
    stored = torch.randn(3, 4, 8).bfloat16()
    assert PackedLinear("model", stored).matrix.ctypes.data == stored.data_ptr()
