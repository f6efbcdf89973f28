"""TODO"""

import numba
import numpy as np

from deepseek.kernels.llvm import FASTMATH, KERNEL_OPTIONS, exp


@numba.njit(fastmath=FASTMATH, **KERNEL_OPTIONS)
def rms_norm(x_RX, at, weight_D, eps):
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


@numba.njit(fastmath=FASTMATH, **KERNEL_OPTIONS)
def silu_and_mul(gate_up_RX):
    """silu(gate) * up of rows that hold gate and up side by side: (R, X / 2)."""
    width = gate_up_RX.shape[1] // 2
    y_RF = np.empty((len(gate_up_RX), width), np.float32)
    for r in range(len(gate_up_RX)):
        for f in range(width):
            gate = gate_up_RX[r, f]
            y_RF[r, f] = gate / (np.float32(1) + exp(-gate)) * gate_up_RX[r, width + f]
    return y_RF


@numba.njit(**KERNEL_OPTIONS)
def topk_route(logits_RE, bias_RE, chosen, scaling):
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


@numba.njit(**KERNEL_OPTIONS)
def combine_experts(y_AD, order_A, weights_RK, y_RD):
    """Adds to every row the outputs of its experts, times their weights; order_A tells the assignment of each output."""
    for a in range(len(order_A)):
        r, k = divmod(order_A[a], weights_RK.shape[1])
        for d in range(y_RD.shape[1]):
            y_RD[r, d] += weights_RK[r, k] * y_AD[a, d]


@numba.njit(fastmath=FASTMATH, inline="always")
def apply_rotary_emb(x_X, at, cos_J, sin_J, y_X, to):
    """The rotary part of x, from `at` on, turned by its angles, into y from `to` on; pairs lie in halves."""
    half = len(cos_J)
    for j in range(half):
        first, second = x_X[at + j], x_X[at + half + j]
        y_X[to + j] = first * cos_J[j] - second * sin_J[j]
        y_X[to + half + j] = second * cos_J[j] + first * sin_J[j]
