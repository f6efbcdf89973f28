"""Grouped-query attention of a decode step against the NumPy reference, and a sequence against itself in batches."""

import numpy as np
import pytest
from decoding import LENGTHS, assert_bits_are_those_alone, assert_equals_reference, every_dtype, stored

from deepseek.kernels.gqa_decode import gqa_decode
from deepseek.kernels.reference import gqa_decode as reference_decode
from deepseek.kernels.reference import to_float32

HEAD_DIM, KV_HEADS = 20, 3


@pytest.fixture(params=[(1, 10), (4, 10), (2, 6)], ids=["multi-head", "grouped", "half rotated"])
def inputs(request):
    """The arguments of one decode step, in float32, and the caches before it."""
    generator, rows, (group, half) = np.random.default_rng(0), len(LENGTHS), request.param

    def normal(*shape):
        return generator.standard_normal(shape).astype(np.float32)

    angles = normal(rows, half)
    caches = [normal(length - 1, 2 * KV_HEADS * HEAD_DIM) for length in LENGTHS]
    return normal(rows, (group + 2) * KV_HEADS * HEAD_DIM), np.cos(angles), np.sin(angles), caches


def run(inputs, dtype, rows=slice(None), num_threads=1):
    """(outputs, caches after the step) of the kernel for some of the sequences."""
    qkv, cos, sin, caches = inputs
    entry = np.zeros((1, caches[0].shape[1]), np.float32)
    caches = [stored(np.concatenate([cache, entry]), dtype) for cache in caches[rows]]
    pointers = np.array([(cache.ctypes.data, len(cache)) for cache in caches])
    step = qkv[rows], HEAD_DIM, cos[rows], sin[rows], 0.3
    return gqa_decode(*step, pointers, caches[0][0], num_threads), caches


@every_dtype
@pytest.mark.parametrize("num_threads", [1, 2])
def test_outputs_and_new_entries_equal_the_reference(inputs, dtype, num_threads):
    outputs, caches = run(inputs, dtype, num_threads=num_threads)
    qkv, cos, sin, before = inputs
    before = [to_float32(stored(cache, dtype)) for cache in before]
    expected, entries = reference_decode(qkv, HEAD_DIM, cos, sin, 0.3, before)
    assert_equals_reference(outputs, caches, expected, entries, before, dtype)


@every_dtype
def test_a_sequence_is_bit_identical_in_any_batch_and_on_any_number_of_threads(inputs, dtype):
    assert_bits_are_those_alone(run, inputs, dtype)
