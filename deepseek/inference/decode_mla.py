"""Multi-head latent attention of a decode step: our DeepSeek-V3 and transformers' DeepSeek-V2.

Shape letters are those of deepseek/model/mla.py, and R sequences, J half the rotary width.
"""

import torch

from deepseek.inference.packed_linear import PackedLinear, to_numpy
from deepseek.kernels import mla_decode, ops
from deepseek.model.mla import LATENT_NORM_EPS, DeepseekV3RotaryEmbedding


class MLA:
    """A layer's latent attention in its absorbed form (see DeepseekV3Attention.absorbed), packed for decoding."""

    def __init__(self, module, weights: str):
        config = module.config
        heads, latent = module.num_heads, config.kv_lora_rank
        nope, rope, value = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
        self.entry_width = latent + rope
        rope_order = torch.arange(rope)
        if getattr(config, "rope_interleave", True):  # to halves, the layout that the rotary kernel expects
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
        up_HXC = module.kv_b_proj.weight.view(heads, nope + value, latent)
        up_key_HNC, up_value_HVC = up_HXC.split([nope, value], 1)
        self.up_key_HCN, self.up_value_HVC = to_numpy(up_key_HNC.transpose(1, 2)), to_numpy(up_value_HVC)
        self.scale, self.out = module.scaling, PackedLinear(weights, module.o_proj)

    @staticmethod
    def cos_sin(rotary, positions_R: torch.Tensor):
        """cos and sin (R, J) of each position, by the model's rotary module."""
        if isinstance(rotary, DeepseekV3RotaryEmbedding):
            return tuple(part.numpy() for part in rotary(positions_R, torch.float32))
        rotations_RJ = rotary(torch.empty(0), positions_R[None])[0]  # complex numbers
        return rotations_RJ.real.contiguous().numpy(), rotations_RJ.imag.contiguous().numpy()

    def __call__(self, x_RD, cos_RJ, sin_RJ, caches_R2, like_W, num_threads: int):
        compressed_RX = query_RX = self.down(x_RD, num_threads)
        if self.up_query:
            query_RX = self.up_query(ops.rms_norm(compressed_RX, 0, self.query_norm, LATENT_NORM_EPS), num_threads)
        y_RX = mla_decode.mla_decode(query_RX, compressed_RX, self.latent_at, self.latent_norm, LATENT_NORM_EPS, cos_RJ, sin_RJ,
                              self.up_key_HCN, self.up_value_HVC, self.scale, caches_R2, like_W, num_threads)  # fmt: skip
        return self.out(y_RX, num_threads)
