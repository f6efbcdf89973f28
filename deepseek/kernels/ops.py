"""What lies between the matrix products of a decode step: norm, activation, routing, rotary embedding.

Shape letters: R rows, one per sequence; X width of several vectors side by side; D hidden width, E experts, K experts per
token, A = R*K assignments of a row to an expert, F inner width of an expert, J half the rotary width.
"""

import numba
import numpy as np

from deepseek.kernels.llvm import FASTMATH, KERNEL_OPTIONS, exp


@numba.njit(fastmath=FASTMATH, **KERNEL_OPTIONS)
def rms_norm(x_RX, offset, weight_D, eps):
    """RMSNorm (Zhang and Sennrich, 2019) of D elements of every row, from `offset` on: (R, D)."""
    width = len(weight_D)
    y_RD = np.empty((len(x_RX), width), np.float32)
    for r in range(len(x_RX)):
        squares = np.float32(0)
        for d in range(width):
            squares += x_RX[r, offset + d] * x_RX[r, offset + d]
        factor = np.float32(1) / np.sqrt(squares / np.float32(width) + np.float32(eps))
        for d in range(width):
            y_RD[r, d] = x_RX[r, offset + d] * factor * weight_D[d]
    return y_RD


@numba.njit(fastmath=FASTMATH, **KERNEL_OPTIONS)
def silu_and_mul(gate_up_RX):
    """silu(gate) * up, for rows with gate and up side by side: (R, X / 2)."""
    width = gate_up_RX.shape[1] // 2
    y_RF = np.empty((len(gate_up_RX), width), np.float32)
    for r in range(len(gate_up_RX)):
        for f in range(width):
            gate = gate_up_RX[r, f]
            y_RF[r, f] = gate / (np.float32(1) + exp(-gate)) * gate_up_RX[r, width + f]
    return y_RF


@numba.njit(**KERNEL_OPTIONS)
def sigmoid(logits_RE):
    """The sigmoid of every logit: the scores of a router whose experts do not compete (DeepSeek-V3, section 2.1.2)."""
    scores_RE = np.empty(logits_RE.shape, np.float32)
    for r in range(logits_RE.shape[0]):
        for e in range(logits_RE.shape[1]):
            scores_RE[r, e] = np.float32(1) / (np.float32(1) + np.exp(-logits_RE[r, e]))
    return scores_RE


@numba.njit(**KERNEL_OPTIONS)
def softmax(logits_RE):
    """The softmax of every row: the scores of most routers (Shazeer et al., 2017)."""
    scores_RE = np.empty(logits_RE.shape, np.float32)
    for r in range(logits_RE.shape[0]):
        highest, total = logits_RE[r].max(), np.float32(0)
        for e in range(logits_RE.shape[1]):
            scores_RE[r, e] = np.exp(logits_RE[r, e] - highest)
            total += scores_RE[r, e]
        for e in range(logits_RE.shape[1]):
            scores_RE[r, e] /= total
    return scores_RE


@numba.njit(**KERNEL_OPTIONS)
def topk_route(scores_RE, bias_RE, offset_RE, top_k, normalize, scaling):
    """(indices (R, K), weights (R, K)): the experts of highest score plus bias, weighted by `scaling` times their scores.

    `offset_RE` is added to the scores that weigh, not to those that choose. With `normalize` the scores of a row's experts are
    divided by their sum.
    """
    rows, num_experts = scores_RE.shape
    indices_RK, weights_RK = np.empty((rows, top_k), np.int64), np.empty((rows, top_k), np.float32)
    biased_E = np.empty(num_experts, np.float32)
    for r in range(rows):
        for e in range(num_experts):
            biased_E[e] = scores_RE[r, e] + bias_RE[r, e]
        total = np.float32(1e-20)
        for k in range(top_k):
            best = 0
            for e in range(1, num_experts):
                if biased_E[e] > biased_E[best]:
                    best = e
            indices_RK[r, k], weights_RK[r, k] = best, scores_RE[r, best] + offset_RE[r, best]
            total += weights_RK[r, k]
            biased_E[best] = -np.inf
        for k in range(top_k):
            weights_RK[r, k] *= np.float32(scaling) / (total if normalize else np.float32(1))
    return indices_RK, weights_RK


@numba.njit(**KERNEL_OPTIONS)
def combine_experts(y_AD, order_A, weights_RK, y_RD):
    """Adds the weighted expert outputs y_AD to y_RD in place; output a belongs to assignment order_A[a] = r * K + k."""
    for a in range(len(order_A)):
        r, k = divmod(order_A[a], weights_RK.shape[1])
        for d in range(y_RD.shape[1]):
            y_RD[r, d] += weights_RK[r, k] * y_AD[a, d]


@numba.njit(fastmath=FASTMATH, inline="always")
def apply_rotary_emb(x_X, offset, cos_J, sin_J, y_X, y_offset):
    """Rotates the 2 J elements of x from `offset` on into y from `y_offset` on; pairs are (j, J + j)."""
    half = len(cos_J)
    for j in range(half):
        first, second = x_X[offset + j], x_X[offset + half + j]
        y_X[y_offset + j] = first * cos_J[j] - second * sin_J[j]
        y_X[y_offset + half + j] = second * cos_J[j] + first * sin_J[j]


@numba.njit(fastmath=FASTMATH, inline="always")
def exp_scores(scores_T, scale):
    """Replaces attention scores by exp(scale * (score - the highest)); returns their sum, by which a softmax divides."""
    highest, total = np.float32(-np.inf), np.float32(0)
    for t in range(len(scores_T)):
        highest = max(highest, scores_T[t])
    for t in range(len(scores_T)):
        scores_T[t] = exp((scores_T[t] - highest) * np.float32(scale))
    for t in range(len(scores_T)):
        total += scores_T[t]
    return total
