"""Latent attention of a decode step against the NumPy reference, and a sequence against itself in batches."""

import numpy as np
import pytest

from deepseek.kernels.mla_decode import mla_decode
from deepseek.kernels.reference import mla_decode as reference_decode
from deepseek.kernels.reference import to_float32

HEADS, NOPE, HALF, LATENT, VALUE, OFFSET = 5, 24, 4, 48, 20, 7
LENGTHS = [1, 2, 3, 7, 64, 130, 600]  # of each sequence, with the new token
every_dtype = pytest.mark.parametrize("dtype", [np.float32, np.uint16])


def stored(values, dtype):
    return (values.view(np.uint32) >> 16).astype(np.uint16) if dtype == np.uint16 else values


@pytest.fixture
def inputs():
    """The arguments of one decode step, in float32, and the caches before it."""
    generator, rows = np.random.default_rng(0), len(LENGTHS)

    def normal(*shape, scale=1.0):
        return (scale * generator.standard_normal(shape)).astype(np.float32)

    query, compressed = normal(rows, HEADS * (NOPE + 2 * HALF)), normal(rows, OFFSET + LATENT + 2 * HALF)
    angles = normal(rows, HALF)
    weights = normal(HEADS, LATENT, NOPE, scale=0.2), normal(HEADS, VALUE, LATENT, scale=0.2)
    caches = [normal(length - 1, LATENT + 2 * HALF) for length in LENGTHS]
    return query, compressed, normal(LATENT), np.cos(angles), np.sin(angles), *weights, caches


def run(inputs, dtype, rows=slice(None), num_threads=1):
    """(outputs, caches after the step) of the kernel for some of the sequences."""
    query, compressed, norm, cos, sin, up_key, up_value, caches = inputs
    entry = np.zeros((1, LATENT + 2 * HALF), np.float32)
    caches = [stored(np.concatenate([cache, entry]), dtype) for cache in caches[rows]]
    pointers = np.array([(cache.ctypes.data, len(cache)) for cache in caches])
    step = query[rows], compressed[rows], OFFSET, norm, 1e-6, cos[rows], sin[rows]
    weights = stored(up_key, dtype), stored(up_value, dtype)
    return mla_decode(*step, *weights, 0.2, pointers, caches[0][0], num_threads), caches


@every_dtype
@pytest.mark.parametrize("num_threads", [1, 2])
def test_outputs_and_new_entries_equal_the_reference(inputs, dtype, num_threads):
    outputs, caches = run(inputs, dtype, num_threads=num_threads)
    query, compressed, norm, cos, sin, *weights, before = inputs
    weights, before = ([to_float32(stored(x, dtype)) for x in arrays] for arrays in (weights, before))
    expected, entries = reference_decode(query, compressed, OFFSET, norm, 1e-6, cos, sin, *weights, 0.2, before)
    is_bf16 = dtype == np.uint16
    np.testing.assert_allclose(
        [to_float32(cache[-1]) for cache in caches], entries, rtol=2**-8 if is_bf16 else 1e-5, atol=1e-5
    )
    np.testing.assert_allclose(outputs, expected, atol=3e-2 if is_bf16 else 2e-5)
    for cache, old in zip(caches, before):
        assert np.array_equal(to_float32(cache[:-1]), old), "earlier entries stay"


@every_dtype
def test_a_sequence_is_bit_identical_in_any_batch_and_on_any_number_of_threads(inputs, dtype):
    alone = np.concatenate([run(inputs, dtype, slice(r, r + 1))[0] for r in range(len(LENGTHS))])
    for num_threads in (1, 2, 3):
        for rows in (slice(0, 4), slice(None)):
            assert np.array_equal(run(inputs, dtype, rows, num_threads)[0], alone[rows])
