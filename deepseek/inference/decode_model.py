"""`DecodeModel`: one decode step of our own model for a batch of sequences, on the CPU kernels.

At one token per sequence a layer is a dozen matrix-vector products, and the operations around them cost as much. So
weights that share an input are packed into one matrix and `kernels` does the rest. It gives the logits of the model's own
forward, over the same cache; with `weights` "bf16" or "int8" the matrices are rounded and take half or a quarter of
float32's time to read. A batch reads the weights once, and each sequence gets bit for bit what it gets alone.

Shape letters are those of deepseek_v3.py, and R sequences.
"""

import numpy as np
import torch

from deepseek.inference.packed_linear import WEIGHT_FORMATS, PackedLinear, to_numpy
from deepseek.kernels import gemm, mla_decode, ops
from deepseek.model.deepseek_v3 import DeepseekV3ForCausalLM
from deepseek.model.layers import DeepseekV3MLP
from deepseek.model.mla import LATENT_NORM_EPS
from deepseek.model.mla_cache import MLACache


class Attention:
    """Multi-head latent attention in its absorbed form (see DeepseekV3Attention.absorbed)."""

    def __init__(self, module, weights: str):
        config = module.config
        heads, nope, rope, latent = module.num_heads, module.nope_dim, module.rope_dim, config.kv_lora_rank
        rope_order = torch.arange(rope)
        if config.rope_interleave:  # to halves, the layout that the rotary kernel expects
            rope_order = torch.cat([rope_order[0::2], rope_order[1::2]])
        head_order = torch.cat([torch.arange(nope), nope + rope_order])
        query_order = torch.cat([head * (nope + rope) + head_order for head in range(heads)])
        self.up_query = None
        if config.q_lora_rank is None:
            query = module.q_proj
        else:
            query, self.query_norm = module.q_a_proj, module.q_a_layernorm.weight.float().numpy()
            self.up_query = PackedLinear(weights, module.q_b_proj, order=query_order)
            query_order = torch.arange(query.out_features)
        self.latent_at = query.out_features
        latent_order = self.latent_at + torch.cat([torch.arange(latent), latent + rope_order])
        order = torch.cat([query_order, latent_order])
        self.down = PackedLinear(weights, query, module.kv_a_proj_with_mqa, order=order)
        self.latent_norm = module.kv_a_layernorm.weight.float().numpy()
        up_HXC = module.kv_b_proj.weight.view(heads, nope + module.v_dim, latent)
        up_key_HNC, up_value_HVC = up_HXC.split([nope, module.v_dim], 1)
        self.up_key_HCN, self.up_value_HVC = to_numpy(up_key_HNC.transpose(1, 2)), to_numpy(up_value_HVC)
        self.scale, self.out = module.scaling, PackedLinear(weights, module.o_proj)

    def __call__(self, x_RD, cos_RJ, sin_RJ, caches_R2, like_W, num_threads: int):
        compressed_RX = query_RX = self.down(x_RD, num_threads)
        if self.up_query:
            query_RX = self.up_query(ops.rms_norm(compressed_RX, 0, self.query_norm, LATENT_NORM_EPS), num_threads)
        y_RX = mla_decode.mla_decode(query_RX, compressed_RX, self.latent_at, self.latent_norm, LATENT_NORM_EPS, cos_RJ, sin_RJ,
                              self.up_key_HCN, self.up_value_HVC, self.scale, caches_R2, like_W, num_threads)  # fmt: skip
        return self.out(y_RX, num_threads)


class GLU:
    """down(silu(gate x) * up x); of stacked weights, E networks that each take the rows up to their end in `ends_E`."""

    def __init__(self, weights: str, down, *gate_up):
        self.gate_up, self.down = PackedLinear(weights, *gate_up), PackedLinear(weights, down)

    def __call__(self, x_RD, num_threads: int, ends_E=None):
        return self.down(ops.silu_and_mul(self.gate_up(x_RD, num_threads, ends_E)), num_threads, ends_E)


class MoE:
    """The router, the routed experts and the shared experts."""

    def __init__(self, module, weights: str):
        config, experts, shared = module.gate.config, module.experts, module.shared_experts
        self.top_k, self.scaling = config.num_experts_per_tok, config.routed_scaling_factor
        self.router = PackedLinear("model", module.gate.weight.float())
        self.bias_E = module.gate.e_score_correction_bias.float().numpy()
        self.shared = GLU(weights, shared.down_proj, shared.gate_proj, shared.up_proj)
        self.experts = GLU(weights, experts.down_proj, experts.gate_up_proj)

    def __call__(self, x_RD, expert_bias_RE, num_threads: int):
        """(output (R, D), experts (R, K), their weights (R, K)); `expert_bias_RE` adds to the bias that ranks experts."""
        logits_RE = self.router(x_RD, num_threads)
        bias_RE = np.zeros_like(logits_RE) + self.bias_E + expert_bias_RE
        indices_RK, weights_RK = ops.topk_route(logits_RE, bias_RE, self.top_k, self.scaling)
        order_A = indices_RK.argsort(axis=None, kind="stable")  # assignments sorted by expert
        ends_E = indices_RK.ravel()[order_A].searchsorted(np.arange(len(self.bias_E)), "right")
        y_AD = self.experts(x_RD[order_A // self.top_k], num_threads, ends_E)
        y_RD = self.shared(x_RD, num_threads)
        ops.combine_experts(y_AD, order_A, weights_RK, y_RD)
        return y_RD, indices_RK, weights_RK


def supports(model) -> bool:
    """Whether a DecodeModel can be built from `model`: our class, on the CPU, routed as DeepSeek-V3 is but without groups."""
    if not isinstance(model, DeepseekV3ForCausalLM) or model.device.type != "cpu":
        return False
    config = model.config
    supported_dtype = model.dtype in (torch.float32, torch.bfloat16)
    return supported_dtype and config.n_group == 1 and config.norm_topk_prob and config.hidden_act == "silu"


class DecodeModel:
    """The model packed for decoding: `decode_model(tokens, caches)` is the next step of a batch of sequences.

    Built from a model in eval mode that `supports` accepts. It shares the tensors that need no other layout and uses as
    many threads as torch. Raises ValueError for unknown `weights`.
    """

    @torch.inference_mode()
    def __init__(self, model: DeepseekV3ForCausalLM, weights: str = "model"):
        if weights not in WEIGHT_FORMATS:
            raise ValueError(f"weights is {weights!r}; it must be one of {', '.join(WEIGHT_FORMATS)}.")
        self.embedding, self.rotary = model.model.embed_tokens.weight, model.model.rotary_emb
        config = model.config
        # A cache entry, in torch and in the kernels' dtype.
        self.entry = torch.empty(1, 1, 1, config.kv_lora_rank + config.qk_rope_head_dim, dtype=model.dtype)
        self.like_W = (self.entry.view(torch.uint16) if model.dtype == torch.bfloat16 else self.entry).numpy()[0, 0, 0]
        self.layers = []
        for layer in model.model.layers:
            mlp, norms = layer.mlp, (layer.input_layernorm, layer.post_attention_layernorm)
            dense = isinstance(mlp, DeepseekV3MLP)
            mlp = GLU(weights, mlp.down_proj, mlp.gate_proj, mlp.up_proj) if dense else MoE(mlp, weights)
            self.layers.append(
                (Attention(layer.self_attn, weights), mlp, *(norm.weight.float().numpy() for norm in norms))
            )
        self.norm, self.eps = model.model.norm.weight.float().numpy(), model.model.norm.eps
        self.head = PackedLinear(weights, model.lm_head)

    @torch.inference_mode()
    def __call__(self, tokens: list[int], caches: list[MLACache], expert_bias: dict | None = None):
        """(logits (R, vocabulary) in float32, {MoE layer: (experts (R, K), weights (R, K))}) after one token per sequence.

        The caches grow by one. `expert_bias` is {layer: (R, E)}, added to the bias that ranks the experts: -inf switches
        an expert off for a sequence, inf forces it.
        """
        num_threads = torch.get_num_threads()
        gemm.set_num_threads(num_threads)
        if torch.get_num_threads() != num_threads:  # Numba and torch may share an OpenMP
            torch.set_num_threads(num_threads)
        positions = torch.tensor([cache.get_seq_length() for cache in caches])
        cos_RJ, sin_RJ = (part.numpy() for part in self.rotary(positions, torch.float32))
        x_RD = self.embedding[torch.tensor(tokens)].float().numpy()
        routing = {}
        for index, (attention, mlp, input_norm, post_attention_norm) in enumerate(self.layers):
            cache_layers = [cache.layers[index] for cache in caches]
            for cache_layer in cache_layers:
                cache_layer.extend(self.entry, 1)
            caches_R2 = np.array([(cache_layer.keys.data_ptr(), cache_layer.length) for cache_layer in cache_layers])
            h_RD = ops.rms_norm(x_RD, 0, input_norm, self.eps)
            x_RD += attention(h_RD, cos_RJ, sin_RJ, caches_R2, self.like_W, num_threads)
            h_RD = ops.rms_norm(x_RD, 0, post_attention_norm, self.eps)
            if isinstance(mlp, MoE):
                y_RD, *routing[index] = mlp(h_RD, (expert_bias or {}).get(index, np.float32(0)), num_threads)
                x_RD += y_RD
            else:
                x_RD += mlp(h_RD, num_threads)
        logits_RV = self.head(ops.rms_norm(x_RD, 0, self.norm, self.eps), num_threads)
        return torch.from_numpy(logits_RV), routing
