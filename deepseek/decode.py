"""One token at a time, fast: a second way through the weights of our own model, for decoding a single text.

For one token a layer is a dozen products of a matrix and a vector, and what surrounds them costs as much as they do.
So weights that meet the same input are laid in one, the residual stream is one row in float32, and nothing is asked
twice. It gives what the model's own forward gives, over the same cache; with `weights` "bf16" or "int8" the matrices
are rounded, and read from memory in half or a quarter of the time of float32.

Shape letters are those of model.py.
"""

import torch

from deepseek.model import LATENT_NORM_EPS, DeepseekV3ForCausalLM, DeepseekV3MLP, LatentCache, rotate
from deepseek.product import WEIGHTS, Product


def normalised(x, weight, eps: float):
    """RMSNorm of one row (1, D); for a row, one dot product and a Python number are cheaper than torch's rms_norm."""
    row = x[0]
    return x * weight * (float(row.dot(row)) / len(row) + eps) ** -0.5


class Attention:
    """Latent attention in its absorbed form (DeepseekV3Attention.absorbed says why it is the same)."""

    def __init__(self, module, weights: str):
        config = module.config
        self.heads, self.nope, self.rope, self.scale = module.heads, module.nope, module.rope, module.scale
        self.width, self.interleave = config.kv_lora_rank, config.rope_interleave
        self.dtype = module.kv_b_proj.weight.dtype  # the cache's
        query = module.q_proj if config.q_lora_rank is None else module.q_a_proj
        self.down = Product(weights, query, module.kv_a_proj_with_mqa)
        self.query_width, self.up_query = query.out_features, None
        if config.q_lora_rank is not None:
            self.query_norm = module.q_a_layernorm.weight.float()
            self.up_query = Product(weights, module.q_b_proj)
        self.latent_norm = module.kv_a_layernorm.weight.float()
        up_HXC = module.kv_b_proj.weight.float().view(self.heads, self.nope + module.v, self.width)
        self.up_key_HNC, up_value_HVC = up_HXC.split([self.nope, module.v], 1)
        self.up_value_HCV = up_value_HVC.transpose(1, 2)
        self.out = Product(weights, module.o_proj)

    def __call__(self, x_1D, cos, sin, cache):
        query, latent, k_rope = self.down(x_1D).split([self.query_width, self.width, self.rope], -1)
        if self.up_query:
            query = self.up_query(normalised(query, self.query_norm, LATENT_NORM_EPS))
        q_nope, q_rope = query.view(self.heads, -1).split([self.nope, self.rope], -1)
        rotated = rotate(torch.cat([q_rope, k_rope]), cos, sin, self.interleave)  # H query parts, then the key's
        latent = normalised(latent, self.latent_norm, LATENT_NORM_EPS)
        entries, _ = cache.update(torch.cat([latent, rotated[-1:]], -1).to(self.dtype)[None, None])
        entries_TL = entries[0, 0].float()
        q_latent = torch.bmm(q_nope.unsqueeze(1), self.up_key_HNC).squeeze(1)
        query_HL = torch.cat([q_latent, rotated[:-1]], -1)
        weights_HT = torch.mm(query_HL * self.scale, entries_TL.T).softmax(-1)
        output_HC = torch.mm(weights_HT, entries_TL[:, : self.width])
        return self.out(torch.bmm(output_HC.unsqueeze(1), self.up_value_HCV).view(1, -1))


class GLU:
    """down(act(gate x) * up x)."""

    def __init__(self, act, weights: str, gate_up, down):
        self.act, self.gate_up, self.down = act, Product(weights, *gate_up), Product(weights, down)

    def __call__(self, x):
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(self.act(gate) * up)


class Mixture:
    """The experts that the router chooses, and the shared ones. The router is the model's own module, hooks and all."""

    def __init__(self, module, weights: str):
        self.gate = module.gate
        self.shared = glu(module.shared_experts, weights)
        pairs = zip(module.experts.gate_up_proj.unbind(), module.experts.down_proj.unbind())
        self.experts = [GLU(module.experts.act, weights, [gate_up], down) for gate_up, down in pairs]

    def __call__(self, x):
        _, weights, indices = self.gate(x)
        output = self.shared(x)
        for expert, weight in zip(indices[0].tolist(), weights[0].tolist()):
            output.add_(self.experts[expert](x), alpha=weight)
        return output


def glu(module: DeepseekV3MLP, weights: str) -> GLU:
    """The feed-forward network of a module."""
    return GLU(module.act, weights, [module.gate_proj, module.up_proj], module.down_proj)


class Decoder:
    """The model laid out for one text: `decoder(id, cache)` is the next step after what the cache holds.

    Built from a model in eval mode; it shares the tensors that need no other layout. Raises ValueError for unknown
    `weights`.
    """

    @torch.inference_mode()
    def __init__(self, model: DeepseekV3ForCausalLM, weights: str = "model"):
        if weights not in WEIGHTS:
            raise ValueError(f"weights is {weights!r}; it must be one of {', '.join(WEIGHTS)}.")
        self.embedding, self.rotary = model.model.embed_tokens.weight, model.model.rotary_emb
        self.layers = []
        for layer in model.model.layers:
            mlp = glu(layer.mlp, weights) if isinstance(layer.mlp, DeepseekV3MLP) else Mixture(layer.mlp, weights)
            norms = [layer.input_layernorm, layer.post_attention_layernorm]
            self.layers.append((Attention(layer.self_attn, weights), mlp, *(norm.weight.float() for norm in norms)))
        self.norm, self.eps = model.model.norm.weight.float(), model.model.norm.eps
        self.head = Product(weights, model.lm_head)

    @torch.inference_mode()
    def __call__(self, token: int, cache: LatentCache) -> torch.Tensor:
        """Logits (vocabulary,), float32, after `token`; the cache grows by it."""
        position = torch.tensor([cache.get_seq_length()], device=self.embedding.device)
        cos, sin = self.rotary(position, torch.float32)
        x_1D = self.embedding[token].float().unsqueeze(0)
        for (attention, mlp, before, between), entries in zip(self.layers, cache.layers):
            x_1D = x_1D + attention(normalised(x_1D, before, self.eps), cos, sin, entries)
            x_1D += mlp(normalised(x_1D, between, self.eps))
        return self.head(normalised(x_1D, self.norm, self.eps))[0]
