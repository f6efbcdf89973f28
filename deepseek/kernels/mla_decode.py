"""Latent attention of one new token of each sequence, in its absorbed form (DeepSeek-V2, section 2.1).

Shape letters: R rows, one per sequence; H heads, T tokens attended to, W = C + 2 J width of a cache entry, C of its latent, J
half the rotary width, N and V of a head's non-rotary key and value; X width of several vectors side by side.
"""

import numba
import numpy as np
from numba import prange

from deepseek.kernels.gemm import MIN_PARALLEL_MULTIPLICATIONS, gemm_columns, thread_pool_lock
from deepseek.kernels.llvm import FASTMATH, KERNEL_OPTIONS, cache_view, from_float, to_float
from deepseek.kernels.ops import apply_rotary_emb, exp_scores, rms_norm


@numba.njit(fastmath=FASTMATH, **KERNEL_OPTIONS)
def _append_to_caches(compressed_RX, latent_offset, norm_C, eps, cos_RJ, sin_RJ, caches_R2, like_W):
    """Writes the last entry of every cache: the normalised latent and the rotated key of the output of W_DKV."""
    latent, width = len(norm_C), len(like_W)
    entry_W = np.empty(width, np.float32)
    latent_RC = rms_norm(compressed_RX, latent_offset, norm_C, eps)
    for r in range(len(compressed_RX)):
        for c in range(latent):
            entry_W[c] = latent_RC[r, c]
        apply_rotary_emb(compressed_RX[r], latent_offset + latent, cos_RJ[r], sin_RJ[r], entry_W, latent)
        entries_TW = cache_view(caches_R2, r, like_W)
        for w in range(width):
            entries_TW[-1, w] = from_float(entry_W[w], like_W[0])


@numba.njit(fastmath=FASTMATH, **KERNEL_OPTIONS)
def _decode_part(query_RX, cos_RJ, sin_RJ, up_key_HCN, up_value_HVC, scale, caches_R2, like_W, y_RX, part, num_parts):
    """One of `num_parts` ranges of the heads of all sequences, each into its slice of y (R, H * V)."""
    (heads, latent, nope), value, rotary = up_key_HCN.shape, up_value_HVC.shape[1], 2 * cos_RJ.shape[1]
    total_heads, zero = len(query_RX) * heads, np.int64(0)
    begin, end = total_heads * part // num_parts, total_heads * (part + 1) // num_parts
    q_1N, latent_1C = np.empty((1, nope), np.float32), np.empty((1, latent), np.float32)
    value_1V, sum_C = np.empty((1, value), np.float32), latent_1C[0]
    for r in range(begin // heads, (end + heads - 1) // heads):
        entries_TW = cache_view(caches_R2, r, like_W)
        first, last, tokens = max(begin - r * heads, 0), min(end - r * heads, heads), len(entries_TW)
        query_HW = np.empty((last - first, latent + rotary), np.float32)
        weights_HT = np.empty((last - first, tokens), np.float32)
        ones = np.ones(max(tokens, latent, value), np.float32)
        for h in range(first, last):
            start = h * (nope + rotary)
            for n in range(nope):
                q_1N[0, n] = query_RX[r, start + n]
            gemm_columns(up_key_HCN[h], ones, q_1N, latent_1C, zero, latent)  # W_UK^T q
            for c in range(latent):
                query_HW[h - first, c] = latent_1C[0, c]
            apply_rotary_emb(query_RX[r], start + nope, cos_RJ[r], sin_RJ[r], query_HW[h - first], latent)
        gemm_columns(entries_TW, ones, query_HW, weights_HT, zero, tokens)
        for h in range(first, last):
            weights_T = weights_HT[h - first]
            total = exp_scores(weights_T, scale)
            for c in range(latent):
                sum_C[c] = 0
            whole = tokens // 4 * 4
            for t in range(0, whole, 4):  # four at a time, so that the sum is loaded and stored less often
                for c in range(latent):
                    sum_C[c] += (
                        weights_T[t] * to_float(entries_TW[t, c])
                        + weights_T[t + 1] * to_float(entries_TW[t + 1, c])
                        + weights_T[t + 2] * to_float(entries_TW[t + 2, c])
                        + weights_T[t + 3] * to_float(entries_TW[t + 3, c])
                    )
            for t in range(whole, tokens):
                for c in range(latent):
                    sum_C[c] += weights_T[t] * to_float(entries_TW[t, c])
            gemm_columns(up_value_HVC[h], ones, latent_1C, value_1V, zero, value)  # W_UV of the sum
            for v in range(value):
                y_RX[r, h * value + v] = value_1V[0, v] / total


@numba.njit(**KERNEL_OPTIONS, parallel=True)
def _parallel_decode(query_RX, cos_RJ, sin_RJ, up_key_HCN, up_value_HVC, scale, caches_R2, like_W, y_RX, num_parts):
    for part in prange(num_parts):
        _decode_part(query_RX, cos_RJ, sin_RJ, up_key_HCN, up_value_HVC, scale, caches_R2, like_W, y_RX,
                     np.int64(part), num_parts)  # fmt: skip


def mla_decode(query_RX, compressed_RX, latent_offset, norm_C, eps, cos_RJ, sin_RJ, up_key_HCN, up_value_HVC, scale, caches_R2,
               like_W, num_threads: int):  # fmt: skip
    """The attention output of each sequence's new token before the output projection, (R, H * V).

    Takes the queries (R, H * (N + 2 J)); the output of W_DKV, whose latent starts at `latent_offset`, and the weight of that
    latent's norm; cos and sin of each position (R, J); W_UK (H, C, N) and W_UV (H, V, C); the scale of the scores. `caches_R2`
    has the address and length T of each sequence's cache (T, W), of the dtype of `like_W`; the last entry is written here.
    """
    _append_to_caches(compressed_RX, latent_offset, norm_C, eps, cos_RJ, sin_RJ, caches_R2, like_W)
    heads, latent, _ = up_key_HCN.shape
    y_RX = np.empty((len(query_RX), heads * up_value_HVC.shape[1]), np.float32)
    arguments = query_RX, cos_RJ, sin_RJ, up_key_HCN, up_value_HVC, scale, caches_R2, like_W, y_RX
    if num_threads > 1 and 2 * heads * latent * (caches_R2[:, 1] + 64).sum() >= MIN_PARALLEL_MULTIPLICATIONS:
        with thread_pool_lock:
            _parallel_decode(*arguments, num_threads)
    else:
        _decode_part(*arguments, 0, 1)
    return y_RX
