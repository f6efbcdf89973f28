"""What both decode kernels are held to: outputs and new cache entries by the reference, and bits that no batch changes."""

import numpy as np
import pytest

from deepseek.kernels.reference import to_float32

LENGTHS = [1, 2, 3, 7, 64, 130, 600]  # of each sequence, with the new token
every_dtype = pytest.mark.parametrize("dtype", [np.float32, np.uint16])


def stored(values, dtype):
    return (values.view(np.uint32) >> 16).astype(np.uint16) if dtype == np.uint16 else values


def assert_equals_reference(outputs, caches, expected, entries, before, dtype):
    """The kernel's outputs and caches are those expected, and its caches begin with the entries `before`."""
    is_bf16 = dtype == np.uint16
    np.testing.assert_allclose(
        [to_float32(cache[-1]) for cache in caches], entries, rtol=2**-8 if is_bf16 else 1e-5, atol=1e-5
    )
    np.testing.assert_allclose(outputs, expected, atol=3e-2 if is_bf16 else 2e-5)
    for cache, old in zip(caches, before):
        assert np.array_equal(to_float32(cache[:-1]), old), "earlier entries stay"


def assert_bits_are_those_alone(run, inputs, dtype):
    """`run(inputs, dtype, rows, num_threads)` gives every sequence the same bits in any batch and on any number of threads."""
    alone = np.concatenate([run(inputs, dtype, slice(r, r + 1))[0] for r in range(len(LENGTHS))])
    for num_threads in (1, 2, 3):
        for rows in (slice(0, 4), slice(None)):
            assert np.array_equal(run(inputs, dtype, rows, num_threads)[0], alone[rows])
