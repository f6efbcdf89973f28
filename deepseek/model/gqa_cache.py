"""The KV cache of grouped-query attention, in transformers' cache interface and laid out for the decode kernels."""

import torch
from transformers.cache_utils import Cache

from deepseek.model.mla_cache import MLACacheLayer


class GQACacheLayer(MLACacheLayer):
    """One layer's cache: a preallocated (B, 1, capacity, 2 G N) buffer of G keys and then G values, each N wide, per token."""

    def update(self, keys, values, *_, **__):
        """Appends keys and values (B, G, S, N); returns all keys and all values (B, G, T, N), views of the buffer."""
        heads_BXSN = torch.cat([keys, values], 1)
        entries, _ = super().update(heads_BXSN.transpose(1, 2).flatten(2)[:, None])
        return entries[:, 0].unflatten(-1, heads_BXSN.shape[1::2]).transpose(1, 2).chunk(2, 1)


class GQACache(Cache):
    """2 G N elements per token and layer; `capacity` tokens at first, doubled whenever it is full."""

    def __init__(self, config, capacity: int = 256):
        super().__init__(layers=[GQACacheLayer(capacity) for _ in range(config.num_hidden_layers)])
