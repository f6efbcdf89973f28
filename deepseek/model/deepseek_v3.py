"""A DeepSeek-V3 language model, from its published definitions.

- multi-head latent attention (mla.py; DeepSeek-V2, section 2.1)
- a dropless mixture of experts (moe.py; DeepSeekMoE, section 3) with sigmoid routing, an auxiliary-loss-free balancing
  bias (DeepSeek-V3, section 2.1.2) and a KL load-balancing loss (load_balancing.py)
- pre-norm RMSNorm, rotary embeddings with YaRN

Class and parameter names are those of transformers' own DeepseekV3ForCausalLM, so a saved folder opens there, in vLLM and
in llama.cpp, and theirs opens here.

Shape letters: B batch, S tokens, D hidden width, K experts per token.
"""

import torch
from torch import nn
from transformers import DeepseekV3Config, PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_causal_mask
from transformers.utils import can_return_tuple
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from deepseek.model import cpu_features
from deepseek.model.hf_compat import CausalLMOutput, MLAGenerationMixin, ModelOutput
from deepseek.model.layers import DeepseekV3MLP, DeepseekV3RMSNorm, Linear
from deepseek.model.load_balancing import load_balancing_loss
from deepseek.model.loss import cross_entropy
from deepseek.model.mla import DeepseekV3Attention, DeepseekV3RotaryEmbedding
from deepseek.model.mla_cache import MLACache
from deepseek.model.moe import DeepseekV3Experts, DeepseekV3MoE, DeepseekV3TopkRouter

COMPUTE_BOUND_TOKENS = 64  # tokens from which matrix products cost more than reading the weights


class DeepseekV3DecoderLayer(nn.Module):
    """Pre-norm block: x + attention(norm x), then x + feed-forward(norm x); dropout on each branch."""

    def __init__(self, config, layer_idx: int):
        super().__init__()
        self.self_attn = DeepseekV3Attention(config, layer_idx)
        is_dense = layer_idx < config.first_k_dense_replace
        self.mlp = DeepseekV3MLP(config, config.intermediate_size) if is_dense else DeepseekV3MoE(config)
        self.input_layernorm = DeepseekV3RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = DeepseekV3RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.dropout = nn.Dropout(getattr(config, "hidden_dropout", 0.0))  # a stock configuration has no such field

    def forward(self, x_BSD, cos, sin, mask, cache):
        x_BSD = x_BSD + self.dropout(self.self_attn(self.input_layernorm(x_BSD), cos, sin, mask, cache)[0])
        return x_BSD + self.dropout(self.mlp(self.post_attention_layernorm(x_BSD)))


class DeepseekV3PreTrainedModel(PreTrainedModel):
    """How transformers initialises, saves, loads and records the model."""

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
        # Where bf16 products are slow, prefill runs in fp32 over the bf16 weights: 1.6 x as fast (1,750 against 1,100 tokens/s,
        # preset seed on a Xeon without AMX), and more exact. Below COMPUTE_BOUND_TOKENS the conversion costs more than it saves.
        is_compute_bound = x_BSD.shape[:2].numel() >= COMPUTE_BOUND_TOKENS and not torch.is_grad_enabled()
        if is_compute_bound and x_BSD.dtype == torch.bfloat16 and not cpu_features.fast_in_bf16(x_BSD.device):
            x_BSD = x_BSD.float()
        cache = past_key_values
        if cache is None and (self.config.use_cache if use_cache is None else use_cache) and not self.training:
            cache = MLACache(self.config)
        if position_ids is None:
            past = 0 if cache is None else cache.get_seq_length()
            position_ids = torch.arange(past, past + x_BSD.shape[1], device=x_BSD.device).unsqueeze(0)
        mask = create_causal_mask(self.config, x_BSD, attention_mask, cache, position_ids=position_ids)
        cos, sin = (part.unsqueeze(1) for part in self.rotary_emb(position_ids, x_BSD.dtype))
        for layer in self.layers:
            x_BSD = layer(x_BSD, cos, sin, mask, cache)
        return ModelOutput(last_hidden_state=self.norm(x_BSD), past_key_values=cache)


class DeepseekV3ForCausalLM(DeepseekV3PreTrainedModel, MLAGenerationMixin):
    """The language model: hidden states to logits over the vocabulary, and the training loss."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config):
        super().__init__(config)
        self.model = DeepseekV3Model(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def save_pretrained(self, save_directory, state_dict=None, **options):
        """As transformers', but a head tied to the embedding is stored beside it: vLLM reads no other head."""
        state_dict = dict(self.state_dict() if state_dict is None else state_dict)
        head = state_dict["lm_head.weight"]
        state_dict["lm_head.weight"] = head.clone()  # transformers leaves out what shares memory
        super().save_pretrained(save_directory, state_dict=state_dict, **options)

    @can_return_tuple
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

        With `labels` (B, S; shifted here, -100 is ignored) also `lm_loss`, the mean cross-entropy in nats per token,
        `aux_loss`, the KL load-balancing loss over unpadded tokens, and `loss`, their weighted sum. In training mode the
        logits are then None: the loss never keeps all of them in memory.
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
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = loss = lm_loss = aux_loss = None
        if labels is None or not self.training:
            logits = self.lm_head(output.last_hidden_state[:, kept])
        if labels is not None:
            hidden, num_items = output.last_hidden_state[:, :-1], kwargs.get("num_items_in_batch")
            labels = labels[:, 1:].flatten()
            lm_loss = loss = cross_entropy(hidden.flatten(0, 1), self.lm_head.weight, labels, num_items)
            if output.router_logits:
                padding_mask = None if attention_mask is None else attention_mask.flatten()
                aux_loss = load_balancing_loss(output.router_logits, padding_mask)
                loss = lm_loss + getattr(self.config, "router_aux_loss_coef", 0.0) * aux_loss
        recorded = {name: value for name, value in output.items() if name != "last_hidden_state"}
        return CausalLMOutput(loss=loss, lm_loss=lm_loss, aux_loss=aux_loss, logits=logits, **recorded)
