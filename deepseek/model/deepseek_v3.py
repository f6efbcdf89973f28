"""A DeepSeek-V3 language model, from its published definitions.

- multi-head latent attention with latent queries and decoupled rotary keys (DeepSeek-V2, section 2.1);
  an expanded path for training and prefill, an absorbed one for decoding over a preallocated latent cache
- SwiGLU experts, a shared one beside the routed ones, dropless (DeepSeekMoE, section 3)
- sigmoid routing in fp32 with a counted bias (DeepSeek-V3, section 2.1.2) and a KL load-balancing loss
- pre-norm RMSNorm, rotary embeddings with YaRN

Class and parameter names are those of transformers' own DeepseekV3ForCausalLM, so a saved folder opens there,
in vLLM and in llama.cpp, and theirs opens here.

Shape letters: B batch, S new tokens, T tokens attended to (cached and new), H heads, D hidden width,
C latent width (kv_lora_rank), N non-rotary and R rotary width of a head's key, V width of its value,
E experts, K experts a token, F an expert's inner width, X tokens of the batch in one row (B*S).
"""

import functools
import math
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DeepseekV3Config, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.utils import can_return_tuple
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from deepseek.model import attention
from deepseek.model.cpu_features import fast_in_bf16
from deepseek.model.grouped import grouped
from deepseek.model.load_balancing import load_balancing_loss
from deepseek.model.loss import cross_entropy
from deepseek.model.mla_cache import MLACache
from deepseek.model.norm import rms_norm

LATENT_NORM_EPS = 1e-6  # the stock model's latent norms do not follow config.rms_norm_eps
COMPUTE_BOUND_TOKENS = 64  # tokens from which their products cost more than the reading of weights


def without_slow_autocast(forward):
    """Makes a forward compute in fp32 under an autocast to bf16 that would only slow it down."""

    @functools.wraps(forward)
    def wrapped(self, *arguments, **named):
        kind = self.device.type
        slow = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.bfloat16
        with torch.autocast(kind, enabled=False) if slow and not fast_in_bf16(self.device) else nullcontext():
            return forward(self, *arguments, **named)

    return wrapped


class Linear(nn.Linear):
    """A linear layer that computes in its input's precision, whatever its weights are stored in."""

    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class DeepseekV3RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension (Zhang and Sennrich, 2019)."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        return rms_norm(x, self.weight, self.eps)


class DeepseekV3RotaryEmbedding(nn.Module):
    """cos and sin of position x frequency, (B, S, R/2) each (RoFormer; YaRN by transformers' own functions)."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.rope_type = config.rope_parameters["rope_type"]
        if self.rope_type not in ("default", "linear", "yarn"):
            raise ValueError(f"rope_type is {self.rope_type!r}; this model knows default, linear and yarn.")
        make = ROPE_INIT_FUNCTIONS.get(self.rope_type, self.compute_default_rope_parameters)
        inv_freq, self.attention_scaling = make(config)
        # The base class fills these two by name when a checkpoint is loaded without real initialisation.
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
    """Turns each pair of x's last dimension by its angle; x (B, *, S, R), cos and sin (B, 1, S, R/2).

    Pairs are (0, 1), (2, 3)... with `interleave`, else (0, R/2), (1, R/2 + 1)...; the result is laid out in halves
    either way, which a dot product of query and key does not see.
    """
    first, second = (x[..., 0::2], x[..., 1::2]) if interleave else x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class DeepseekV3Attention(nn.Module):
    """Multi-head latent attention. What is cached of a token is its latent c (C) and one rotary key (R)."""

    def __init__(self, config, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.heads = config.num_attention_heads
        self.nope, self.rope, self.v = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
        bias = config.attention_bias
        if config.q_lora_rank is None:
            self.q_proj = Linear(config.hidden_size, self.heads * (self.nope + self.rope), bias=False)
        else:
            self.q_a_proj = Linear(config.hidden_size, config.q_lora_rank, bias=bias)
            self.q_a_layernorm = DeepseekV3RMSNorm(config.q_lora_rank, LATENT_NORM_EPS)
            self.q_b_proj = Linear(config.q_lora_rank, self.heads * (self.nope + self.rope), bias=False)
        self.kv_a_proj_with_mqa = Linear(config.hidden_size, config.kv_lora_rank + self.rope, bias=bias)
        self.kv_a_layernorm = DeepseekV3RMSNorm(config.kv_lora_rank, LATENT_NORM_EPS)
        self.kv_b_proj = Linear(config.kv_lora_rank, self.heads * (self.nope + self.v), bias=False)
        self.o_proj = Linear(self.heads * self.v, config.hidden_size, bias=bias)

        self.scale = (self.nope + self.rope) ** -0.5
        yarn = config.rope_parameters
        if yarn["rope_type"] == "yarn" and yarn.get("mscale_all_dim") and yarn["factor"] > 1:
            self.scale *= (0.1 * yarn["mscale_all_dim"] * math.log(yarn["factor"]) + 1.0) ** 2

    def forward(self, hidden_BSD, cos, sin, mask, cache):
        """Returns (output (B, S, D), attention weights (B, H, S, T) or None)."""
        batch, length, _ = hidden_BSD.shape
        if self.config.q_lora_rank is None:
            query = self.q_proj(hidden_BSD)
        else:
            query = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(hidden_BSD)))
        query_BHSQ = query.view(batch, length, self.heads, self.nope + self.rope).transpose(1, 2)
        q_nope, q_rope = query_BHSQ.split([self.nope, self.rope], -1)
        compressed_B1SL = self.kv_a_proj_with_mqa(hidden_BSD).unsqueeze(1)
        latent, k_rope = compressed_B1SL.split([self.config.kv_lora_rank, self.rope], -1)
        q_rope = apply_rotary_emb(q_rope, cos, sin, self.config.rope_interleave)
        k_rope = apply_rotary_emb(k_rope, cos, sin, self.config.rope_interleave)
        entries_B1TL = torch.cat([self.kv_a_layernorm(latent), k_rope], -1)
        if cache is not None:
            entries_B1SL = entries_B1TL.to(self.kv_b_proj.weight.dtype)
            entries_B1TL = cache.update(entries_B1SL, entries_B1SL[..., :0], self.layer_idx)[0].to(hidden_BSD.dtype)

        # One new token against a long cache: work on the latents. Many new tokens: expanding them once is cheaper.
        path = self.absorbed if cache is not None and length == 1 else self.expanded
        output_BSHV, weights = path(q_nope, q_rope, entries_B1TL, mask)
        return self.o_proj(output_BSHV.reshape(batch, length, -1)), weights

    def expanded(self, q_nope, q_rope, entries_B1TL, mask):
        """Keys and values of every head are made from the latents, then ordinary attention."""
        latent, k_rope = entries_B1TL.split([self.config.kv_lora_rank, self.rope], -1)
        batch, _, total, _ = latent.shape
        expanded = self.kv_b_proj(latent).view(batch, total, self.heads, self.nope + self.v).transpose(1, 2)
        k_nope, value_BHTV = expanded.split([self.nope, self.v], -1)
        key_BHTQ = torch.cat([k_nope, k_rope.expand(-1, self.heads, -1, -1)], -1)
        query_BHSQ = torch.cat([q_nope, q_rope], -1)
        causal = mask is None and query_BHSQ.shape[2] > 1
        output_BHSV, weights = self.attend(query_BHSQ, key_BHTQ, value_BHTV, mask, causal)
        return output_BHSV.transpose(1, 2), weights

    def absorbed(self, q_nope, q_rope, entries_B1TL, mask):
        """The same result with no head's keys or values ever made.

        q . (W_UK c) = (W_UK^T q) . c, so each query moves into latent space; sum_t w_t W_UV c_t = W_UV sum_t w_t c_t,
        so the values are expanded after the sum. The heads of a token then share one key, and are laid where
        positions usually lie: (B, S, H, C + R) against (B, S, T, C + R).
        """
        width = self.config.kv_lora_rank
        up = self.kv_b_proj.weight.view(self.heads, self.nope + self.v, width)
        up_key, up_value = up.split([self.nope, self.v], 1)
        q_latent = torch.einsum("bhsn,hnc->bshc", q_nope, up_key)
        query_BSHL = torch.cat([q_latent, q_rope.transpose(1, 2)], -1)
        key_BSTL = entries_B1TL.expand(-1, query_BSHL.shape[1], -1, -1)
        mask_BS1T = None if mask is None else mask.transpose(1, 2)
        output_BSHC, weights = self.attend(query_BSHL, key_BSTL, key_BSTL[..., :width], mask_BS1T, causal=False)
        output_BSHV = torch.einsum("bshc,hvc->bshv", output_BSHC, up_value)
        return output_BSHV, None if weights is None else weights.transpose(1, 2)

    def attend(self, query, key, value, mask, causal: bool):
        """Softmax attention over the last two dimensions; the weights are returned by the eager implementation only."""
        dropout = self.config.attention_dropout if self.training else 0.0
        if self.config._attn_implementation == "eager":
            scores = query @ key.transpose(-1, -2) * self.scale
            if mask is not None:
                scores = scores + mask
            weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
            return F.dropout(weights, dropout) @ value, weights
        if causal and not dropout and attention.suits(query):
            return attention.causal_attention(query, key, value, self.scale), None
        width = value.shape[-1]
        if causal and query.device.type == "cpu":
            # The CPU's fused kernel wants one width for keys and values; the other one stores all S x S scores.
            value = F.pad(value, (0, query.shape[-1] - width))
        output = F.scaled_dot_product_attention(query, key, value, mask, dropout, is_causal=causal, scale=self.scale)
        return output[..., :width], None


class DeepseekV3MLP(nn.Module):
    """GLU feed-forward: down(silu(gate x) * up x) (Shazeer, 2020)."""

    def __init__(self, config, width: int):
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, width, bias=False)
        self.up_proj = Linear(config.hidden_size, width, bias=False)
        self.down_proj = Linear(width, config.hidden_size, bias=False)
        self.act = ACT2FN[config.hidden_act]

    def forward(self, x):
        return self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))


class DeepseekV3TopkRouter(nn.Module):
    """Chooses K of E experts for every token, in fp32: scores plus bias choose, scores without it weigh."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        self.register_buffer("e_score_correction_bias", torch.zeros(config.n_routed_experts))

    def forward(self, x_XD):
        """Returns (logits (X, E), weights (X, K), expert indices (X, K))."""
        config = self.config
        with torch.autocast(x_XD.device.type, enabled=False):
            logits_XE = F.linear(x_XD.float(), self.weight.float())
        scores_XE = logits_XE.sigmoid()
        choice_XE = scores_XE + self.e_score_correction_bias
        if config.n_group > 1:
            # Only experts of the best groups may be chosen; a group is as good as its two best experts together.
            groups = choice_XE.view(-1, config.n_group, config.n_routed_experts // config.n_group)
            best = groups.topk(2, -1).values.sum(-1).topk(config.topk_group, -1).indices
            barred = torch.ones_like(groups[..., 0], dtype=torch.bool).scatter(1, best, False)
            choice_XE = groups.masked_fill(barred.unsqueeze(-1), -math.inf).flatten(1)
        indices_XK = choice_XE.topk(config.num_experts_per_tok, -1).indices
        weights_XK = scores_XE.gather(1, indices_XK)
        if config.norm_topk_prob:
            weights_XK = weights_XK / (weights_XK.sum(-1, keepdim=True) + 1e-20)
        return logits_XE, weights_XK * config.routed_scaling_factor, indices_XK


class DeepseekV3Experts(nn.Module):
    """E GLU networks as stacked weights; each runs on the tokens that chose it and on no other. No token is dropped."""

    def __init__(self, config):
        super().__init__()
        experts, width, inner = config.n_routed_experts, config.hidden_size, config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * inner, width))
        self.down_proj = nn.Parameter(torch.empty(experts, width, inner))
        self.act = ACT2FN[config.hidden_act]

    def one(self, x, gate_up_FD, down_DF):
        """What a single expert gives."""
        gate, up = F.linear(x, gate_up_FD.to(x.dtype)).chunk(2, -1)
        return F.linear(self.act(gate) * up, down_DF.to(x.dtype))

    def forward(self, x_XD, weights_XK, indices_XK):
        tokens, chosen = indices_XK.shape
        if tokens == 1:
            outputs = [self.one(x_XD, self.gate_up_proj[e], self.down_proj[e]) for e in indices_XK[0].tolist()]
            return weights_XK.to(x_XD.dtype) @ torch.cat(outputs)
        kind = x_XD.device.type
        if torch.is_autocast_enabled(kind):
            x_XD = x_XD.to(torch.get_autocast_dtype(kind))
        order = indices_XK.flatten().argsort(stable=True)  # assignments, sorted by expert
        counts = torch.bincount(indices_XK.flatten(), minlength=len(self.gate_up_proj)).tolist()
        gate, up = grouped(x_XD.index_select(0, order // chosen), self.gate_up_proj, counts).chunk(2, -1)
        outputs_AD = grouped(self.act(gate) * up, self.down_proj, counts)
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        outputs_XKD = outputs_AD.index_select(0, back).view(tokens, chosen, -1)
        return (weights_XK.to(outputs_XKD.dtype).unsqueeze(1) @ outputs_XKD).squeeze(1)


class DeepseekV3MoE(nn.Module):
    """Routed experts and the shared experts, in parallel on the same input, added."""

    def __init__(self, config):
        super().__init__()
        self.gate = DeepseekV3TopkRouter(config)
        self.experts = DeepseekV3Experts(config)
        self.shared_experts = DeepseekV3MLP(config, config.moe_intermediate_size * config.n_shared_experts)

    def forward(self, x_BSD):
        x_XD = x_BSD.flatten(0, 1)
        _, weights_XK, indices_XK = self.gate(x_XD)
        return self.experts(x_XD, weights_XK, indices_XK).view_as(x_BSD) + self.shared_experts(x_BSD)


class DeepseekV3DecoderLayer(nn.Module):
    """Pre-norm block: x + attention(norm x), then x + feed-forward(norm x); dropout on each branch."""

    def __init__(self, config, layer_idx: int):
        super().__init__()
        self.self_attn = DeepseekV3Attention(config, layer_idx)
        dense = layer_idx < config.first_k_dense_replace
        self.mlp = DeepseekV3MLP(config, config.intermediate_size) if dense else DeepseekV3MoE(config)
        self.input_layernorm = DeepseekV3RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = DeepseekV3RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.dropout = nn.Dropout(getattr(config, "hidden_dropout", 0.0))  # a stock configuration has none

    def forward(self, x_BSD, cos, sin, mask, cache):
        x_BSD = x_BSD + self.dropout(self.self_attn(self.input_layernorm(x_BSD), cos, sin, mask, cache)[0])
        return x_BSD + self.dropout(self.mlp(self.post_attention_layernorm(x_BSD)))


class DeepseekV3PreTrainedModel(PreTrainedModel):
    """What transformers needs to know of the model: how to initialise, save, load and record it."""

    config_class = DeepseekV3Config
    base_model_prefix = "model"
    _supports_sdpa = True
    _no_split_modules = ["DeepseekV3DecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _keep_in_fp32_modules_strict = ["e_score_correction_bias"]
    _can_record_outputs = {
        "hidden_states": DeepseekV3DecoderLayer,
        "attentions": DeepseekV3Attention,
        "router_logits": OutputRecorder(DeepseekV3TopkRouter, index=0),
        "router_indices": OutputRecorder(DeepseekV3TopkRouter, index=2),
    }

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True  # transformers guesses this from a phrase in the source, which ours has not

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, DeepseekV3TopkRouter):
            init.normal_(module.weight, std=std)
            init.zeros_(module.e_score_correction_bias)
        elif isinstance(module, DeepseekV3Experts):
            init.normal_(module.gate_up_proj, std=std)
            init.normal_(module.down_proj, std=std)


@dataclass
class ModelOutput(MoeModelOutputWithPast):
    """transformers' output, with the experts chosen: one (B*S, K) int64 tensor a MoE layer."""

    router_indices: tuple[torch.Tensor, ...] | None = None


@dataclass
class CausalLMOutput(MoeCausalLMOutputWithPast):
    """transformers' output, with the experts chosen and the two parts of `loss`: lm_loss + coefficient * aux_loss."""

    lm_loss: torch.Tensor | None = None
    router_indices: tuple[torch.Tensor, ...] | None = None


class DeepseekV3Model(DeepseekV3PreTrainedModel):
    """Embedding, blocks and final norm: token ids to hidden states (B, S, D)."""

    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DeepseekV3DecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = DeepseekV3RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = DeepseekV3RotaryEmbedding(config)
        self.post_init()

    @capture_outputs
    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        use_cache=None,
        **kwargs,
    ) -> ModelOutput:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds, and not both.")
        x_BSD = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        many = x_BSD.shape[:2].numel() >= COMPUTE_BOUND_TOKENS and not torch.is_grad_enabled()
        if many and x_BSD.dtype == torch.bfloat16 and not fast_in_bf16(x_BSD.device):
            x_BSD = x_BSD.float()
        cache = past_key_values
        if cache is None and (self.config.use_cache if use_cache is None else use_cache) and not self.training:
            cache = MLACache(self.config)
        if position_ids is None:
            past = 0 if cache is None else cache.get_seq_length()
            position_ids = torch.arange(past, past + x_BSD.shape[1], device=x_BSD.device).unsqueeze(0)
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=x_BSD,
            attention_mask=attention_mask,
            past_key_values=cache,
            position_ids=position_ids,
        )
        cos, sin = (part.unsqueeze(1) for part in self.rotary_emb(position_ids, x_BSD.dtype))
        for layer in self.layers:
            x_BSD = layer(x_BSD, cos, sin, mask, cache)
        return ModelOutput(last_hidden_state=self.norm(x_BSD), past_key_values=cache)


class DeepseekV3ForCausalLM(DeepseekV3PreTrainedModel, GenerationMixin):
    """The language model: hidden states to logits over the vocabulary, and the training loss."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config):
        super().__init__(config)
        self.model = DeepseekV3Model(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    @without_slow_autocast
    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> CausalLMOutput:
        """Logits (B, S, vocabulary), of the last `logits_to_keep` positions if that is not 0.

        With `labels` (B, S; -100 is left out; shifted here) also `lm_loss`, the mean cross-entropy in nats a token,
        `aux_loss`, the KL load-balancing loss over unpadded tokens, and `loss`, their weighted sum; in training mode the
        logits are then None, for they are never all in memory.
        """
        if labels is not None:
            kwargs["output_router_logits"] = kwargs["output_router_indices"] = True
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = loss = lm_loss = aux_loss = None
        if labels is None or not self.training:
            logits = self.lm_head(output.last_hidden_state[:, keep])
        if labels is not None:
            hidden, count = output.last_hidden_state[:, :-1], kwargs.get("num_items_in_batch")
            lm_loss = loss = cross_entropy(hidden.flatten(0, 1), self.lm_head.weight, labels[:, 1:].flatten(), count)
            if output.router_logits:
                padding = None if attention_mask is None else attention_mask.flatten()
                aux_loss = load_balancing_loss(output.router_logits, padding)
                loss = lm_loss + getattr(self.config, "router_aux_loss_coef", 0.0) * aux_loss
        return CausalLMOutput(
            loss=loss,
            lm_loss=lm_loss,
            aux_loss=aux_loss,
            logits=logits,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
            router_logits=output.router_logits,
            router_indices=output.router_indices,
        )

    def _prepare_cache_for_generation(
        self, generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
    ):
        """Gives `.generate` a latent cache with exactly the room it needs, unless the caller asks for another."""
        plain = generation_config.use_cache and generation_config.cache_implementation is None
        if plain and model_kwargs.get("past_key_values") is None:
            model_kwargs["past_key_values"] = MLACache(self.config, max_cache_length)
        else:
            super()._prepare_cache_for_generation(
                generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
            )


# On disk every expert has its own tensors, in memory they are stacked; transformers converts between the two for its
# own classes, and for others only if told to. The key is a class name: ours and stock's, whose mapping this is.
register_checkpoint_conversion_mapping(
    DeepseekV3ForCausalLM.__name__, get_checkpoint_conversion_mapping("deepseek_v3"), overwrite=True
)
