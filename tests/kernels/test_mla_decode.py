"""Latent attention of a decode step against the NumPy reference, and a sequence against itself in batches."""

import numpy as np
import pytest
from decoding import LENGTHS, assert_bits_are_those_alone, assert_equals_reference, every_dtype, stored

from deepseek.kernels.mla_decode import mla_decode
from deepseek.kernels.reference import mla_decode as reference_decode
from deepseek.kernels.reference import to_float32

HEADS, NOPE, HALF, LATENT, VALUE, OFFSET = 5, 24, 4, 48, 20, 7


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
    assert_equals_reference(outputs, caches, expected, entries, before, dtype)


@every_dtype
def test_a_sequence_is_bit_identical_in_any_batch_and_on_any_number_of_threads(inputs, dtype):
    assert_bits_are_those_alone(run, inputs, dtype)
