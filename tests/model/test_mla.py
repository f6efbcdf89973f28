"""Absorbed attention against naive attention, attention weights and rotary embeddings."""

import math

import pytest
import torch
from tiny_model import assert_close, make_model, random_ids

from deepseek.model.config import preset

both_attentions = pytest.mark.parametrize("attention", ["sdpa", "eager"])


@both_attentions
def test_absorbed_attention_equals_naive_attention(attention):
    config = preset("tiny")
    layer = make_model(attention=attention).model.layers[1].self_attn
    heads, length = config.num_attention_heads, 7
    q_nope = torch.randn(2, heads, length, config.qk_nope_head_dim)
    q_rope = torch.randn(2, heads, length, config.qk_rope_head_dim)
    entries = torch.randn(2, 1, length, config.kv_lora_rank + config.qk_rope_head_dim)
    mask = torch.full((1, 1, length, length), -math.inf).triu(1)
    absorbed, absorbed_weights = layer.absorbed(q_nope, q_rope, entries, mask)
    naive, naive_weights = layer.naive(q_nope, q_rope, entries, mask)
    assert_close(absorbed, naive)
    if attention == "eager":
        assert_close(absorbed_weights, naive_weights)


def test_eager_attention_weights_are_causal_and_sum_to_one():
    model, ids = make_model(attention="eager"), random_ids(2, 9)
    attentions = model(ids, output_attentions=True).attentions
    assert len(attentions) == model.config.num_hidden_layers
    for weights in attentions:
        assert weights.shape == (2, model.config.num_attention_heads, 9, 9)
        assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]), 1e-5)
        assert (weights.triu(1) == 0).all() and (weights.tril() > 0).any()


def test_an_unknown_rope_type_is_an_error():
    with pytest.raises(ValueError, match="'dynamic'"):
        make_model(rope_parameters=dict(rope_type="dynamic", rope_theta=10_000.0, factor=2.0))
