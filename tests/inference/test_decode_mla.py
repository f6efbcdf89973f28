"""Latent attention of a decode step against the models' own: every variant of ours, and of transformers' DeepSeek-V2."""

import copy

import pytest
from families import tiny_model
from inference.test_decode_model import UNSUPPORTED, decode
from model.test_deepseek_v3 import VARIANTS, YARN
from small import randomized
from tiny_model import assert_close, logits_of, random_ids

from deepseek.model.deepseek_v3 import DeepseekV3ForCausalLM

OURS = {name: config for name, config in VARIANTS.items() if name not in UNSUPPORTED}
DEEPSEEK_V2 = {
    "no latent query": dict(q_lora_rank=None),
    "latent query": dict(q_lora_rank=16),
    "yarn": dict(rope_parameters=YARN | dict(mscale=0.7, mscale_all_dim=0.5)),
    "attention bias": dict(attention_bias=True),
}


@pytest.mark.parametrize("config", OURS.values(), ids=OURS.keys())
def test_logits_are_those_of_one_forward_pass(config):
    model, ids = randomized(DeepseekV3ForCausalLM(copy.deepcopy(config))), random_ids(1, 24)
    assert_close(decode(model, ids), logits_of(model, ids)[0, 5:])


@pytest.mark.parametrize("changes", DEEPSEEK_V2.values(), ids=DEEPSEEK_V2.keys())
def test_logits_are_those_of_transformers_deepseek_v2(changes):
    model, ids = tiny_model("deepseek_v2", **changes), random_ids(1, 24)
    assert_close(decode(model, ids), logits_of(model, ids)[0, 5:])
