"""The NumPy references against torch and the model, so that what the kernels are compared with is right."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from families import tiny_model

from deepseek.kernels import reference
from deepseek.model.config import preset
from deepseek.model.deepseek_v3 import DeepseekV3ForCausalLM
from deepseek.model.moe import DeepseekV3TopkRouter


def test_norm_activation_and_softmax_equal_torchs():
    x, weight = torch.randn(3, 8), torch.randn(8)
    np.testing.assert_allclose(
        reference.rms_norm(x.numpy(), 0, weight.numpy(), 1e-6), F.rms_norm(x, (8,), weight, 1e-6), atol=1e-5
    )
    gate, up = x.chunk(2, 1)
    np.testing.assert_allclose(reference.softmax(x.numpy()), x.softmax(-1), atol=1e-6)
    np.testing.assert_allclose(reference.silu_and_mul(x.numpy()), F.silu(gate) * up, atol=1e-6)
    probs, entropy = reference.softmax_entropy(x[0].numpy())
    expected = torch.distributions.Categorical(logits=x[0])
    np.testing.assert_allclose(probs, expected.probs, atol=1e-6)
    np.testing.assert_allclose(entropy, expected.entropy(), atol=1e-6)


@torch.no_grad()
def test_routing_equals_the_models_router():
    router, x = DeepseekV3TopkRouter(preset("tiny")), torch.randn(20, 72)
    torch.nn.init.normal_(router.weight, std=0.2)
    torch.nn.init.normal_(router.e_score_correction_bias)
    logits, weights, indices = router(x)
    bias = router.e_score_correction_bias.expand_as(logits)
    scores = reference.sigmoid(logits.numpy())
    ours = reference.topk_route(scores, bias.numpy(), 0, 2, True, router.config.routed_scaling_factor)
    assert np.array_equal(ours[0], indices)
    np.testing.assert_allclose(ours[1], weights, atol=1e-6)


@torch.no_grad()
def test_mla_decode_equals_the_models_attention():
    model = DeepseekV3ForCausalLM(preset("tiny", rope_interleave=False, q_lora_rank=None, initializer_range=0.2)).model
    attention, config, length = model.layers[0].self_attn, model.config, 6
    x = torch.randn(1, length, config.hidden_size)
    cos, sin = model.rotary_emb(torch.arange(length)[None], torch.float32)
    mask = torch.full((1, 1, length, length), -torch.inf).triu(1)
    expected, _ = attention(x, cos[:, None], sin[:, None], mask, None)
    up = attention.kv_b_proj.weight.view(attention.num_heads, -1, config.kv_lora_rank)
    up_key, up_value = up.split([attention.nope_dim, attention.v_dim], 1)
    norm, caches = attention.kv_a_layernorm.weight.numpy(), [np.empty((0, config.kv_lora_rank + 4), np.float32)]
    for t in range(length):
        query, compressed = attention.q_proj(x[:, t]).numpy(), attention.kv_a_proj_with_mqa(x[:, t]).numpy()
        outputs, entries = reference.mla_decode(
            query, compressed, 0, norm, 1e-6, cos[0, t : t + 1].numpy(), sin[0, t : t + 1].numpy(),
            up_key.transpose(1, 2).numpy(), up_value.numpy(), attention.scaling, caches,
        )  # fmt: skip
        caches = [np.concatenate([caches[0], entries])]
        output = attention.o_proj(torch.from_numpy(outputs).float())
        torch.testing.assert_close(output, expected[:, t], atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", ["mixtral", "glm4_moe"])  # which rotate all of a head and half of it
def test_gqa_decode_equals_the_models_attention(name):
    model, length = tiny_model(name, sliding_window=None).model, 6
    attention, config = model.layers[0].self_attn, model.config
    x = torch.randn(1, length, config.hidden_size)
    cos, sin = model.rotary_emb(x, torch.arange(length)[None])
    mask = torch.full((1, 1, length, length), -torch.inf).triu(1)
    expected, _ = attention(x, position_embeddings=(cos, sin), attention_mask=mask)
    cos, sin = (part[0].chunk(2, -1)[0].numpy() for part in (cos, sin))
    caches = [np.empty((0, 2 * config.num_key_value_heads * attention.head_dim), np.float32)]
    for t in range(length):
        qkv = torch.cat([project(x[:, t]) for project in (attention.q_proj, attention.k_proj, attention.v_proj)], -1)
        step = qkv.numpy(), attention.head_dim, cos[t : t + 1], sin[t : t + 1], attention.scaling, caches
        outputs, entries = reference.gqa_decode(*step)
        caches = [np.concatenate([caches[0], entries])]
        output = attention.o_proj(torch.from_numpy(outputs).float())
        torch.testing.assert_close(output, expected[:, t], atol=1e-4, rtol=1e-4)
