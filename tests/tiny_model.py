"""The tiny preset with weights that matter, and its logits, for the tests of the model."""

import torch
from small import randomized

from deepseek.model.config import preset
from deepseek.model.deepseek_v3 import DeepseekV3ForCausalLM
from deepseek.model.mla_cache import MLACache


def make_model(model_class=DeepseekV3ForCausalLM, attention="sdpa", **changes):
    return randomized(model_class(preset("tiny", attn_implementation=attention, **changes)))


def random_ids(rows, length, seed=0):
    return torch.randint(1, 257, (rows, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits_of(model, ids, **inputs):
    return model(ids, **inputs).logits


def logits_in_chunks(model, ids, chunks, cache=None):
    """The same logits, computed chunk by chunk over one cache."""
    cache = MLACache(model.config) if cache is None else cache
    return torch.cat([logits_of(model, chunk, past_key_values=cache) for chunk in ids.split(chunks, 1)], 1)


def assert_close(actual, expected, tolerance=1e-4):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)
