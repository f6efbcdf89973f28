"""The kernels' definitions in plain NumPy, which tests/kernels compares them with.

Shape letters are those of each kernel's module.
"""

import numpy as np


def to_float32(stored):
    """float32 of stored values: float32, int8, or the bits of bfloat16 as uint16."""
    return (stored.astype(np.uint32) << 16).view(np.float32) if stored.dtype == np.uint16 else stored.astype(np.float32)


def grouped_gemm(w_ENK, scale_EN, x_RK, ends_E):
    """scale * x W^T (R, N), with matrix e for rows ends_E[e - 1] to ends_E[e] - 1."""
    groups = zip(to_float32(w_ENK), scale_EN, np.split(x_RK, ends_E[:-1]))
    return np.concatenate([x @ w.T * scale for w, scale, x in groups])


def rms_norm(x_RX, offset, weight_D, eps):
    """RMSNorm of D elements of every row, from `offset` on."""
    x_RD = x_RX[:, offset : offset + len(weight_D)]
    return x_RD / np.sqrt((x_RD**2).mean(1, keepdims=True) + eps) * weight_D


def silu_and_mul(gate_up_RX):
    """silu(gate) * up."""
    gate, up = np.split(gate_up_RX.astype(np.float64), 2, axis=1)
    return gate / (1 + np.exp(-gate)) * up


def sigmoid(logits_RE):
    """The sigmoid of every logit."""
    return 1 / (1 + np.exp(-logits_RE))


def softmax(logits_RE):
    """The softmax of every row."""
    powers_RE = np.exp(logits_RE - logits_RE.max(-1, keepdims=True))
    return powers_RE / powers_RE.sum(-1, keepdims=True)


def topk_route(scores_RE, bias_RE, offset_RE, top_k, normalize, scaling):
    """(indices, weights) of the experts of highest score plus bias, weighted by score plus offset."""
    indices_RK = np.argsort(-(scores_RE + bias_RE), axis=1, kind="stable")[:, :top_k]
    weights_RK = np.take_along_axis(scores_RE + offset_RE, indices_RK, 1)
    return indices_RK, weights_RK * scaling / (weights_RK.sum(1, keepdims=True) if normalize else 1)


def combine_experts(y_AD, order_A, weights_RK, y_RD):
    """Adds the weighted expert outputs to y_RD in place."""
    np.add.at(y_RD, order_A // weights_RK.shape[1], weights_RK.ravel()[order_A, None] * y_AD)


def apply_rotary_emb(x, cos, sin):
    """Rotates the pairs (j, J + j) of the last dimension."""
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)


def mla_decode(
    query_RX, compressed_RX, latent_offset, norm_C, eps, cos_RJ, sin_RJ, up_key_HCN, up_value_HVC, scale, caches
):
    """(output (R, H * V), new cache entries (R, W)) of float32 weights and `caches`, arrays (T - 1, W) without those entries."""
    (heads, latent, nope), rows = up_key_HCN.shape, len(query_RX)
    key_RW = compressed_RX[:, latent_offset + latent :]
    latent_RC = rms_norm(compressed_RX, latent_offset, norm_C, eps)
    entry_RW = np.concatenate([latent_RC, apply_rotary_emb(key_RW, cos_RJ, sin_RJ)], 1)
    query_RHQ = query_RX.reshape(rows, heads, -1)
    q_latent = np.einsum("rhn,hcn->rhc", query_RHQ[..., :nope], up_key_HCN)
    q_rotary = apply_rotary_emb(query_RHQ[..., nope:], cos_RJ[:, None], sin_RJ[:, None])
    outputs = []
    for query_HW, entry_W, cache in zip(np.concatenate([q_latent, q_rotary], -1), entry_RW, caches):
        entries_TW = np.concatenate([cache, entry_W[None]])
        sum_HC = softmax(query_HW @ entries_TW.T * scale) @ entries_TW[:, :latent]
        outputs.append(np.einsum("hc,hvc->hv", sum_HC, up_value_HVC).ravel())
    return np.stack(outputs), entry_RW


def gqa_decode(qkv_RX, head_dim, cos_RJ, sin_RJ, scale, caches):
    """(output (R, H * N), new cache entries (R, W)) of `caches`, arrays (T - 1, W) without those entries."""
    kv_heads, rotary, outputs = caches[0].shape[1] // (2 * head_dim), 2 * cos_RJ.shape[1], []
    heads_RHN = qkv_RX.reshape(len(qkv_RX), -1, head_dim)
    rotated = apply_rotary_emb(heads_RHN[..., :rotary], cos_RJ[:, None], sin_RJ[:, None])
    rotated_RHN = np.concatenate([rotated, heads_RHN[..., rotary:]], -1)
    query_RHN, key_RGN = np.split(rotated_RHN[:, :-kv_heads], [-kv_heads], axis=1)
    entry_RW = np.concatenate([key_RGN, heads_RHN[:, -kv_heads:]], 1).reshape(len(qkv_RX), -1)
    for query_HN, entry_W, cache in zip(query_RHN, entry_RW, caches):
        entries = np.concatenate([cache, entry_W[None]]).reshape(len(cache) + 1, 2, kv_heads, 1, head_dim)
        group = entries.repeat(len(query_HN) // kv_heads, 3).reshape(len(entries), 2, -1, head_dim)
        weights_HT = softmax(np.einsum("hn,thn->ht", query_HN, group[:, 0]) * scale)
        outputs.append(np.einsum("ht,thn->hn", weights_HT, group[:, 1]).ravel())
    return np.stack(outputs), entry_RW


def softmax_entropy(logits_N):
    """(probabilities, their entropy in nats)."""
    below_N = logits_N.astype(np.float64) - logits_N.max()
    probs_N = np.exp(below_N) / np.exp(below_N).sum()
    return probs_N, -(probs_N * np.log(np.maximum(probs_N, 1e-300))).sum()


def top_k_indices(logits_N, k):
    """The indices of the k highest logits and of all equal to the k-th, ascending."""
    return np.flatnonzero(logits_N >= np.sort(logits_N)[-min(k, len(logits_N))])


def top_p_indices(probs_N, p):
    """The indices of the fewest highest probabilities that sum to at least p, ascending; of equal ones the first."""
    order = np.argsort(-probs_N, kind="stable")
    cumulative = np.cumsum(probs_N[order], dtype=np.float64)
    return np.sort(order[: np.searchsorted(cumulative, p) + 1])


def typical_indices(probs_N, entropy, p):
    """The indices of the fewest probabilities that sum to at least p, of surprise nearest to the entropy, and of ties."""
    distance_N = np.abs(-np.log(np.maximum(probs_N, 1e-300)) - entropy)
    order = np.argsort(distance_N, kind="stable")
    cumulative = np.cumsum(probs_N[order], dtype=np.float64)
    last = order[min(np.searchsorted(cumulative, p), len(order) - 1)]
    return np.flatnonzero(distance_N <= distance_N[last])


def sample_index(probs_N, uniform):
    """The index on which a uniform number from 0 to 1 falls in the cumulative sum."""
    cumulative = np.cumsum(probs_N, dtype=np.float64)
    return min(np.searchsorted(cumulative, uniform * cumulative[-1], "right"), len(probs_N) - 1)
