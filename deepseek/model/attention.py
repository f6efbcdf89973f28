"""Causal attention in blocks of queries, for CPUs on which torch's fused kernel is slow.

The fused kernel needs values as wide as keys and multiplies at a third of the processor's speed. Here each block of queries
meets all keys up to its end in one large product. The backward pass computes the weights again, as FlashAttention does (Dao
et al., 2022, section 3.1), so memory never holds more than one block of them. It buys 3 % of a training step.

Shape letters: B batch, H heads, G = B*H, S tokens, T tokens up to a block's end, Q width of queries and keys, V of values.
"""

import math

import torch

from deepseek.model import cpu_features

BLOCK = 96  # queries; 64 and 128 are as fast within a few percent


def supports(query) -> bool:
    """Whether to use this kernel: on CPUs without AMX tiles. With AMX it was never compared with the fused kernel."""
    return query.device.type == "cpu" and not cpu_features.has_amx_tiles()


def causal_attention(query, key, value, scale: float):
    """softmax(scale * query key^T) value, each token over itself and those before it.

    Queries and keys (B, H, S, Q), values (B, H, S, V); returns (B, H, S, V). Keys and values beyond S are ignored. Scores
    are in float32 whatever the dtype of the inputs; under an autocast the inputs are cast to its dtype.
    """
    num_tokens = query.shape[2]
    key, value = key[:, :, :num_tokens], value[:, :, :num_tokens]
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (x.to(torch.get_autocast_dtype("cpu")) for x in (query, key, value))
    with torch.autocast("cpu", enabled=False):
        return _Causal.apply(*(x.flatten(0, 1) for x in (query, key, value)), scale).unflatten(0, query.shape[:2])


class _Causal(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query_GSQ, key_GSQ, value_GSV, scale):
        ctx.save_for_backward(query_GSQ, key_GSQ, value_GSV)
        ctx.scale = scale
        output_GSV = torch.empty_like(value_GSV)
        for block, context in _blocks(query_GSQ):
            weights = _weights(query_GSQ[:, block], key_GSQ[:, context], scale)
            output_GSV[:, block] = weights.to(value_GSV) @ value_GSV[:, context]
        return output_GSV

    @staticmethod
    def backward(ctx, grad_GSV):
        query_GSQ, key_GSQ, value_GSV = ctx.saved_tensors
        d_query, d_key, d_value = torch.empty_like(query_GSQ), torch.zeros_like(key_GSQ), torch.zeros_like(value_GSV)
        for block, context in _blocks(query_GSQ):
            weights = _weights(query_GSQ[:, block], key_GSQ[:, context], ctx.scale)
            d_value[:, context].baddbmm_(weights.to(value_GSV).mT, grad_GSV[:, block])
            weighted = (grad_GSV[:, block] @ value_GSV[:, context].mT).float().mul_(weights)
            d_scores = weighted.addcmul_(weights, weighted.sum(-1, keepdim=True), value=-1).to(query_GSQ)
            d_query[:, block] = d_scores @ key_GSQ[:, context]
            d_key[:, context].baddbmm_(d_scores.mT, query_GSQ[:, block], alpha=ctx.scale)
        return d_query.mul_(ctx.scale), d_key, d_value, None


def _blocks(query_GSQ):
    """(its queries, the tokens up to its end) of every block, as slices."""
    num_tokens = query_GSQ.shape[1]
    starts = range(0, num_tokens, BLOCK)
    return [(slice(start, end), slice(end)) for start in starts for end in [min(start + BLOCK, num_tokens)]]


def _weights(query_GSQ, key_GTQ, scale):
    """The attention weights of the last S of T tokens, (G, S, T) in float32."""
    num_queries, num_keys = query_GSQ.shape[1], key_GTQ.shape[1]
    mask = torch.full((num_queries, num_keys), -math.inf).triu_(1 + num_keys - num_queries)
    return torch.baddbmm(mask, query_GSQ.float(), key_GTQ.float().mT, alpha=scale).softmax(-1)
