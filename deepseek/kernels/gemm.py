"""Matrix products with few rows, for a decode step: each weight is read once, so reading weights sets the speed.

The kernels read weights as stored, float32, bfloat16 (its bits, as uint16) or int8, and compute in float32. The result of a
row does not depend on the rows beside it nor on the number of threads, to the last bit: every sum has one order of additions.

Elements are copied one by one where a slice would do: assigning a slice makes Numba compile shape checks.

Shape letters: R rows, one per sequence; N and K rows and columns of a matrix, E matrices.
"""

import threading

import numba
import numpy as np
from numba import prange

from deepseek.kernels.llvm import KERNEL_OPTIONS, gemm_tile

MIN_PARALLEL_MULTIPLICATIONS = 100_000  # multiplications from which a second thread pays
thread_pool_lock = threading.Lock()  # Numba's thread pool serves one caller at a time


@numba.njit(**KERNEL_OPTIONS)
def gemm_columns(w_NK, scale_N, x_RK, y_RN, first, last):
    """Columns `first` to `last` - 1 of y = scale * x W^T."""
    rows, whole = len(x_RK), last - (last - first) % 4
    for n in range(first, whole, 4):
        r = 0
        while rows - r >= 8:
            for half in range(n, n + 4, 2):
                gemm_tile(w_NK, half, 2, scale_N, x_RK, r, 8, y_RN)
            r += 8
        if rows - r >= 4:
            gemm_tile(w_NK, n, 4, scale_N, x_RK, r, 4, y_RN)
            r += 4
        if rows - r >= 2:
            gemm_tile(w_NK, n, 4, scale_N, x_RK, r, 2, y_RN)
            r += 2
        if rows - r == 1:
            gemm_tile(w_NK, n, 4, scale_N, x_RK, r, 1, y_RN)
    for n in range(whole, last):
        for r in range(rows):
            gemm_tile(w_NK, n, 1, scale_N, x_RK, r, 1, y_RN)


@numba.njit(**KERNEL_OPTIONS)
def _grouped_gemm_part(w_ENK, scale_EN, x_RK, ends_E, y_RN, part, num_parts):
    """One of `num_parts` ranges of the columns of y, four columns at a time."""
    columns, start = w_ENK.shape[1], 0
    fours = (columns + 3) // 4
    first, last = fours * part // num_parts * 4, min(columns, fours * (part + 1) // num_parts * 4)
    for e in range(len(ends_E)):
        end = ends_E[e]
        if end > start:
            gemm_columns(w_ENK[e], scale_EN[e], x_RK[start:end], y_RN[start:end], first, last)
        start = end


@numba.njit(**KERNEL_OPTIONS, parallel=True)
def _parallel_grouped_gemm(w_ENK, scale_EN, x_RK, ends_E, y_RN, num_parts):
    for part in prange(num_parts):
        _grouped_gemm_part(w_ENK, scale_EN, x_RK, ends_E, y_RN, np.int64(part), num_parts)


def set_num_threads(num_threads: int) -> None:
    """Sets how many of Numba's threads work for the calling thread.

    With OpenMP this also changes torch's number of threads: Numba's first call starts one per processor.
    """
    if num_threads > 1:
        numba.set_num_threads(min(num_threads, numba.config.NUMBA_NUM_THREADS))


def grouped_gemm(w_ENK, scale_EN, x_RK, ends_E, num_threads: int):
    """scale * x W^T (R, N), with matrix e for rows ends_E[e - 1] to ends_E[e] - 1."""
    y_RN = np.empty((len(x_RK), w_ENK.shape[1]), np.float32)
    if num_threads > 1 and w_ENK[0].size * len(x_RK) >= MIN_PARALLEL_MULTIPLICATIONS:
        with thread_pool_lock:
            _parallel_grouped_gemm(w_ENK, scale_EN, x_RK, ends_E, y_RN, num_threads)
    else:
        _grouped_gemm_part(w_ENK, scale_EN, x_RK, ends_E, y_RN, 0, 1)
    return y_RN
