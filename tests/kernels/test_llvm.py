"""Conversions and the exponential against torch and NumPy; tests of gemm and mla_decode cover the rest."""

import numba
import numpy as np
import torch

from deepseek.kernels import llvm


@numba.njit
def converted(values, like):
    """(values rounded to the dtype of `like`, the same back in float32, e to the values)."""
    stored, restored, powers = np.empty_like(like), np.empty_like(values), np.empty_like(values)
    for n in range(len(values)):
        stored[n] = llvm.from_float(values[n], like[0])
        restored[n] = llvm.to_float(stored[n])
        powers[n] = llvm.exp(values[n])
    return stored, restored, powers


def test_bfloat16_is_that_of_torch_and_exp_that_of_numpy():
    values = np.concatenate([np.linspace(-87, 88, 1001), [0, 1 + 2**-8, 1 + 3 * 2**-8]]).astype(np.float32)
    stored, restored, powers = converted(values, np.empty(len(values), np.uint16))
    expected = torch.from_numpy(values).bfloat16()
    assert np.array_equal(stored, expected.view(torch.uint16).numpy())
    assert np.array_equal(restored, expected.float().numpy())
    np.testing.assert_allclose(powers, np.exp(values.astype(np.float64)), rtol=1e-6)
    assert np.array_equal(converted(values, np.empty_like(values))[1], values), "float32 is not rounded"
