"""A token more of several texts at once, fast: a second way through the weights of our own model, for decoding.

For one token a layer is a dozen products of a matrix and a vector, and what surrounds them costs as much as they do. So
weights that meet the same input are laid in one, and the loops of `kernels` do the rest. It gives what the model's own
forward gives, over the same cache; with `weights` "bf16" or "int8" the matrices are rounded, and read from memory in
half or a quarter of the time of float32. Texts that take their step together share that reading, and none of them can
tell: the numbers of each are those it gets alone.

Shape letters are those of model.py, and R texts.
"""

import numpy as np
import torch

from deepseek.inference.packed_linear import WEIGHT_FORMATS, PackedLinear, to_numpy
from deepseek.kernels import gemm, mla_decode, ops
from deepseek.model.deepseek_v3 import LATENT_NORM_EPS, DeepseekV3ForCausalLM, DeepseekV3MLP
from deepseek.model.mla_cache import MLACache


class Attention:
    """Latent attention in its absorbed form (DeepseekV3Attention.absorbed says why it is the same)."""

    def __init__(self, module, weights: str):
        config = module.config
        heads, nope, rope, latent = module.heads, module.nope, module.rope, config.kv_lora_rank
        query = module.q_proj if config.q_lora_rank is None else module.q_a_proj
        order = torch.arange(rope)
        if config.rope_interleave:  # pairs in halves, so that the loop that turns them knows one layout
            order = torch.cat([order[0::2], order[1::2]])
        compressed = torch.cat([torch.arange(latent), latent + order])
        query_rows = torch.cat(
            [h * (nope + rope) + torch.cat([torch.arange(nope), nope + order]) for h in range(heads)]
        )
        self.up_query = None
        if config.q_lora_rank is None:
            self.down = PackedLinear(
                weights, permute_outputs(query, query_rows), permute_outputs(module.kv_a_proj_with_mqa, compressed)
            )
        else:
            self.down = PackedLinear(weights, query, permute_outputs(module.kv_a_proj_with_mqa, compressed))
            self.query_norm = module.q_a_layernorm.weight.float().numpy()
            self.up_query = PackedLinear(weights, permute_outputs(module.q_b_proj, query_rows))
        self.latent_at, self.latent_norm = query.out_features, module.kv_a_layernorm.weight.float().numpy()
        up_HXC = module.kv_b_proj.weight.view(heads, nope + module.v, latent)
        up_key_HNC, up_value_HVC = up_HXC.split([nope, module.v], 1)
        self.up_key_HCN, self.up_value_HVC = to_numpy(up_key_HNC.transpose(1, 2)), to_numpy(up_value_HVC)
        self.scale, self.out = module.scale, PackedLinear(weights, module.o_proj)

    def __call__(self, x_RD, cos_RJ, sin_RJ, caches_R2, like_W, threads: int):
        compressed_RX = query_RX = self.down(x_RD, threads)
        if self.up_query:
            query_RX = self.up_query(ops.rms_norm(compressed_RX, 0, self.query_norm, LATENT_NORM_EPS), threads)
        y_RX = mla_decode.mla_decode(query_RX, compressed_RX, self.latent_at, self.latent_norm, LATENT_NORM_EPS, cos_RJ, sin_RJ,
                              self.up_key_HCN, self.up_value_HVC, self.scale, caches_R2, like_W, threads)  # fmt: skip
        return self.out(y_RX, threads)


def permute_outputs(layer: torch.nn.Linear, order: torch.Tensor) -> torch.nn.Linear:
    """A layer with its outputs in another order."""
    made = torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    made.weight = torch.nn.Parameter(layer.weight[order], requires_grad=False)
    if layer.bias is not None:
        made.bias = torch.nn.Parameter(layer.bias[order], requires_grad=False)
    return made


class GLU:
    """down(silu(gate x) * up x); of stacked weights that of E networks, the rows of each ending at `ends_E`."""

    def __init__(self, weights: str, gate_up, down):
        self.gate_up, self.down = PackedLinear(weights, *gate_up), PackedLinear(weights, down)

    def __call__(self, x_RD, threads: int, ends_E=None):
        return self.down(ops.silu_and_mul(self.gate_up(x_RD, threads, ends_E)), threads, ends_E)


class MoE:
    """The router, the experts that it chooses, and the shared ones."""

    def __init__(self, module, weights: str):
        config = module.gate.config
        self.chosen, self.scaling = config.num_experts_per_tok, config.routed_scaling_factor
        self.router = PackedLinear("model", module.gate.weight.float())
        self.bias_E = module.gate.e_score_correction_bias.float().numpy()
        self.numbers = np.arange(len(self.bias_E))
        self.shared = glu(module.shared_experts, weights)
        self.experts = GLU(weights, [module.experts.gate_up_proj], module.experts.down_proj)

    def __call__(self, x_RD, more_RE, threads: int):
        """(output (R, D), experts (R, K), their weights (R, K)); `more_RE` is added to the bias that chooses."""
        logits_RE = self.router(x_RD, threads)
        bias_RE = np.zeros_like(logits_RE) + self.bias_E + more_RE
        indices_RK, weights_RK = ops.topk_route(logits_RE, bias_RE, self.chosen, self.scaling)
        order_A = indices_RK.argsort(axis=None, kind="stable")  # the assignments, sorted by expert
        ends_E = indices_RK.ravel()[order_A].searchsorted(self.numbers, "right")
        y_AD = self.experts(x_RD[order_A // self.chosen], threads, ends_E)
        y_RD = self.shared(x_RD, threads)
        ops.combine_experts(y_AD, order_A, weights_RK, y_RD)
        return y_RD, indices_RK, weights_RK


def glu(module: DeepseekV3MLP, weights: str) -> GLU:
    """The feed-forward network of a module."""
    return GLU(weights, [module.gate_proj, module.up_proj], module.down_proj)


def supports(model) -> bool:
    """Whether a Decoder can be made of `model`: ours, on a processor, and routed as DeepSeek-V3 is without its groups."""
    if not isinstance(model, DeepseekV3ForCausalLM) or model.device.type != "cpu":
        return False
    config = model.config
    known = model.dtype in (torch.float32, torch.bfloat16)
    return known and config.n_group == 1 and config.norm_topk_prob and config.hidden_act == "silu"


class DecodeModel:
    """The model laid out for decoding: `decoder(tokens, caches)` is the next step of several texts.

    Made of a model in eval mode that `suits`; it shares the tensors that need no other layout, and uses as many threads
    as torch does. Raises ValueError for unknown `weights`.
    """

    @torch.inference_mode()
    def __init__(self, model: DeepseekV3ForCausalLM, weights: str = "model"):
        if weights not in WEIGHT_FORMATS:
            raise ValueError(f"weights is {weights!r}; it must be one of {', '.join(WEIGHT_FORMATS)}.")
        self.embedding, self.rotary = model.model.embed_tokens.weight, model.model.rotary_emb
        config = model.config
        width = config.kv_lora_rank + config.qk_rope_head_dim
        # An entry of a cache, in torch and as the loops see it.
        self.blank = torch.empty(1, 1, 1, width, dtype=model.dtype)
        self.like_W = (self.blank.view(torch.uint16) if model.dtype == torch.bfloat16 else self.blank).numpy()[0, 0, 0]
        self.layers = []
        for layer in model.model.layers:
            mlp = glu(layer.mlp, weights) if isinstance(layer.mlp, DeepseekV3MLP) else MoE(layer.mlp, weights)
            norms = [layer.input_layernorm, layer.post_attention_layernorm]
            parts = Attention(layer.self_attn, weights), mlp, *(norm.weight.float().numpy() for norm in norms)
            self.layers.append(parts)
        self.norm, self.eps = model.model.norm.weight.float().numpy(), model.model.norm.eps
        self.head = PackedLinear(weights, model.lm_head)

    @torch.inference_mode()
    def __call__(self, tokens: list[int], caches: list[MLACache], more: dict | None = None):
        """(logits (R, vocabulary) in float32, {MoE layer: (experts (R, K), weights (R, K))}) after one token of each text.

        The caches grow by it. `more` has numbers (R, E) for the bias that chooses at some of the layers: -inf switches an
        expert off for a text, inf forces it.
        """
        threads = torch.get_num_threads()
        gemm.set_num_threads(threads)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        positions = torch.tensor([cache.get_seq_length() for cache in caches])
        cos_RJ, sin_RJ = (part.numpy() for part in self.rotary(positions, torch.float32))
        x_RD = self.embedding[torch.tensor(tokens)].float().numpy()
        routing = {}
        for index, (attention, mlp, before, between) in enumerate(self.layers):
            entries = [cache.layers[index] for cache in caches]
            for layer in entries:
                layer.extend(self.blank, 1)
            caches_R2 = np.array([(layer.keys.data_ptr(), layer.length) for layer in entries])
            h_RD = ops.rms_norm(x_RD, 0, before, self.eps)
            x_RD += attention(h_RD, cos_RJ, sin_RJ, caches_R2, self.like_W, threads)
            h_RD = ops.rms_norm(x_RD, 0, between, self.eps)
            if isinstance(mlp, MoE):
                y_RD, *routing[index] = mlp(h_RD, (more or {}).get(index, np.float32(0)), threads)
                x_RD += y_RD
            else:
                x_RD += mlp(h_RD, threads)
        logits_RV = self.head(ops.rms_norm(x_RD, 0, self.norm, self.eps), threads)
        return torch.from_numpy(logits_RV), routing
