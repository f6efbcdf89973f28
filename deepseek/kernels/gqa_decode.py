"""Grouped-query attention of one new token of each sequence (Ainslie et al., 2023); multi-head attention has groups of one.

Shape letters: R rows, one per sequence; H heads, G key-value heads, T tokens attended to, N width of a head, W = 2 G N width of a
cache entry, all keys and then all values; J half the rotary width, X = (H + 2 G) N queries, keys and values side by side.
"""

import numba
import numpy as np
from numba import prange

from deepseek.kernels.gemm import MIN_PARALLEL_MULTIPLICATIONS, thread_pool_lock
from deepseek.kernels.llvm import FASTMATH, KERNEL_OPTIONS, cache_view, from_float, to_float
from deepseek.kernels.ops import apply_rotary_emb, exp_scores


@numba.njit(fastmath=FASTMATH, inline="always")
def _rotate_head(x_X, offset, head_dim, cos_J, sin_J, y_X, y_offset):
    """Rotates the first 2 J elements of a head; the rest has no positions and is copied."""
    apply_rotary_emb(x_X, offset, cos_J, sin_J, y_X, y_offset)
    for n in range(2 * len(cos_J), head_dim):
        y_X[y_offset + n] = x_X[offset + n]


@numba.njit(fastmath=FASTMATH, **KERNEL_OPTIONS)
def _append_to_caches(qkv_RX, head_dim, cos_RJ, sin_RJ, caches_R2, like_W):
    """Writes the last entry of every cache: the rotated keys and the values."""
    width, offset = len(like_W), qkv_RX.shape[1] - len(like_W)
    entry_W = np.empty(width, np.float32)
    for r in range(len(qkv_RX)):
        for start in range(0, width // 2, head_dim):
            _rotate_head(qkv_RX[r], offset + start, head_dim, cos_RJ[r], sin_RJ[r], entry_W, start)
        for w in range(width // 2, width):
            entry_W[w] = qkv_RX[r, offset + w]
        entries_TW = cache_view(caches_R2, r, like_W)
        for w in range(width):
            entries_TW[-1, w] = from_float(entry_W[w], like_W[0])


@numba.njit(fastmath=FASTMATH, **KERNEL_OPTIONS)
def _decode_part(qkv_RX, head_dim, cos_RJ, sin_RJ, scale, caches_R2, like_W, y_RX, part, num_parts):
    """One of `num_parts` ranges of the key-value heads of all sequences, with their groups of heads."""
    kv_heads = len(like_W) // (2 * head_dim)
    group = y_RX.shape[1] // head_dim // kv_heads
    total_heads = len(qkv_RX) * kv_heads
    begin, end = total_heads * part // num_parts, total_heads * (part + 1) // num_parts
    for r in range(begin // kv_heads, (end + kv_heads - 1) // kv_heads):
        entries_TW = cache_view(caches_R2, r, like_W)
        first, last, tokens = max(begin - r * kv_heads, 0), min(end - r * kv_heads, kv_heads), len(entries_TW)
        first_head, num_heads = first * group, (last - first) * group
        query_HN, sum_HN = np.empty((num_heads, head_dim), np.float32), np.zeros((num_heads, head_dim), np.float32)
        weights_HT = np.empty((num_heads, tokens), np.float32)
        for h in range(num_heads):
            start = (first_head + h) * head_dim
            _rotate_head(qkv_RX[r], start, head_dim, cos_RJ[r], sin_RJ[r], query_HN[h], 0)
        for t in range(tokens):  # outermost, so that the cache is read in the order in which it lies in memory
            for h in range(num_heads):
                start, score = (first + h // group) * head_dim, np.float32(0)
                for n in range(head_dim):
                    score += query_HN[h, n] * to_float(entries_TW[t, start + n])
                weights_HT[h, t] = score
        whole, values = tokens // 4 * 4, len(like_W) // 2
        for h in range(num_heads):
            total = exp_scores(weights_HT[h], scale)
            for t in range(tokens):
                weights_HT[h, t] /= total
        for t in range(0, whole, 4):  # four at a time, so that the sum is loaded and stored less often
            for h in range(num_heads):
                start = values + (first + h // group) * head_dim
                for n in range(head_dim):
                    sum_HN[h, n] += (
                        weights_HT[h, t] * to_float(entries_TW[t, start + n])
                        + weights_HT[h, t + 1] * to_float(entries_TW[t + 1, start + n])
                        + weights_HT[h, t + 2] * to_float(entries_TW[t + 2, start + n])
                        + weights_HT[h, t + 3] * to_float(entries_TW[t + 3, start + n])
                    )
        for t in range(whole, tokens):
            for h in range(num_heads):
                start = values + (first + h // group) * head_dim
                for n in range(head_dim):
                    sum_HN[h, n] += weights_HT[h, t] * to_float(entries_TW[t, start + n])
        for h in range(num_heads):
            for n in range(head_dim):
                y_RX[r, (first_head + h) * head_dim + n] = sum_HN[h, n]


@numba.njit(**KERNEL_OPTIONS, parallel=True)
def _parallel_decode(qkv_RX, head_dim, cos_RJ, sin_RJ, scale, caches_R2, like_W, y_RX, num_parts):
    for part in prange(num_parts):
        _decode_part(qkv_RX, head_dim, cos_RJ, sin_RJ, scale, caches_R2, like_W, y_RX, np.int64(part), num_parts)


def gqa_decode(qkv_RX, head_dim: int, cos_RJ, sin_RJ, scale, caches_R2, like_W, num_threads: int):
    """The attention output of each sequence's new token before the output projection, (R, H * N).

    Takes queries, keys and values (R, X) before rotation, cos and sin of each position (R, J) and the scale of the scores.
    `caches_R2` has the address and length T of each sequence's cache (T, W), of the dtype of `like_W`; the last entry is
    written here.
    """
    _append_to_caches(qkv_RX, head_dim, cos_RJ, sin_RJ, caches_R2, like_W)
    y_RX = np.empty((len(qkv_RX), qkv_RX.shape[1] - len(like_W)), np.float32)
    arguments = qkv_RX, head_dim, cos_RJ, sin_RJ, scale, caches_R2, like_W, y_RX
    if num_threads > 1 and 2 * y_RX.shape[1] * caches_R2[:, 1].sum() >= MIN_PARALLEL_MULTIPLICATIONS:
        with thread_pool_lock:
            _parallel_decode(*arguments, num_threads)
    else:
        _decode_part(*arguments, 0, 1)
    return y_RX
