"""The loops of a decode step, compiled by Numba: products with few rows, and what lies between them.

For one token every weight is read once and used once, so a step takes as long as that reading, if nothing else costs
anything. These loops read weights as they are stored, float32, bfloat16 (its bits, as uint16) or int8, and compute in
float32. What comes out for a row depends neither on the rows beside it nor on the number of threads, to the last bit:
every sum is taken in one order.

Shape letters: R rows, one a text; N and K a matrix's rows and columns; X the width of several vectors side by side;
D hidden width, E experts, K also experts a token, F an expert's inner width; H heads, T tokens attended to, W width of
a cache entry, C of its latent, N and V of a head's non-rotary key and value.
"""

import threading

import numba
import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.core import cgutils
from numba.extending import intrinsic

# Sums may be laid out for vector registers; NaN and infinity keep their meaning.
FAST = {"reassoc", "contract", "arcp", "nsz"}
ENOUGH = 100_000  # multiplications from which a second thread pays
LINE, AHEAD = 64, 8  # bytes of a cache line; rows of a matrix that are asked for before they are needed
_gate = threading.Lock()  # Numba's threads work for one caller at a time

BITS, FLOAT = ir.IntType(32), ir.FloatType()


@intrinsic
def _loaded(_, number):
    """float32 of a stored number; of a bfloat16 its bits are the upper half."""

    def code(context, builder, signature, arguments):
        (value,) = arguments
        if number == types.uint16:
            return builder.bitcast(builder.shl(builder.zext(value, BITS), BITS(16)), FLOAT)
        return builder.sitofp(value, FLOAT) if number == types.int8 else value

    return types.float32(number), code


@intrinsic
def _stored(_, number, like):
    """A float32 as an array of `like` holds it; as bfloat16 the nearest, ties to even."""

    def code(context, builder, signature, arguments):
        value = arguments[0]
        if like != types.uint16:
            return value
        bits = builder.bitcast(value, BITS)
        odd = builder.and_(builder.lshr(bits, BITS(16)), BITS(1))
        return builder.trunc(builder.lshr(builder.add(bits, builder.add(odd, BITS(0x7FFF))), BITS(16)), ir.IntType(16))

    return like(number, like), code


@intrinsic
def _power_of_two(_, exponent):
    """2**exponent, from -126 to 127, by its bits."""

    def code(context, builder, signature, arguments):
        return builder.bitcast(builder.shl(builder.add(arguments[0], BITS(127)), BITS(23)), FLOAT)

    return types.float32(types.int32), code


@intrinsic
def _prefetch(_, array, index):
    """Asks for the cache line of array[index], counted over the whole array; the processor alone looks too short ahead."""

    def code(context, builder, signature, arguments):
        data = context.make_array(array)(context, builder, arguments[0]).data
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        fetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        address = builder.bitcast(builder.gep(data, [arguments[1]]), byte)
        builder.call(fetch, [address, number(0), number(3), number(1)])  # to read, to keep, data
        return context.get_dummy_value()

    return types.none(array, index), code


@numba.njit(fastmath=FAST, inline="always")
def _exp(x):
    """e**x by Cephes' expf, which fills vector registers where the library's does not; from -87 to 88."""
    x = min(max(x, np.float32(-87)), np.float32(88))
    whole = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    x = x - whole * np.float32(0.693359375) + whole * np.float32(2.12194440e-4)
    y = np.float32(1.9875691500e-4)
    y = y * x + np.float32(1.3981999507e-3)
    y = y * x + np.float32(8.3334519073e-3)
    y = y * x + np.float32(4.1665795894e-2)
    y = y * x + np.float32(1.6666665459e-1)
    y = y * x + np.float32(5.0000001201e-1)
    return (y * x * x + x + np.float32(1)) * _power_of_two(np.int32(whole))


@numba.njit(fastmath=FAST, inline="always")
def _four_rows(w_K, x_RK, r, scale, y_RN, n):
    """One row of a matrix times four rows of x."""
    a = b = c = d = np.float32(0)
    for k in range(len(w_K)):
        w = _loaded(w_K[k])
        a += w * x_RK[r, k]
        b += w * x_RK[r + 1, k]
        c += w * x_RK[r + 2, k]
        d += w * x_RK[r + 3, k]
    y_RN[r, n], y_RN[r + 1, n], y_RN[r + 2, n], y_RN[r + 3, n] = a * scale, b * scale, c * scale, d * scale


@numba.njit(fastmath=FAST, inline="always")
def _one_row(w_NK, n, x_RK, r, scale_N, y_RN):
    """Four rows of a matrix, from n on, times one row of x: the same four sums side by side, in the same order."""
    a = b = c = d = np.float32(0)
    for k in range(w_NK.shape[1]):
        x = x_RK[r, k]
        a += _loaded(w_NK[n, k]) * x
        b += _loaded(w_NK[n + 1, k]) * x
        c += _loaded(w_NK[n + 2, k]) * x
        d += _loaded(w_NK[n + 3, k]) * x
    y_RN[r, n], y_RN[r, n + 1] = a * scale_N[n], b * scale_N[n + 1]
    y_RN[r, n + 2], y_RN[r, n + 3] = c * scale_N[n + 2], d * scale_N[n + 3]


@numba.njit(fastmath=FAST, nogil=True, cache=True)
def _product(w_NK, scale_N, x_RK, y_RN, first, last):
    """Columns first to last - 1 of y; `first` is a multiple of four."""
    rows, fours, whole = len(x_RK), len(x_RK) // 4 * 4, last // 4 * 4
    width, line = w_NK.shape[1], LINE // w_NK.itemsize
    for n in range(first, whole, 4):
        for number in range(min((n + AHEAD) * width, w_NK.size), min((n + AHEAD + 4) * width, w_NK.size), line):
            _prefetch(w_NK, number)
        for r in range(0, fours, 4):
            for i in range(n, n + 4):
                _four_rows(w_NK[i], x_RK, r, scale_N[i], y_RN, i)
        for r in range(fours, rows):
            _one_row(w_NK, n, x_RK, r, scale_N, y_RN)
    for n in range(whole, last):
        for r in range(rows):
            total = np.float32(0)
            for k in range(width):
                total += _loaded(w_NK[n, k]) * x_RK[r, k]
            y_RN[r, n] = total * scale_N[n]


@numba.njit(nogil=True, cache=True, parallel=True)
def _parallel_product(w_NK, scale_N, x_RK, y_RN, parts):
    fours = (len(w_NK) + 3) // 4
    for part in prange(parts):
        last = min(len(w_NK), fours * (part + 1) // parts * 4)
        _product(w_NK, scale_N, x_RK, y_RN, fours * part // parts * 4, last)


def product(w_NK, scale_N, x_RK, threads: int):
    """(scale W) x for every row of x: (R, N)."""
    y_RN = np.empty((len(x_RK), len(w_NK)), np.float32)
    if threads > 1 and w_NK.size * len(x_RK) >= ENOUGH:
        with _gate:
            numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
            _parallel_product(w_NK, scale_N, x_RK, y_RN, threads)
    else:
        _product(w_NK, scale_N, x_RK, y_RN, 0, len(w_NK))
    return y_RN


@numba.njit(fastmath=FAST, nogil=True, cache=True)
def norm(x_RX, weight_D, eps):
    """RMSNorm (Zhang and Sennrich, 2019) of the first D numbers of every row: (R, D)."""
    width = len(weight_D)
    y_RD = np.empty((len(x_RX), width), np.float32)
    for r in range(len(x_RX)):
        squares = np.float32(0)
        for d in range(width):
            squares += x_RX[r, d] * x_RX[r, d]
        factor = np.float32(1) / np.sqrt(squares / np.float32(width) + np.float32(eps))
        for d in range(width):
            y_RD[r, d] = x_RX[r, d] * factor * weight_D[d]
    return y_RD


@numba.njit(fastmath=FAST, nogil=True, cache=True)
def gated(gate_up_RX):
    """silu(gate) * up of rows that hold gate and up side by side: (R, X / 2)."""
    width = gate_up_RX.shape[1] // 2
    y_RF = np.empty((len(gate_up_RX), width), np.float32)
    for r in range(len(gate_up_RX)):
        for f in range(width):
            gate = gate_up_RX[r, f]
            y_RF[r, f] = gate / (np.float32(1) + _exp(-gate)) * gate_up_RX[r, width + f]
    return y_RF


@numba.njit(nogil=True, cache=True)
def route(logits_RE, bias_RE, chosen, scaling):
    """(indices (R, K), weights (R, K)): the experts with the highest sigmoid plus bias, weighed by their sigmoids.

    DeepSeek-V3, section 2.1.2.
    """
    rows, experts = logits_RE.shape
    indices_RK, weights_RK = np.empty((rows, chosen), np.int64), np.empty((rows, chosen), np.float32)
    for r in range(rows):
        scores_E = np.float32(1) / (np.float32(1) + np.exp(-logits_RE[r]))
        rank_E = scores_E + bias_RE[r]
        total = np.float32(1e-20)
        for k in range(chosen):
            best = 0
            for e in range(1, experts):
                if rank_E[e] > rank_E[best]:
                    best = e
            indices_RK[r, k], weights_RK[r, k] = best, scores_E[best]
            total += scores_E[best]
            rank_E[best] = -np.inf
        weights_RK[r] *= np.float32(scaling) / total
    return indices_RK, weights_RK


@numba.njit(fastmath=FAST, inline="always")
def _turned(x_X, at, cos_J, sin_J, y_X, to):
    """The rotary part of x, from `at` on, turned by its angles, into y from `to` on; pairs lie in halves."""
    half = len(cos_J)
    for j in range(half):
        first, second = x_X[at + j], x_X[at + half + j]
        y_X[to + j] = first * cos_J[j] - second * sin_J[j]
        y_X[to + half + j] = second * cos_J[j] + first * sin_J[j]


@numba.njit(fastmath=FAST, nogil=True, cache=True)
def _append(compressed_X, latent_at, norm_C, eps, cos_J, sin_J, entries_TW):
    """Writes the last entry of a cache: the normed latent and the turned key of what W_DKV gives."""
    latent, (tokens, width) = len(norm_C), entries_TW.shape
    entry_W = np.empty(width, np.float32)
    entry_W[:latent] = norm(compressed_X[latent_at : latent_at + latent].reshape(1, latent), norm_C, eps)[0]
    _turned(compressed_X, latent_at + latent, cos_J, sin_J, entry_W, latent)
    for w in range(width):
        entries_TW[tokens - 1, w] = _stored(entry_W[w], entries_TW[0, 0])


@numba.njit(fastmath=FAST, nogil=True, cache=True)
def _heads(query_X, cos_J, sin_J, up_key_HCN, up_value_HVC, scale, entries_TW, y_X, first, last):
    """Attention of heads first to last - 1 into their parts of y (H * V)."""
    (_, latent, nope), value, rotary = up_key_HCN.shape, up_value_HVC.shape[1], 2 * len(cos_J)
    tokens, width = entries_TW.shape
    ones = np.ones(max(tokens, latent, value), np.float32)
    query_HW = np.empty((last - first, width), np.float32)
    weights_HT = np.empty((last - first, tokens), np.float32)
    latent_1C, value_1V = np.empty((1, latent), np.float32), np.empty((1, value), np.float32)
    for h in range(first, last):
        start = h * (nope + rotary)
        q_1N = query_X[start : start + nope].reshape(1, nope)
        _product(up_key_HCN[h], ones, q_1N, latent_1C, 0, latent)  # W_UK^T q
        query_HW[h - first, :latent] = latent_1C[0]
        _turned(query_X, start + nope, cos_J, sin_J, query_HW[h - first], latent)
    _product(entries_TW, ones, query_HW, weights_HT, 0, tokens)
    for h in range(first, last):
        weights_T, sum_C = weights_HT[h - first], latent_1C[0]
        highest, total = weights_T.max(), np.float32(0)
        for t in range(tokens):
            weights_T[t] = _exp((weights_T[t] - highest) * np.float32(scale))
        for t in range(tokens):
            total += weights_T[t]
        sum_C[:] = 0
        whole = tokens // 4 * 4
        for t in range(0, whole, 4):  # four at a time, so that the sum is fetched and put back less often
            for c in range(latent):
                sum_C[c] += (
                    weights_T[t] * _loaded(entries_TW[t, c])
                    + weights_T[t + 1] * _loaded(entries_TW[t + 1, c])
                    + weights_T[t + 2] * _loaded(entries_TW[t + 2, c])
                    + weights_T[t + 3] * _loaded(entries_TW[t + 3, c])
                )
        for t in range(whole, tokens):
            for c in range(latent):
                sum_C[c] += weights_T[t] * _loaded(entries_TW[t, c])
        _product(up_value_HVC[h], ones, latent_1C, value_1V, 0, value)  # W_UV of the sum
        for v in range(value):
            y_X[h * value + v] = value_1V[0, v] / total


@numba.njit(nogil=True, cache=True, parallel=True)
def _parallel_heads(query_X, cos_J, sin_J, up_key_HCN, up_value_HVC, scale, entries_TW, y_X, parts):
    heads = len(up_key_HCN)
    for part in prange(parts):
        first, last = heads * part // parts, heads * (part + 1) // parts
        _heads(query_X, cos_J, sin_J, up_key_HCN, up_value_HVC, scale, entries_TW, y_X, first, last)


def attend(query_X, compressed_X, latent_at, norm_C, eps, cos_J, sin_J, up_key_HCN, up_value_HVC, scale, entries_TW,
           y_X, threads: int) -> None:  # fmt: skip
    """One text's latent attention in its absorbed form, into y (H * V).

    Its queries (H * (N + rotary)); what W_DKV gives, whose latent begins at `latent_at`, with the norm of that latent; cos
    and sin of its position, of half the rotary width; W_UK (H, C, N) and W_UV (H, V, C); the scale of the scores; its
    cache (T, W), whose last row is written here.
    """
    _append(compressed_X, latent_at, norm_C, eps, cos_J, sin_J, entries_TW)
    heads, latent, _ = up_key_HCN.shape
    if threads > 1 and 2 * heads * latent * (len(entries_TW) + 64) >= ENOUGH:
        with _gate:
            numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
            _parallel_heads(query_X, cos_J, sin_J, up_key_HCN, up_value_HVC, scale, entries_TW, y_X, threads)
    else:
        _heads(query_X, cos_J, sin_J, up_key_HCN, up_value_HVC, scale, entries_TW, y_X, 0, heads)
