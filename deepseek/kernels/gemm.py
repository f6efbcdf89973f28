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
from numba import prange

from deepseek.kernels.llvm import KERNEL_OPTIONS, gemm_tile

MIN_PARALLEL_MULTIPLICATIONS = 100_000  # multiplications from which a second thread pays
thread_pool_lock = threading.Lock()  # Numba's threads work for one caller at a time


@numba.njit(**KERNEL_OPTIONS)
def gemm_columns(w_NK, scale_N, x_RK, y_RN, first, last):
    """Columns first to last - 1 of y."""
    rows, whole = len(x_RK), last - (last - first) % 4
    for n in range(first, whole, 4):
        r = 0
        while r < rows:
            if rows - r >= 8:
                for half in range(n, n + 4, 2):
                    gemm_tile(w_NK, half, 2, scale_N, x_RK, r, 8, y_RN)
                r += 8
            elif rows - r >= 4:
                gemm_tile(w_NK, n, 4, scale_N, x_RK, r, 4, y_RN)
                r += 4
            elif rows - r >= 2:
                gemm_tile(w_NK, n, 4, scale_N, x_RK, r, 2, y_RN)
                r += 2
            else:
                gemm_tile(w_NK, n, 4, scale_N, x_RK, r, 1, y_RN)
                r += 1
    for n in range(whole, last):
        for r in range(rows):
            gemm_tile(w_NK, n, 1, scale_N, x_RK, r, 1, y_RN)


@numba.njit(**KERNEL_OPTIONS)
def _grouped_gemm_part(w_ENK, scale_EN, x_RK, ends_E, y_RN, part, parts):
    """The part-th of `parts` shares of the columns of y; the rows of x of each matrix follow those of the one before."""
    columns, start = w_ENK.shape[1], 0
    fours = (columns + 3) // 4
    first, last = fours * part // parts * 4, min(columns, fours * (part + 1) // parts * 4)
    for e in range(len(ends_E)):
        end = ends_E[e]
        if end > start:
            gemm_columns(w_ENK[e], scale_EN[e], x_RK[start:end], y_RN[start:end], first, last)
        start = end


@numba.njit(**KERNEL_OPTIONS, parallel=True)
def _parallel_grouped_gemm(w_ENK, scale_EN, x_RK, ends_E, y_RN, parts):
    for part in prange(parts):
        _grouped_gemm_part(w_ENK, scale_EN, x_RK, ends_E, y_RN, np.int64(part), parts)


def set_num_threads(threads: int) -> None:
    """As many of Numba's threads as are asked for take part in what this thread calls from now on.

    It changes how many threads OpenMP gives to others: at first Numba starts one for every processor.
    """
    if threads > 1:
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))


def grouped_gemm(w_ENK, scale_EN, x_RK, ends_E, threads: int):
    """(scale W) x for every row of x, with matrix e for those before row ends_E[e] that no matrix before it has: (R, N)."""
    y_RN = np.empty((len(x_RK), w_ENK.shape[1]), np.float32)
    if threads > 1 and w_ENK[0].size * len(x_RK) >= MIN_PARALLEL_MULTIPLICATIONS:
        with thread_pool_lock:
            _parallel_grouped_gemm(w_ENK, scale_EN, x_RK, ends_E, y_RN, threads)
    else:
        _grouped_gemm_part(w_ENK, scale_EN, x_RK, ends_E, y_RN, 0, 1)
    return y_RN
