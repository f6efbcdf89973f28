"""Small text and weights that many tests share."""

import torch
import transformers

from deepseek.interpret.moe_layers import moe_layers

STORIES = [f"Once upon a time fox number {i} ran over the hill to see {i * i} déjà vu 漢字 🦊 dogs." for i in range(40)]
SHAPE = dict(
    vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, bos_token_id=0, eos_token_id=0, pad_token_id=0,
)  # fmt: skip


def randomized(model):
    """Weights large enough that every part matters, and a router bias that changes which experts win."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in sorted(model.state_dict().items()):
        tensor.copy_(torch.empty(tensor.shape).normal_(1.0 if "norm" in name else 0.0, 0.1, generator=generator))
    return model.eval()


def dense():
    """Two tiny configurations without experts."""
    ends = dict(bos_token_id=0, eos_token_id=0)
    return {
        "llama": transformers.LlamaConfig(vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                               num_attention_heads=4, max_position_embeddings=64, **ends),
        "gpt2": transformers.GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4, n_positions=64, **ends),
    }  # fmt: skip


def families():
    """Tiny configurations of six mixtures of experts, as transformers builds them."""
    common = dict(
        vocab_size=300, hidden_size=32, intermediate_size=48, moe_intermediate_size=24, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=4, head_dim=8, max_position_embeddings=64, pad_token_id=0,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    latent = dict(
        q_lora_rank=16, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8, n_routed_experts=8,
        n_group=4, topk_group=2, num_experts_per_tok=2, first_k_dense_replace=1, n_shared_experts=1,
    )  # fmt: skip
    return {
        "mixtral": transformers.MixtralConfig(**common, num_local_experts=4),
        "olmoe": transformers.OlmoeConfig(**common, num_experts=8, num_experts_per_tok=3),
        "qwen3": transformers.Qwen3MoeConfig(**common, num_experts=8, num_experts_per_tok=2),
        "deepseek_v2": transformers.DeepseekV2Config(**common, **latent),
        "deepseek_v3": transformers.DeepseekV3Config(**{**common, "head_dim": 4}, **latent),
        "gpt_oss": transformers.GptOssConfig(**common, num_local_experts=4, num_experts_per_tok=2),
    }


def clear_mixture(name):
    """One of `families`, with routers that differ clearly between tokens."""
    torch.manual_seed(0)
    mixture = transformers.AutoModelForCausalLM.from_config(families()[name]).eval()
    for layer in moe_layers(mixture).values():
        torch.nn.init.normal_(layer.router.weight, 0, 0.5)
    return mixture
