"""The cache of grouped-query attention: what transformers' own cache gives, and its size, growth and crops."""

import pytest
import torch
from families import LAYERS, tiny_model
from tiny_model import assert_close, logits_in_chunks, logits_of, random_ids

from deepseek.model.gqa_cache import GQACache


@pytest.fixture(scope="module")
def qwen():
    return tiny_model("qwen3_moe")


def test_it_gives_the_keys_and_values_that_transformers_cache_gives(qwen):
    ids, ours = random_ids(2, 10), GQACache(qwen.config, capacity=4)
    with torch.no_grad():
        theirs = qwen(ids[:, :9], use_cache=True).past_key_values
        qwen(ids[:, :9], past_key_values=ours)
    for layer, other in zip(ours.layers, theirs.layers):
        keys = torch.randn(2, 2, 1, 8)
        for part, expected in zip(layer.update(keys, -keys), other.update(keys, -keys)):
            assert torch.equal(part, expected)


@pytest.mark.parametrize("chunks", [1, [3, 9, 1, 7]], ids=["decode", "chunks"])
def test_it_grows_when_it_is_full(qwen, chunks):
    ids, cache = random_ids(2, 20), GQACache(qwen.config, capacity=4)
    assert_close(logits_in_chunks(qwen, ids, chunks, cache), logits_of(qwen, ids))
    entry = 2 * qwen.config.num_key_value_heads * qwen.model.layers[0].self_attn.head_dim
    assert cache.get_seq_length() == 20
    assert [layer.keys.numel() for layer in cache.layers] == [2 * cache.layers[0].capacity * entry] * LAYERS


def test_decoding_after_a_crop_equals_decoding_from_the_start(qwen):
    ids, new_ids, cache = random_ids(1, 12), random_ids(1, 5, seed=1), GQACache(qwen.config)
    logits_in_chunks(qwen, ids, [12], cache)
    cache.crop(-4)
    expected = logits_of(qwen, torch.cat([ids[:, :8], new_ids], 1))[:, 8:]
    assert_close(logits_in_chunks(qwen, new_ids, 1, cache), expected)
