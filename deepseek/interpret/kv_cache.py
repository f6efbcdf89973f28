"""The KV cache: what a model caches of every token, counted in a cache that it fills, and the latents that some models cache."""

import threading
import weakref
from collections import Counter
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import NamedTuple

import torch

from deepseek.interpret.model_parts import decoder, decoder_layers, is_hooked, layer_index
from deepseek.model.config import kv_cache_elements_per_token
from deepseek.model.deepseek_v3 import DeepseekV3ForCausalLM

UP_PROJECTION, LATENT_NORM = "kv_b_proj", "kv_a_layernorm"  # of latent attention, in every family that has it
CACHE_NAMES = ("past_key_values", "cache_params")

_norms: ContextVar[dict | None] = ContextVar("norms of latents", default=None)
_hook_lock = threading.Lock()
_counted: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


class LatentNorms(NamedTuple):
    """Euclidean norms of one layer's latents c_kv, (tokens,) float32: of W_DKV's output, and after the RMSNorm behind it."""

    raw: torch.Tensor
    cached: torch.Tensor


def cache_elements(model) -> list[tuple[int, int]]:
    """What each layer caches of a token, in elements: (of this model, of the same heads as uncompressed keys and values).

    A layer without attention caches a state, whose size does not grow: 0. The two are equal without latent attention
    (DeepSeek-V2, section 2.1). Runs the model on two tokens when a model is first asked about.
    """
    if model not in _counted:
        if isinstance(model, DeepseekV3ForCausalLM):
            _counted[model] = [kv_cache_elements_per_token(model.config)] * model.config.num_hidden_layers
        else:
            full = Counter()
            for name, part in decoder(model).named_modules():
                if name.endswith(UP_PROJECTION):
                    full[layer_index(name)] += part.out_features
            _counted[model] = [(own, full[index] or own) for index, own in enumerate(_growth(model))]
    return _counted[model]


def cache_of(output, num_tokens: int) -> tuple[str, object]:
    """(name of the argument that continues from it, cache) in a model's output; state spaces have a name of their own.

    The cache is None if it does not know that it holds `num_tokens`: MiniMax's begins anew at position 0 (transformers 5.23).
    """
    name = next((name for name in CACHE_NAMES if name in output), CACHE_NAMES[0])
    cache = output.get(name)
    is_right = cache is not None and (name != CACHE_NAMES[0] or cache.get_seq_length() == num_tokens)
    return name, cache if is_right else None


@torch.inference_mode()
def _growth(model) -> list[int]:
    """By how many elements a second token makes the cache of each layer grow."""
    sizes, count = [], len(decoder_layers(model))
    for num_tokens in (1, 2):
        ids = torch.zeros(1, num_tokens, dtype=torch.long, device=model.device)
        output = model(ids, use_cache=True, logits_to_keep=1)
        cache = next(filter(None, map(output.get, CACHE_NAMES)), None)
        sizes.append([_num_elements(layer) for layer in getattr(cache, "layers", [])])
    grown = [after - before for before, after in zip(*sizes)]
    each = len(grown) // count  # two where a layer has two attentions
    if each * count == len(grown):
        return [sum(grown[index * each : (index + 1) * each]) for index in range(count)]
    return [*grown, *[0] * (count - len(grown))]  # the last layers share the caches of others


def _num_elements(value) -> int:
    """Elements of all tensors in a cache's layer, however it keeps them."""
    if torch.is_tensor(value):
        return value.numel()
    if isinstance(value, dict):
        return sum(map(_num_elements, value.values()))
    if isinstance(value, (list, tuple)):
        return sum(map(_num_elements, value))
    return sum(map(_num_elements, vars(value).values())) if hasattr(value, "update") else 0


@contextmanager
def recorded_latents(model):
    """Yields a dict that a pass in this thread fills: {layer: LatentNorms} of the layers with latent attention."""
    with _hook_lock:
        for name, norm in decoder(model).named_modules():
            if name.endswith(LATENT_NORM) and not is_hooked(norm._forward_hooks, _keep_norms):
                norm.register_forward_hook(partial(_keep_norms, layer_index(name)))
    token = _norms.set({})
    try:
        yield _norms.get()
    finally:
        _norms.reset(token)


def _keep_norms(layer: int, _module, inputs, output) -> None:
    if (norms := _norms.get()) is not None:
        norms[layer] = LatentNorms(
            *(latent.float().flatten(0, -2).norm(dim=-1).cpu() for latent in (inputs[0], output))
        )
