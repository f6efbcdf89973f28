"""What is cached of a token, against filled caches."""

import torch
from families import tiny_model

from deepseek.interpret.kv_cache import cache_elements, recorded_latents


def test_elements_are_those_of_a_filled_cache(any_model):
    with torch.no_grad():
        layers = any_model(torch.tensor([[5, 9, 17]]), use_cache=True).past_key_values.layers
    filled = [layer.keys[:, :, :3].numel() + layer.values[:, :, :3].numel() for layer in layers]
    assert [3 * own for own, _ in cache_elements(any_model)] == filled


def test_layers_without_attention_cache_nothing_of_a_token():
    assert cache_elements(tiny_model("jamba")) == [(0, 0), (32, 32)] * 2


def test_latents_are_cached_in_place_of_keys_and_values():
    model = tiny_model("glm_moe_dsa")  # which caches the keys of an indexer, 8 elements, besides
    assert cache_elements(model) == [(16 + 4 + 8, 4 * 16)] * 4
    with torch.no_grad(), recorded_latents(model) as norms:
        model(torch.tensor([[5, 9, 17]]), use_cache=False)
    assert list(norms) == [0, 1, 2, 3] and norms[0].raw.shape == norms[0].cached.shape == (3,)
