"""Causal attention, a block of queries at a time, for processors on which torch's fused kernel is slow.

That kernel wants values as wide as keys, and multiplies at a third of the processor's speed. Here a block of queries meets
the keys up to its end in one large product; its weights are made once more for the gradients, so that, as in FlashAttention
(Dao et al., 2022, section 3.1), no more than a block of them is ever in memory.

Shape letters: B texts, H heads, G heads of all texts, S tokens, T tokens up to the last of them, Q width of a query and a key,
V of a value.
"""

import math

import torch

BLOCK = 96  # queries; 64 and 128 are as fast within a few percent


def suits(query) -> bool:
    """Whether this is taken: on processors without AMX tiles. With them the two were not measured beside each other."""
    return query.device.type == "cpu" and not torch.cpu._is_amx_tile_supported()


def causal_attention(query, key, value, scale: float):
    """softmax(scale * query key^T) value, each token over itself and those before it.

    Queries and keys (B, H, S, Q), values (B, H, S, V); returns (B, H, S, V). Keys and values may have room for more tokens,
    which is not looked at. Scores are in float32 whatever the inputs are; under an autocast these are in its precision.
    """
    tokens = query.shape[2]
    key, value = key[:, :, :tokens], value[:, :, :tokens]
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
        for block, seen in _blocks(query_GSQ):
            output_GSV[:, block] = (
                _weights(query_GSQ[:, block], key_GSQ[:, seen], scale).to(value_GSV) @ value_GSV[:, seen]
            )
        return output_GSV

    @staticmethod
    def backward(ctx, gradient_GSV):
        query_GSQ, key_GSQ, value_GSV = ctx.saved_tensors
        to_query, to_key, to_value = torch.empty_like(query_GSQ), torch.zeros_like(key_GSQ), torch.zeros_like(value_GSV)
        for block, seen in _blocks(query_GSQ):
            weights = _weights(query_GSQ[:, block], key_GSQ[:, seen], ctx.scale)
            to_value[:, seen].baddbmm_(weights.to(value_GSV).mT, gradient_GSV[:, block])
            to_weights = (gradient_GSV[:, block] @ value_GSV[:, seen].mT).float()
            to_scores = torch._softmax_backward_data(to_weights, weights, -1, torch.float32).to(query_GSQ)
            to_query[:, block] = to_scores @ key_GSQ[:, seen]
            to_key[:, seen].baddbmm_(to_scores.mT, query_GSQ[:, block], alpha=ctx.scale)
        return to_query.mul_(ctx.scale), to_key, to_value, None


def _blocks(query_GSQ):
    """(its queries, the tokens that the last of them sees) of every block, as slices."""
    tokens = query_GSQ.shape[1]
    ends = [min(start + BLOCK, tokens) for start in range(0, tokens, BLOCK)]
    return [(slice(start, end), slice(end)) for start, end in zip([0, *ends], ends)]


def _weights(query_GSQ, key_GTQ, scale):
    """What the last S of T tokens give to each of the T, (G, S, T) in float32."""
    count, tokens = query_GSQ.shape[1], key_GTQ.shape[1]
    later = torch.full((count, tokens), -math.inf).triu_(1 + tokens - count)
    return torch.baddbmm(later, query_GSQ.float(), key_GTQ.float().mT, alpha=scale).softmax(-1)
