"""The KV cache of latent attention, in transformers' cache interface."""

import torch
from transformers.cache_utils import Cache, DynamicLayer


class MLACacheLayer(DynamicLayer):
    """One layer's cache: a preallocated (B, 1, capacity, C + R) buffer of normalised latents and rotated keys."""

    def __init__(self, capacity: int):
        super().__init__()
        self.capacity = capacity
        self.length = 0

    def lazy_initialization(self, entries, _=None):
        batch, num_heads, _, width = entries.shape
        self.dtype, self.device = entries.dtype, entries.device
        self.keys = entries.new_empty(batch, num_heads, self.capacity, width)
        self.values = entries.new_empty(batch, num_heads, 0, 0)  # the base class expects both
        self.is_initialized = True

    def extend(self, like, num_tokens: int):
        """Lengthens the cache by `num_tokens` uninitialised entries of the dtype and width of `like` (B, 1, *, C + R)."""
        if not self.is_initialized:
            self.lazy_initialization(like)
        end = self.length + num_tokens
        if end > self.capacity:
            old = self.keys[..., : self.length, :]
            self.capacity = max(end, 2 * self.capacity)
            self.lazy_initialization(like)
            self.keys[..., : self.length, :] = old
        self.length = end

    def update(self, entries, *_, **__):
        """Appends entries (B, 1, S, C + R); returns all entries (B, 1, T, C + R) and no values."""
        self.extend(entries, entries.shape[-2])
        self.keys[..., self.length - entries.shape[-2] : self.length, :] = entries
        return self.keys[..., : self.length, :], self.values

    def get_seq_length(self):
        return self.length

    def reset(self):
        self.length = 0

    def crop(self, tokens_to_remove: int):
        """Removes the last tokens; transformers passes their number negated."""
        self.length = max(0, self.length - abs(tokens_to_remove))


class MLACache(Cache):
    """(C + R) elements per token and layer; `capacity` tokens at first, doubled whenever it is full."""

    def __init__(self, config, capacity: int = 256):
        super().__init__(layers=[MLACacheLayer(capacity) for _ in range(config.num_hidden_layers)])


class DeepseekV2CacheLayer(MLACacheLayer):
    """The same entries for transformers' DeepSeek-V2, which rotates the pairs (0, 1), (2, 3)... where ours come in halves."""

    def update(self, latents, rotary, *_, **__):
        """Appends latents (B, 1, S, C) and rotary keys (B, 1, S, R); returns all of them."""
        entries, _ = super().update(torch.cat([latents, rotary[..., 0::2], rotary[..., 1::2]], -1))
        latents, *halves = entries.tensor_split((latents.shape[-1], latents.shape[-1] + rotary.shape[-1] // 2), -1)
        return latents, torch.stack(halves, -1).flatten(-2)


class DeepseekV2Cache(Cache):
    """An MLACache for transformers' DeepseekV2ForCausalLM."""

    def __init__(self, config, capacity: int = 256):
        super().__init__(layers=[DeepseekV2CacheLayer(capacity) for _ in range(config.num_hidden_layers)])
