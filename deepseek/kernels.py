"""The loops of a decode step, compiled by Numba: products with few rows, and what lies between them.

For one token every weight is read once and used once, so a step takes as long as that reading, if nothing else costs
anything. These loops read weights as they are stored, float32, bfloat16 (its bits, as uint16) or int8, and compute in
float32. What comes out for a row depends neither on the rows beside it nor on the number of threads, to the last bit:
every sum is taken in one order.

What a loop looks like is also a matter of how long it takes to compile: numbers are copied one by one, since a slice brings
the complaint about shapes that do not fit, and what runs on threads is told its part in the kind of number of all callers.

Shape letters: R rows, one a text; N and K a matrix's rows and columns, E matrices; X the width of several vectors side by side;
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

# LLVM's first level fills vector registers too: the loops are as fast, their numbers the same, and it takes a fifth less.
numba.config.OPT = type(numba.config.OPT)(1)
# Sums may be laid out for vector registers; NaN and infinity keep their meaning.
FAST = {"reassoc", "contract", "arcp", "nsz"}
ENOUGH = 100_000  # multiplications from which a second thread pays
# A division that looks for zero fills no vector registers; no loop is called from C.
LOOPS = dict(nogil=True, cache=True, error_model="numpy", no_cfunc_wrapper=True)
LANES = 16  # numbers in a vector register, two of them where the processor's are shorter
AHEAD = 8  # rows of a matrix that are asked for before they are needed
_gate = threading.Lock()  # Numba's threads work for one caller at a time

BITS, FLOAT = ir.IntType(32), ir.FloatType()


def _as_float(builder, value, kind, lanes: int | None = None):
    """float32 of a stored number, or of a vector of `lanes` of them; of a bfloat16 its bits are the upper half."""
    bits, real = (BITS, FLOAT) if lanes is None else (ir.VectorType(BITS, lanes), ir.VectorType(FLOAT, lanes))
    if kind == types.uint16:
        half = ir.Constant(bits, 16 if lanes is None else [16] * lanes)
        return builder.bitcast(builder.shl(builder.zext(value, bits), half), real)
    return builder.sitofp(value, real) if kind == types.int8 else value


@intrinsic
def _loaded(_, number):
    """float32 of a stored number."""

    def code(context, builder, signature, arguments):
        return _as_float(builder, arguments[0], number)

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
def _pointer(_, address, like):
    """An address as a pointer to numbers such as those of the array `like`."""

    def code(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(like.dtype)(address, like), code


@intrinsic
def _power_of_two(_, exponent):
    """2**exponent, from -126 to 127, by its bits."""

    def code(context, builder, signature, arguments):
        return builder.bitcast(builder.shl(builder.add(arguments[0], BITS(127)), BITS(23)), FLOAT)

    return types.float32(types.int32), code


@numba.njit(fastmath=FAST, inline="always")
def exp(x):
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


def _added_up(builder, vectors):
    """A vector of the sums of some vectors, 1 to LANES of them and a power of two.

    Of every vector halves are added until one number is left, in the same order alone as beside others; two vectors whose
    halves were added take the room of one.
    """
    width = LANES  # of what is left of a vector
    while width > 1:
        width //= 2
        low = [start + lane for start in range(0, vectors[0].type.count, 2 * width) for lane in range(width)]
        if len(vectors) > 1:
            low += [vectors[0].type.count + lane for lane in low]
        masks = [ir.Constant(ir.VectorType(BITS, len(low)), [lane + more for lane in low]) for more in (0, width)]
        pairs = zip(vectors[::2], vectors[1::2]) if len(vectors) > 1 else [vectors * 2]
        vectors = [builder.fadd(*(builder.shuffle_vector(*pair, mask) for mask in masks)) for pair in pairs]
    return vectors[0]


@intrinsic(prefer_literal=True)
def _tile(_, w_NK, n, ns, scale_N, x_RK, r, rs, y_RN):
    """y[r:r+rs, n:n+ns] = scale * x W^T, a tile of as many sums as registers hold; ns and rs are literal numbers.

    A sum is LANES wide until its end whatever tile it stands in, so that its bits do not depend on that.
    """
    arrays = w_NK, scale_N, x_RK, y_RN
    if any(array.layout != "C" for array in arrays):
        raise numba.TypingError("the arrays of a product must lie in rows without gaps.")

    def code(context, builder, signature, arguments):
        w, scale, x, y = (context.make_array(t)(context, builder, arguments[i]) for t, i in zip(arrays, (0, 3, 4, 7)))
        size = arguments[1].type
        columns, outputs = (cgutils.unpack_tuple(builder, array.shape)[1] for array in (x, y))
        ns_ = [builder.add(arguments[1], size(i)) for i in range(ns.literal_value)]
        rs_ = [builder.add(arguments[5], size(i)) for i in range(rs.literal_value)]
        w_rows = [builder.gep(w.data, [builder.mul(n, columns)]) for n in ns_]
        x_rows = [builder.gep(x.data, [builder.mul(r, columns)]) for r in rs_]
        places = [(i, j) for i in range(len(ns_)) for j in range(len(rs_))]
        fetch = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [ir.PointerType(), BITS, BITS, BITS]), "llvm.prefetch.p0"
        )

        def loaded(row, k, kind, lanes):
            number = context.get_data_type(kind)
            vector = number if lanes is None else ir.VectorType(number, lanes)
            value = builder.load(builder.gep(row, [k]), align=kind.bitwidth // 8, typ=vector)
            return _as_float(builder, value, kind, lanes)

        def add(sums, k, lanes=None):
            """Adds the products of `lanes` columns from the k-th on, or of the k-th alone."""
            ws = [loaded(row, k, w_NK.dtype, lanes) for row in w_rows]
            xs = [loaded(row, k, x_RK.dtype, lanes) for row in x_rows]
            for i, j in places:
                product = builder.fmul(ws[i], xs[j], flags=("contract",))
                builder.store(builder.fadd(builder.load(sums[i, j]), product, flags=("contract",)), sums[i, j])

        whole, zeros = builder.and_(columns, size(-LANES)), ir.Constant(ir.VectorType(FLOAT, LANES), [0.0] * LANES)
        sums = {place: cgutils.alloca_once_value(builder, zeros) for place in places}
        with cgutils.for_range_slice(builder, size(0), whole, size(LANES), size) as (k, _):
            for row in w_rows:  # the processor alone looks too short ahead; to ask for what is not there does no harm
                ahead = builder.gep(row, [builder.add(k, builder.mul(columns, size(AHEAD)))])
                builder.call(fetch, [ahead, BITS(0), BITS(3), BITS(1)])  # to read, to keep, data
            add(sums, k, LANES)
        finished = _added_up(builder, [builder.load(sums[place]) for place in places])
        for index, place in enumerate(places):
            sums[place] = cgutils.alloca_once_value(builder, builder.extract_element(finished, BITS(index)))
        with cgutils.for_range_slice(builder, whole, columns, size(1), size) as (k, _):
            add(sums, k)
        for i, j in places:
            value = builder.fmul(builder.load(sums[i, j]), builder.load(builder.gep(scale.data, [ns_[i]])))
            builder.store(value, builder.gep(y.data, [builder.add(builder.mul(rs_[j], outputs), ns_[i])]))
        return context.get_dummy_value()

    return types.none(w_NK, types.intp, ns, scale_N, x_RK, types.intp, rs, y_RN), code


@numba.njit(**LOOPS)
def _product(w_NK, scale_N, x_RK, y_RN, first, last):
    """Columns first to last - 1 of y."""
    rows, whole = len(x_RK), last - (last - first) % 4
    for n in range(first, whole, 4):
        r = 0
        while r < rows:
            if rows - r >= 8:
                for half in range(n, n + 4, 2):
                    _tile(w_NK, half, 2, scale_N, x_RK, r, 8, y_RN)
                r += 8
            elif rows - r >= 4:
                _tile(w_NK, n, 4, scale_N, x_RK, r, 4, y_RN)
                r += 4
            elif rows - r >= 2:
                _tile(w_NK, n, 4, scale_N, x_RK, r, 2, y_RN)
                r += 2
            else:
                _tile(w_NK, n, 4, scale_N, x_RK, r, 1, y_RN)
                r += 1
    for n in range(whole, last):
        for r in range(rows):
            _tile(w_NK, n, 1, scale_N, x_RK, r, 1, y_RN)


@numba.njit(**LOOPS)
def _products(w_ENK, scale_EN, x_RK, ends_E, y_RN, part, parts):
    """The part-th of `parts` shares of the columns of y; the rows of x of each matrix follow those of the one before."""
    columns, start = w_ENK.shape[1], 0
    fours = (columns + 3) // 4
    first, last = fours * part // parts * 4, min(columns, fours * (part + 1) // parts * 4)
    for e in range(len(ends_E)):
        end = ends_E[e]
        if end > start:
            _product(w_ENK[e], scale_EN[e], x_RK[start:end], y_RN[start:end], first, last)
        start = end


@numba.njit(**LOOPS, parallel=True)
def _parallel_products(w_ENK, scale_EN, x_RK, ends_E, y_RN, parts):
    for part in prange(parts):
        _products(w_ENK, scale_EN, x_RK, ends_E, y_RN, np.int64(part), parts)


def share(threads: int) -> None:
    """As many of Numba's threads as are asked for take part in what this thread calls from now on.

    It changes how many threads OpenMP gives to others: at first Numba starts one for every processor.
    """
    if threads > 1:
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))


def product(w_ENK, scale_EN, x_RK, ends_E, threads: int):
    """(scale W) x for every row of x, with matrix e for those before row ends_E[e] that no matrix before it has: (R, N)."""
    y_RN = np.empty((len(x_RK), w_ENK.shape[1]), np.float32)
    if threads > 1 and w_ENK[0].size * len(x_RK) >= ENOUGH:
        with _gate:
            _parallel_products(w_ENK, scale_EN, x_RK, ends_E, y_RN, threads)
    else:
        _products(w_ENK, scale_EN, x_RK, ends_E, y_RN, 0, 1)
    return y_RN


@numba.njit(fastmath=FAST, **LOOPS)
def norm(x_RX, at, weight_D, eps):
    """RMSNorm (Zhang and Sennrich, 2019) of D numbers of every row, from the `at`-th on: (R, D)."""
    width = len(weight_D)
    y_RD = np.empty((len(x_RX), width), np.float32)
    for r in range(len(x_RX)):
        squares = np.float32(0)
        for d in range(width):
            squares += x_RX[r, at + d] * x_RX[r, at + d]
        factor = np.float32(1) / np.sqrt(squares / np.float32(width) + np.float32(eps))
        for d in range(width):
            y_RD[r, d] = x_RX[r, at + d] * factor * weight_D[d]
    return y_RD


@numba.njit(fastmath=FAST, **LOOPS)
def gated(gate_up_RX):
    """silu(gate) * up of rows that hold gate and up side by side: (R, X / 2)."""
    width = gate_up_RX.shape[1] // 2
    y_RF = np.empty((len(gate_up_RX), width), np.float32)
    for r in range(len(gate_up_RX)):
        for f in range(width):
            gate = gate_up_RX[r, f]
            y_RF[r, f] = gate / (np.float32(1) + exp(-gate)) * gate_up_RX[r, width + f]
    return y_RF


@numba.njit(**LOOPS)
def route(logits_RE, bias_RE, chosen, scaling):
    """(indices (R, K), weights (R, K)): the experts with the highest sigmoid plus bias, weighed by their sigmoids.

    DeepSeek-V3, section 2.1.2.
    """
    rows, experts = logits_RE.shape
    indices_RK, weights_RK = np.empty((rows, chosen), np.int64), np.empty((rows, chosen), np.float32)
    scores_E, rank_E = np.empty(experts, np.float32), np.empty(experts, np.float32)
    for r in range(rows):
        for e in range(experts):
            scores_E[e] = np.float32(1) / (np.float32(1) + np.exp(-logits_RE[r, e]))
            rank_E[e] = scores_E[e] + bias_RE[r, e]
        total = np.float32(1e-20)
        for k in range(chosen):
            best = 0
            for e in range(1, experts):
                if rank_E[e] > rank_E[best]:
                    best = e
            indices_RK[r, k], weights_RK[r, k] = best, scores_E[best]
            total += scores_E[best]
            rank_E[best] = -np.inf
        for k in range(chosen):
            weights_RK[r, k] *= np.float32(scaling) / total
    return indices_RK, weights_RK


@numba.njit(**LOOPS)
def combine(y_AD, order_A, weights_RK, y_RD):
    """Adds to every row the outputs of its experts, times their weights; order_A tells the assignment of each output."""
    for a in range(len(order_A)):
        r, k = divmod(order_A[a], weights_RK.shape[1])
        for d in range(y_RD.shape[1]):
            y_RD[r, d] += weights_RK[r, k] * y_AD[a, d]


@numba.njit(fastmath=FAST, inline="always")
def _turned(x_X, at, cos_J, sin_J, y_X, to):
    """The rotary part of x, from `at` on, turned by its angles, into y from `to` on; pairs lie in halves."""
    half = len(cos_J)
    for j in range(half):
        first, second = x_X[at + j], x_X[at + half + j]
        y_X[to + j] = first * cos_J[j] - second * sin_J[j]
        y_X[to + half + j] = second * cos_J[j] + first * sin_J[j]


@numba.njit(inline="always")
def _entries(caches_R2, r, like_W):
    """The cache (T, W) of text r, of which an address and a length are known."""
    return numba.carray(_pointer(caches_R2[r, 0], like_W), (caches_R2[r, 1], len(like_W)))


@numba.njit(fastmath=FAST, **LOOPS)
def _append(compressed_RX, latent_at, norm_C, eps, cos_RJ, sin_RJ, caches_R2, like_W):
    """Writes the last entry of every cache: the normed latent and the turned key of what W_DKV gives."""
    latent, width = len(norm_C), len(like_W)
    entry_W = np.empty(width, np.float32)
    latent_RC = norm(compressed_RX, latent_at, norm_C, eps)
    for r in range(len(compressed_RX)):
        for c in range(latent):
            entry_W[c] = latent_RC[r, c]
        _turned(compressed_RX[r], latent_at + latent, cos_RJ[r], sin_RJ[r], entry_W, latent)
        entries_TW = _entries(caches_R2, r, like_W)
        for w in range(width):
            entries_TW[-1, w] = _stored(entry_W[w], like_W[0])


@numba.njit(fastmath=FAST, **LOOPS)
def _texts(query_RX, cos_RJ, sin_RJ, up_key_HCN, up_value_HVC, scale, caches_R2, like_W, y_RX, part, parts):
    """The part-th of `parts` shares of the heads of all texts, each into its part of y (R, H * V)."""
    (heads, latent, nope), value, rotary = up_key_HCN.shape, up_value_HVC.shape[1], 2 * cos_RJ.shape[1]
    begin, end, none = len(query_RX) * heads * part // parts, len(query_RX) * heads * (part + 1) // parts, np.int64(0)
    q_1N, latent_1C = np.empty((1, nope), np.float32), np.empty((1, latent), np.float32)
    value_1V, sum_C = np.empty((1, value), np.float32), latent_1C[0]
    for r in range(begin // heads, (end + heads - 1) // heads):
        entries_TW = _entries(caches_R2, r, like_W)
        first, last, tokens = max(begin - r * heads, 0), min(end - r * heads, heads), len(entries_TW)
        query_HW = np.empty((last - first, latent + rotary), np.float32)
        weights_HT = np.empty((last - first, tokens), np.float32)
        ones = np.empty(max(tokens, latent, value), np.float32)
        for i in range(len(ones)):
            ones[i] = 1
        for h in range(first, last):
            start = h * (nope + rotary)
            for n in range(nope):
                q_1N[0, n] = query_RX[r, start + n]
            _product(up_key_HCN[h], ones, q_1N, latent_1C, none, latent)  # W_UK^T q
            for c in range(latent):
                query_HW[h - first, c] = latent_1C[0, c]
            _turned(query_RX[r], start + nope, cos_RJ[r], sin_RJ[r], query_HW[h - first], latent)
        _product(entries_TW, ones, query_HW, weights_HT, none, tokens)
        for h in range(first, last):
            weights_T = weights_HT[h - first]
            highest, total = np.float32(-np.inf), np.float32(0)
            for t in range(tokens):
                highest = max(highest, weights_T[t])
            for t in range(tokens):
                weights_T[t] = exp((weights_T[t] - highest) * np.float32(scale))
            for t in range(tokens):
                total += weights_T[t]
            for c in range(latent):
                sum_C[c] = 0
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
            _product(up_value_HVC[h], ones, latent_1C, value_1V, none, value)  # W_UV of the sum
            for v in range(value):
                y_RX[r, h * value + v] = value_1V[0, v] / total


@numba.njit(**LOOPS, parallel=True)
def _parallel_texts(query_RX, cos_RJ, sin_RJ, up_key_HCN, up_value_HVC, scale, caches_R2, like_W, y_RX, parts):
    for part in prange(parts):
        _texts(
            query_RX, cos_RJ, sin_RJ, up_key_HCN, up_value_HVC, scale, caches_R2, like_W, y_RX, np.int64(part), parts
        )


def attend(query_RX, compressed_RX, latent_at, norm_C, eps, cos_RJ, sin_RJ, up_key_HCN, up_value_HVC, scale, caches_R2,
           like_W, threads: int):  # fmt: skip
    """Latent attention of several texts in its absorbed form: (R, H * V).

    Of each text its queries (H * (N + rotary)); what W_DKV gives, whose latent begins at `latent_at`, with the norm of that
    latent; cos and sin of its position, of half the rotary width. W_UK (H, C, N) and W_UV (H, V, C); the scale of the scores.
    `caches_R2` has the address and the length T of each text's cache (T, W) of numbers such as `like_W`; its last row is
    written here.
    """
    _append(compressed_RX, latent_at, norm_C, eps, cos_RJ, sin_RJ, caches_R2, like_W)
    heads, latent, _ = up_key_HCN.shape
    y_RX = np.empty((len(query_RX), heads * up_value_HVC.shape[1]), np.float32)
    if threads > 1 and 2 * heads * latent * (caches_R2[:, 1] + 64).sum() >= ENOUGH:
        with _gate:
            _parallel_texts(query_RX, cos_RJ, sin_RJ, up_key_HCN, up_value_HVC, scale, caches_R2, like_W, y_RX, threads)
    else:
        _texts(query_RX, cos_RJ, sin_RJ, up_key_HCN, up_value_HVC, scale, caches_R2, like_W, y_RX, 0, 1)
    return y_RX
