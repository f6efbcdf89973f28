"""Grouped-query attention of a decode step against transformers' own, in every variant that is supported."""

import pytest
import torch
from families import tiny_model
from inference.test_decode_model import decode
from tiny_model import assert_close, logits_of, random_ids

from deepseek.inference.decode_model import supports

ROPE = dict(rope_theta=1e4, factor=2.0, original_max_position_embeddings=16)
VARIANTS = {
    "a group of two": ("mixtral", dict(num_key_value_heads=2)),
    "one key for all heads": ("mixtral", dict(num_key_value_heads=1)),
    "multi-head": ("mixtral", dict(num_key_value_heads=4)),
    "a window that no text fills": ("mixtral", dict(sliding_window=256)),
    "norms of whole queries and keys": ("olmoe", dict(num_key_value_heads=2)),
    "norms of heads": ("qwen3_moe", dict(head_dim=24)),
    "biases": ("qwen2_moe", dict(qkv_bias=True)),
    "biases of all projections": ("olmoe", dict(attention_bias=True)),
    "half of a head rotated": ("glm4_moe", dict(use_qk_norm=True)),
    "yarn": ("qwen3_moe", dict(rope_parameters=ROPE | dict(rope_type="yarn"))),
    "linear rope": ("qwen3_moe", dict(rope_parameters=ROPE | dict(rope_type="linear"))),
    "llama3 rope": (
        "olmoe",
        dict(rope_parameters=ROPE | dict(rope_type="llama3", low_freq_factor=1.0, high_freq_factor=4.0)),
    ),
}
UNSUPPORTED = {
    "sliding window": ("mixtral", dict(sliding_window=6)),
    "clipped": ("olmoe", dict(clip_qkv=8.0)),
    "another activation": ("qwen3_moe", dict(hidden_act="gelu")),
    "frequencies that depend on the length": ("qwen3_moe", dict(rope_parameters=ROPE | dict(rope_type="dynamic"))),
    "groups of experts": ("glm4_moe", dict(n_group=2)),
    "another family": ("flex_olmo", {}),
}


def variant(name, changes):
    model = tiny_model(name, **dict(sliding_window=256) | changes)
    generator = torch.Generator().manual_seed(1)
    for _, parameter in model.named_parameters():
        if parameter.dim() == 1:  # norms that are not all ones, and biases that are not 0
            parameter.data += torch.empty_like(parameter).normal_(0, 0.2, generator=generator)
    return model


@pytest.mark.parametrize("name, changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_logits_are_those_of_one_forward_pass(name, changes):
    model, ids = variant(name, changes), random_ids(1, 24)
    assert supports(model)
    assert_close(decode(model, ids), logits_of(model, ids)[0, 5:])


@pytest.mark.parametrize("name, changes", UNSUPPORTED.values(), ids=UNSUPPORTED.keys())
def test_what_is_not_supported(name, changes):
    assert not supports(variant(name, changes))


def test_a_linear_layer_of_another_kind_is_not_supported():
    class QuantizedLinear(torch.nn.Linear):
        pass

    model = variant("mixtral", {})
    model.model.layers[1].self_attn.k_proj.__class__ = QuantizedLinear
    assert not supports(model)
