"""Multi-head latent attention with rotary embeddings (DeepSeek-V2, section 2.1).

The naive path expands latents to keys and values, for training and prefill; the absorbed path attends to the latents
themselves, for decoding. The names are those of DeepSeek's own inference code.

Shape letters: B batch, S new tokens, T tokens attended to (cached and new), H heads, D hidden width, C latent width
(kv_lora_rank), N non-rotary and R rotary width of a head's key, Q = N + R, L = C + R, V width of a head's value.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from deepseek.model import attention
from deepseek.model.layers import DeepseekV3RMSNorm, Linear

LATENT_NORM_EPS = 1e-6  # the stock model's latent norms do not follow config.rms_norm_eps


class DeepseekV3RotaryEmbedding(nn.Module):
    """cos and sin of position x frequency, (B, S, R/2) each (RoFormer; YaRN by transformers' own functions).

    Raises ValueError for a rope_type other than default, linear and yarn.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.rope_type = config.rope_parameters["rope_type"]
        if self.rope_type not in ("default", "linear", "yarn"):
            raise ValueError(f"rope_type is {self.rope_type!r}; it must be default, linear or yarn.")
        init_function = ROPE_INIT_FUNCTIONS.get(self.rope_type, self.compute_default_rope_parameters)
        inv_freq, self.attention_scaling = init_function(config)
        # transformers fills these two by name when it loads a checkpoint on the meta device.
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.register_buffer("original_inv_freq", inv_freq.clone(), persistent=False)

    @staticmethod
    def compute_default_rope_parameters(config, **_):
        width = config.qk_rope_head_dim
        inv_freq = config.rope_parameters["rope_theta"] ** -(torch.arange(0, width, 2, dtype=torch.float32) / width)
        return inv_freq, 1.0

    @torch.no_grad()
    def forward(self, position_ids, dtype):
        angles = position_ids[..., None].float() * self.inv_freq.float()
        return (angles.cos() * self.attention_scaling).to(dtype), (angles.sin() * self.attention_scaling).to(dtype)


def apply_rotary_emb(x, cos, sin, interleave: bool):
    """Rotates each pair of x's last dimension by its angle; x (B, *, S, R), cos and sin (B, 1, S, R/2).

    Pairs are (0, 1), (2, 3)... with `interleave`, else (0, R/2), (1, R/2 + 1)... The result is in halves either way:
    query and key are permuted alike, so their dot product is the same.
    """
    first, second = (x[..., 0::2], x[..., 1::2]) if interleave else x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class DeepseekV3Attention(nn.Module):
    """Multi-head latent attention. The cache keeps a latent (C) and one rotary key (R) per token."""

    def __init__(self, config, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.prefill_in_bf16 = False  # where `attention` supports it; scores, too, which otherwise are float32
        self.num_heads = config.num_attention_heads
        self.nope_dim, self.rope_dim, self.v_dim = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
        bias = config.attention_bias
        if config.q_lora_rank is None:
            self.q_proj = Linear(config.hidden_size, self.num_heads * (self.nope_dim + self.rope_dim), bias=False)
        else:
            self.q_a_proj = Linear(config.hidden_size, config.q_lora_rank, bias=bias)
            self.q_a_layernorm = DeepseekV3RMSNorm(config.q_lora_rank, LATENT_NORM_EPS)
            self.q_b_proj = Linear(config.q_lora_rank, self.num_heads * (self.nope_dim + self.rope_dim), bias=False)
        self.kv_a_proj_with_mqa = Linear(config.hidden_size, config.kv_lora_rank + self.rope_dim, bias=bias)
        self.kv_a_layernorm = DeepseekV3RMSNorm(config.kv_lora_rank, LATENT_NORM_EPS)
        self.kv_b_proj = Linear(config.kv_lora_rank, self.num_heads * (self.nope_dim + self.v_dim), bias=False)
        self.o_proj = Linear(self.num_heads * self.v_dim, config.hidden_size, bias=bias)

        self.scaling = (self.nope_dim + self.rope_dim) ** -0.5
        yarn = config.rope_parameters
        if yarn["rope_type"] == "yarn" and yarn.get("mscale_all_dim") and yarn["factor"] > 1:
            self.scaling *= (0.1 * yarn["mscale_all_dim"] * math.log(yarn["factor"]) + 1.0) ** 2

    def forward(self, hidden_BSD, cos, sin, mask, cache):
        """Returns (output (B, S, D), attention weights (B, H, S, T) or None)."""
        batch, length, _ = hidden_BSD.shape
        if self.config.q_lora_rank is None:
            query = self.q_proj(hidden_BSD)
        else:
            query = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(hidden_BSD)))
        query_BHSQ = query.view(batch, length, self.num_heads, -1).transpose(1, 2)
        q_nope, q_rope = query_BHSQ.split([self.nope_dim, self.rope_dim], -1)
        compressed_B1SL = self.kv_a_proj_with_mqa(hidden_BSD).unsqueeze(1)
        latent, k_rope = compressed_B1SL.split([self.config.kv_lora_rank, self.rope_dim], -1)
        q_rope = apply_rotary_emb(q_rope, cos, sin, self.config.rope_interleave)
        k_rope = apply_rotary_emb(k_rope, cos, sin, self.config.rope_interleave)
        entries_B1TL = torch.cat([self.kv_a_layernorm(latent), k_rope], -1)
        if cache is not None:
            entries_B1SL = entries_B1TL.to(self.kv_b_proj.weight.dtype)
            entries_B1TL = cache.update(entries_B1SL, entries_B1SL[..., :0], self.layer_idx)[0].to(hidden_BSD.dtype)

        # For one new token against a long cache, expanding every latent costs more than the attention itself.
        path = self.absorbed if cache is not None and length == 1 else self.naive
        output_BSHV, weights = path(q_nope, q_rope, entries_B1TL, mask)
        return self.o_proj(output_BSHV.reshape(batch, length, -1)), weights

    def naive(self, q_nope, q_rope, entries_B1TL, mask):
        """Expands the latents to the keys and values of every head, then runs ordinary attention."""
        latent, k_rope = entries_B1TL.split([self.config.kv_lora_rank, self.rope_dim], -1)
        batch, _, total, _ = latent.shape
        expanded_BHTX = self.kv_b_proj(latent).view(batch, total, self.num_heads, -1).transpose(1, 2)
        k_nope, value_BHTV = expanded_BHTX.split([self.nope_dim, self.v_dim], -1)
        key_BHTQ = torch.cat([k_nope, k_rope.expand(-1, self.num_heads, -1, -1)], -1)
        query_BHSQ = torch.cat([q_nope, q_rope], -1)
        causal = mask is None and query_BHSQ.shape[2] > 1
        output_BHSV, weights = self.attend(query_BHSQ, key_BHTQ, value_BHTV, mask, causal)
        return output_BHSV.transpose(1, 2), weights

    def absorbed(self, q_nope, q_rope, entries_B1TL, mask):
        """The same result without the keys or values of any head.

        q . (W_UK c) = (W_UK^T q) . c, so each query moves into latent space; sum_t w_t W_UV c_t = W_UV sum_t w_t c_t,
        so the values are expanded after the sum. The heads of a token then share one key, so they take the dimension
        that positions usually have: (B, S, H, L) against (B, S, T, L).
        """
        width = self.config.kv_lora_rank
        up = self.kv_b_proj.weight.view(self.num_heads, self.nope_dim + self.v_dim, width)
        up_key, up_value = up.split([self.nope_dim, self.v_dim], 1)
        q_latent = torch.einsum("bhsn,hnc->bshc", q_nope, up_key)
        query_BSHL = torch.cat([q_latent, q_rope.transpose(1, 2)], -1)
        key_BSTL = entries_B1TL.expand(-1, query_BSHL.shape[1], -1, -1)
        mask_BS1T = None if mask is None else mask.transpose(1, 2)
        output_BSHC, weights = self.attend(query_BSHL, key_BSTL, key_BSTL[..., :width], mask_BS1T, causal=False)
        output_BSHV = torch.einsum("bshc,hvc->bshv", output_BSHC, up_value)
        return output_BSHV, None if weights is None else weights.transpose(1, 2)

    def attend(self, query, key, value, mask, causal: bool):
        """Softmax attention over the last two dimensions; only the eager implementation returns the weights."""
        dropout = self.config.attention_dropout if self.training else 0.0
        if self.config._attn_implementation == "eager":
            scores = query @ key.transpose(-1, -2) * self.scaling
            if mask is not None:
                scores = scores + mask
            weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
            return F.dropout(weights, dropout) @ value, weights
        if causal and not dropout and attention.supports(query):
            if self.prefill_in_bf16:
                query, key, value = query.bfloat16(), key.bfloat16(), value.bfloat16()
            score_dtype = torch.bfloat16 if self.prefill_in_bf16 else torch.float32
            return attention.causal_attention(query, key, value, self.scaling, score_dtype), None
        width = value.shape[-1]
        if causal and query.device.type == "cpu":
            # torch's fused CPU kernel needs values as wide as keys; without it SDPA stores all S x S scores.
            value = F.pad(value, (0, query.shape[-1] - width))
        output = F.scaled_dot_product_attention(query, key, value, mask, dropout, is_causal=causal, scale=self.scaling)
        return output[..., :width], None
