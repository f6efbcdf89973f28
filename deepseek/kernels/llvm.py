"""What Numba cannot express: vector registers, prefetching and bfloat16, as LLVM instructions (numba 0.68, llvmlite 0.50).

On one thread, against loops that the compiler vectorises: `gemm_tile` multiplies 8 rows by 150 MB of bf16 weights in 7 ms where
those took 18 (Zen 5), and its prefetch reads bf16 weights from memory at 11 GB/s where they reached 7 (Xeon).
tests/kernels/ holds all of it to the NumPy references; it fails when numba or llvmlite change underneath.
"""

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

# LLVM's -O1 vectorises too: the kernels are as fast, their results the same, and compiling takes a fifth less time.
numba.config.OPT = type(numba.config.OPT)(1)
# Sums may be reordered for vector registers; NaN and infinity keep their meaning.
FASTMATH = {"reassoc", "contract", "arcp", "nsz"}
# Python's error model checks divisors for zero, which prevents vectorisation; C never calls a kernel.
KERNEL_OPTIONS = dict(nogil=True, cache=True, error_model="numpy", no_cfunc_wrapper=True)
LANES = 16  # float32 values in a vector register; two registers where the processor's are shorter
PREFETCH_ROWS = 8  # rows of a matrix between the one in use and the one to prefetch

INT, FLOAT = ir.IntType(32), ir.FloatType()


def _to_float(builder, value, dtype, lanes: int | None = None):
    """float32 of a stored value, or of a vector of `lanes` of them; the bits of a bfloat16 are the upper half."""
    bits, real = (INT, FLOAT) if lanes is None else (ir.VectorType(INT, lanes), ir.VectorType(FLOAT, lanes))
    if dtype == types.uint16:
        half = ir.Constant(bits, 16 if lanes is None else [16] * lanes)
        return builder.bitcast(builder.shl(builder.zext(value, bits), half), real)
    return builder.sitofp(value, real) if dtype == types.int8 else value


@intrinsic
def to_float(_, value):
    """float32 of a stored value: float32, int8, or bfloat16 as uint16."""

    def codegen(context, builder, signature, arguments):
        return _to_float(builder, arguments[0], value)

    return types.float32(value), codegen


@intrinsic
def from_float(_, value, like):
    """A float32 in the dtype of `like`, float32 or bfloat16 as uint16; to bfloat16 it rounds to nearest, ties to even."""

    def codegen(context, builder, signature, arguments):
        if like != types.uint16:
            return arguments[0]
        bits = builder.bitcast(arguments[0], INT)
        odd = builder.and_(builder.lshr(bits, INT(16)), INT(1))
        return builder.trunc(builder.lshr(builder.add(bits, builder.add(odd, INT(0x7FFF))), INT(16)), ir.IntType(16))

    return like(value, like), codegen


@intrinsic
def as_pointer(_, address, like):
    """An address as a pointer to values of the dtype of the array `like`."""

    def codegen(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(like.dtype)(address, like), codegen


@numba.njit(inline="always")
def cache_view(caches_R2, r, like_W):
    """The cache (T, W) of a sequence, from its address and length; its dtype and width W are those of `like_W`."""
    return numba.carray(as_pointer(caches_R2[r, 0], like_W), (caches_R2[r, 1], len(like_W)))


@numba.njit(fastmath=FASTMATH, inline="always")
def exp(x):
    """e**x by Cephes' expf for x from -87 to 88, clamped; unlike the library's it vectorises."""
    x = min(max(x, np.float32(-87)), np.float32(88))
    whole = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    x = x - whole * np.float32(0.693359375) + whole * np.float32(2.12194440e-4)
    y = np.float32(1.9875691500e-4)
    y = y * x + np.float32(1.3981999507e-3)
    y = y * x + np.float32(8.3334519073e-3)
    y = y * x + np.float32(4.1665795894e-2)
    y = y * x + np.float32(1.6666665459e-1)
    y = y * x + np.float32(5.0000001201e-1)
    power_of_two = np.int32((np.int32(whole) + 127) << 23).view(np.float32)  # by its bits
    return (y * x * x + x + np.float32(1)) * power_of_two


def _horizontal_sums(builder, vectors):
    """A vector of the sum of each vector; their number is a power of two up to LANES.

    Each step adds the halves of every vector, so a sum has one order of additions however many vectors are beside it. Two
    vectors whose halves were added then share one register.
    """
    width = LANES  # lanes left of each vector
    while width > 1:
        width //= 2
        low = [start + lane for start in range(0, vectors[0].type.count, 2 * width) for lane in range(width)]
        if len(vectors) > 1:
            low += [vectors[0].type.count + lane for lane in low]
        masks = [ir.Constant(ir.VectorType(INT, len(low)), [lane + half for lane in low]) for half in (0, width)]
        pairs = zip(vectors[::2], vectors[1::2]) if len(vectors) > 1 else [vectors * 2]
        vectors = [builder.fadd(*(builder.shuffle_vector(*pair, mask) for mask in masks)) for pair in pairs]
    return vectors[0]


@intrinsic(prefer_literal=True)
def gemm_tile(_, w_NK, n, num_n, scale_N, x_RK, r, num_r, y_RN):
    """Writes num_r rows from r by num_n columns from n of y = scale * x W^T; both are literals, so the sums stay in registers.

    A sum is LANES wide until its end whatever the tile, so its bits do not depend on the tile.
    Raises TypingError when compiled for arrays that are not C-contiguous.
    """
    arrays = w_NK, scale_N, x_RK, y_RN
    if any(array.layout != "C" for array in arrays):
        raise numba.TypingError("gemm_tile needs C-contiguous arrays.")

    def codegen(context, builder, signature, arguments):
        w, scale, x, y = (context.make_array(t)(context, builder, arguments[i]) for t, i in zip(arrays, (0, 3, 4, 7)))
        size = arguments[1].type
        columns, outputs = (cgutils.unpack_tuple(builder, array.shape)[1] for array in (x, y))
        n_indices = [builder.add(arguments[1], size(i)) for i in range(num_n.literal_value)]
        r_indices = [builder.add(arguments[5], size(j)) for j in range(num_r.literal_value)]
        w_rows = [builder.gep(w.data, [builder.mul(index, columns)]) for index in n_indices]
        x_rows = [builder.gep(x.data, [builder.mul(index, columns)]) for index in r_indices]
        cells = [(i, j) for i in range(len(n_indices)) for j in range(len(r_indices))]
        prefetch = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [ir.PointerType(), INT, INT, INT]), "llvm.prefetch.p0"
        )

        def load(row, k, dtype, lanes):
            scalar = context.get_data_type(dtype)
            vector = scalar if lanes is None else ir.VectorType(scalar, lanes)
            value = builder.load(builder.gep(row, [k]), align=dtype.bitwidth // 8, typ=vector)
            return _to_float(builder, value, dtype, lanes)

        def accumulate(sums, k, lanes=None):
            """Adds the products of `lanes` columns from the k-th on, or of the k-th alone."""
            ws = [load(row, k, w_NK.dtype, lanes) for row in w_rows]
            xs = [load(row, k, x_RK.dtype, lanes) for row in x_rows]
            for i, j in cells:
                product = builder.fmul(ws[i], xs[j], flags=("contract",))
                builder.store(builder.fadd(builder.load(sums[i, j]), product, flags=("contract",)), sums[i, j])

        whole, zeros = builder.and_(columns, size(-LANES)), ir.Constant(ir.VectorType(FLOAT, LANES), [0.0] * LANES)
        sums = {cell: cgutils.alloca_once_value(builder, zeros) for cell in cells}
        with cgutils.for_range_slice(builder, size(0), whole, size(LANES), size) as (k, _):
            for row in w_rows:  # the hardware prefetcher stops too early; prefetching past the end is harmless
                ahead = builder.gep(row, [builder.add(k, builder.mul(columns, size(PREFETCH_ROWS)))])
                builder.call(prefetch, [ahead, INT(0), INT(3), INT(1)])  # read, high locality, data
            accumulate(sums, k, LANES)
        totals = _horizontal_sums(builder, [builder.load(sums[cell]) for cell in cells])
        for index, cell in enumerate(cells):
            sums[cell] = cgutils.alloca_once_value(builder, builder.extract_element(totals, INT(index)))
        with cgutils.for_range_slice(builder, whole, columns, size(1), size) as (k, _):
            accumulate(sums, k)
        for i, j in cells:
            value = builder.fmul(builder.load(sums[i, j]), builder.load(builder.gep(scale.data, [n_indices[i]])))
            builder.store(value, builder.gep(y.data, [builder.add(builder.mul(r_indices[j], outputs), n_indices[i])]))
        return context.get_dummy_value()

    return types.none(w_NK, types.intp, num_n, scale_N, x_RK, types.intp, num_r, y_RN), codegen
