"""What Numba cannot say: vector registers, prefetching and bfloat16, as LLVM instructions.

TODO
"""

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

# LLVM's first level fills vector registers too: the loops are as fast, their numbers the same, and it takes a fifth less.
numba.config.OPT = type(numba.config.OPT)(1)
# Sums may be laid out for vector registers; NaN and infinity keep their meaning.
FASTMATH = {"reassoc", "contract", "arcp", "nsz"}
# A division that looks for zero fills no vector registers; no loop is called from C.
KERNEL_OPTIONS = dict(nogil=True, cache=True, error_model="numpy", no_cfunc_wrapper=True)
LANES = 16  # numbers in a vector register, two of them where the processor's are shorter
PREFETCH_ROWS = 8  # rows of a matrix that are asked for before they are needed

BITS, FLOAT = ir.IntType(32), ir.FloatType()


def _as_float(builder, value, kind, lanes: int | None = None):
    """float32 of a stored number, or of a vector of `lanes` of them; of a bfloat16 its bits are the upper half."""
    bits, real = (BITS, FLOAT) if lanes is None else (ir.VectorType(BITS, lanes), ir.VectorType(FLOAT, lanes))
    if kind == types.uint16:
        half = ir.Constant(bits, 16 if lanes is None else [16] * lanes)
        return builder.bitcast(builder.shl(builder.zext(value, bits), half), real)
    return builder.sitofp(value, real) if kind == types.int8 else value


@intrinsic
def to_float(_, number):
    """float32 of a stored number."""

    def code(context, builder, signature, arguments):
        return _as_float(builder, arguments[0], number)

    return types.float32(number), code


@intrinsic
def from_float(_, number, like):
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
def as_pointer(_, address, like):
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


@numba.njit(fastmath=FASTMATH, inline="always")
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
def gemm_tile(_, w_NK, n, ns, scale_N, x_RK, r, rs, y_RN):
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
                ahead = builder.gep(row, [builder.add(k, builder.mul(columns, size(PREFETCH_ROWS)))])
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
