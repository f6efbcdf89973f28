"""Attention weights of the layers that have attention, for any transformers causal model.

In hybrids only some layers have it: the others are state spaces, linear attention or convolutions. Which have it, and what
their maps are, comes from the modules that transformers names as a model's attention.
"""

from collections import defaultdict
from contextvars import ContextVar
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.utils.output_capturing import OutputRecorder

from deepseek.interpret.model_parts import cached_copy, decoder, layer_index
from deepseek.model.mla_cache import MLACache, MLACacheLayer

# Caches that a text can be continued from in several tokens at once; from others, of states or of indexed tokens, some models
# continue wrongly (transformers 5.23).
PLAIN_CACHE_LAYERS = {DynamicLayer, DynamicSlidingWindowLayer, MLACacheLayer}

_maps: ContextVar[dict[int, list[torch.Tensor]] | None] = ContextVar("attention maps", default=None)


def attention_layers(model) -> list[int]:
    """The decoder layers that compute attention weights."""
    return sorted({layer for layer, *_ in _attention_modules(model)})


def num_heads(model) -> int:
    """The most heads that a layer has; 0 without attention."""
    config = model.config.get_text_config()
    layers = [config.per_layer_config[index] for index in range(config.num_hidden_layers)]  # some families vary it
    counts = [getattr(layer, "num_attention_heads", 0) for layer in layers]
    return max([*counts, *(getattr(config, "num_attention_heads_per_layer", None) or [])])


def _attention_modules(model) -> list[tuple[int, nn.Module, int]]:
    """(decoder layer, module, which of its outputs are the weights) of every attention module."""
    recordable = [getattr(part, "_can_record_outputs", None) or {} for part in decoder(model).modules()]
    specs, found = next((each["attentions"] for each in recordable if "attentions" in each), []), []
    types = defaultdict(str, enumerate(getattr(model.config.get_text_config(), "layer_types", None) or []))
    for spec in specs if isinstance(specs, list) else [specs]:
        if not isinstance(spec, OutputRecorder):
            spec = OutputRecorder(spec, index=1)
        for name, module in decoder(model).named_modules():
            layer, is_named = layer_index(name), (spec.layer_name or "") in f".{name}."
            if isinstance(module, spec.target_class) and is_named and types[layer] != "linear_attention":
                found.append((layer, module, spec.index))
    return found


def _use_eager(model) -> None:
    """Eager attention returns its weights."""
    model.set_attn_implementation("eager")
    for layer, module, index in _attention_modules(model):
        module.register_forward_hook(partial(_keep, layer, index))


def _keep(layer: int, index: int, _module, _inputs, output) -> None:
    maps = _maps.get()
    if maps is not None and isinstance(output, tuple) and torch.is_tensor(output[index]):
        maps.setdefault(layer, []).append(output[index])


def attention_maps(model, ids: list[int], first: int, last: int) -> dict[int, torch.Tensor]:
    """{layer: (heads, last - first, last)}: the weights of query tokens first to last - 1 of token ids, in attention layers.

    The heads of a layer with several attention modules follow each other. A layer that attends to something else than tokens,
    such as compressed blocks of them, has weights of another width and is left out.
    """
    ids_1S, options = torch.tensor([ids[:last]], device=model.device), dict(use_cache=False)
    if first:  # the tokens before the range only fill the cache
        cache = model(ids_1S[:, :first], use_cache=True, logits_to_keep=1).past_key_values
        if {type(layer) for layer in cache.layers} <= PLAIN_CACHE_LAYERS and type(cache) in (DynamicCache, MLACache):
            ids_1S, options = ids_1S[:, first:], dict(use_cache=True, past_key_values=cache)
    token = _maps.set({})
    try:
        cached_copy(model, _use_eager)(ids_1S, logits_to_keep=1, **options)
        recorded = _maps.get()
    finally:
        _maps.reset(token)
    widths = {layer: {part.shape[-1] for part in parts} for layer, parts in recorded.items()}
    return {
        layer: torch.cat([F.pad(part[0, :, first - last :], (last - part.shape[-1], 0)) for part in parts])
        for layer, parts in recorded.items()
        if max(widths[layer]) <= last
    }
