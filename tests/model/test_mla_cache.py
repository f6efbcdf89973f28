"""The latent cache: its size, growth, crops and order of rows."""

import pytest
import torch
from families import tiny_model
from tiny_model import assert_close, logits_in_chunks, logits_of, make_model, random_ids

from deepseek.model.config import kv_cache_elements_per_token
from deepseek.model.mla_cache import DeepseekV2Cache, MLACache


def test_cache_keeps_one_latent_and_one_rotary_key_per_token_and_layer():
    model, ids = make_model(), random_ids(2, 10)
    cache = MLACache(model.config, capacity=10)
    logits_of(model, ids, past_key_values=cache)
    elements = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    config = model.config
    assert kv_cache_elements_per_token(config)[0] == config.kv_lora_rank + config.qk_rope_head_dim
    assert elements == 2 * 10 * config.num_hidden_layers * kv_cache_elements_per_token(config)[0]


@pytest.mark.parametrize("chunks", [1, [3, 9, 1, 7]], ids=["decode", "chunks"])
def test_cache_grows_when_it_is_full(chunks):
    model, ids = make_model(), random_ids(2, 20)
    cache = MLACache(model.config, capacity=4)
    assert_close(logits_in_chunks(model, ids, chunks, cache), logits_of(model, ids))
    assert cache.get_seq_length() == 20


def test_decoding_after_a_crop_equals_decoding_from_the_start():
    model, ids, new_ids = make_model(), random_ids(1, 12), random_ids(1, 5, seed=1)
    cache = MLACache(model.config)
    logits_in_chunks(model, ids, [12], cache)
    cache.crop(-4)
    assert cache.get_seq_length() == 8
    assert_close(
        logits_in_chunks(model, new_ids, 1, cache), logits_of(model, torch.cat([ids[:, :8], new_ids], 1))[:, 8:]
    )


@pytest.mark.parametrize(
    "change, rows",
    [
        (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
        (lambda cache: cache.batch_select_indices(torch.tensor([2, 0])), [2, 0]),
        (lambda cache: cache.reorder_cache(torch.tensor([1, 1, 0])), [1, 1, 0]),
    ],
    ids=["repeat", "select", "reorder"],
)
def test_cache_rows_can_be_reordered(change, rows):
    model, ids = make_model(), random_ids(3, 8)
    cache = MLACache(model.config, capacity=9)
    logits_in_chunks(model, ids, [8], cache)
    change(cache)
    new_ids = random_ids(len(rows), 4, seed=1)
    assert_close(
        logits_in_chunks(model, new_ids, 1, cache), logits_of(model, torch.cat([ids[rows], new_ids], 1))[:, 8:]
    )


@pytest.mark.parametrize("chunks", [1, [3, 9, 1, 7]], ids=["decode", "chunks"])
def test_deepseek_v2_gives_the_same_over_this_cache(chunks):
    model, ids = tiny_model("deepseek_v2"), random_ids(2, 20)
    cache = DeepseekV2Cache(model.config, capacity=4)
    assert_close(logits_in_chunks(model, ids, chunks, cache), logits_of(model, ids))
    entry = model.config.kv_lora_rank + model.config.qk_rope_head_dim
    assert {layer.keys.shape[-1] for layer in cache.layers} == {entry}
