"""Presets, their parameters and their cache elements."""

import pytest
import torch

from deepseek.interpret.moe_layers import parameter_counts
from deepseek.model.config import kv_cache_elements_per_token, preset
from deepseek.model.deepseek_v3 import DeepseekV3ForCausalLM


def counts(name):
    with torch.device("meta"):  # shapes without memory
        return parameter_counts(DeepseekV3ForCausalLM(preset(name)))


def test_seed_has_the_published_size():
    assert counts("seed") == (128_798_016, 70_405_440)


def test_demo_fits_a_repository():
    total, active = counts("demo")
    assert active < total <= 28_000_000
    assert total * torch.bfloat16.itemsize <= 56 * 2**20


def test_tiny_is_tiny():
    assert counts("tiny")[0] < 1_000_000


def test_a_dense_model_uses_every_parameter():
    model = DeepseekV3ForCausalLM(preset("tiny", first_k_dense_replace=2))
    total, active = parameter_counts(model)
    assert active == total == sum(parameter.numel() for parameter in model.parameters())


def test_the_latent_cache_is_a_seventh_of_full_keys_and_values():
    assert kv_cache_elements_per_token(preset("seed")) == (160, 1152)


def test_changes_do_not_alter_the_preset():
    assert preset("tiny", num_hidden_layers=5, q_lora_rank=None).num_hidden_layers == 5
    assert preset("tiny", q_lora_rank=None).q_lora_rank is None
    assert preset("tiny").num_hidden_layers == 2


def test_an_unknown_preset_is_an_error():
    with pytest.raises(ValueError, match="'giant'.*seed, demo, quick, tiny"):
        preset("giant")
