"""Grouped-query attention of a decode step, as in Llama, Mixtral, OLMoE and Qwen: rotated queries and keys, maybe normalised.

Shape letters are those of deepseek/kernels/gqa_decode.py, and D hidden width.
"""

import numpy as np
import torch

from deepseek.inference.packed_linear import PackedLinear
from deepseek.kernels import gqa_decode, ops


class GQA:
    """A layer's grouped-query attention, packed for decoding."""

    def __init__(self, module, weights: str):
        self.qkv = PackedLinear(weights, module.q_proj, module.k_proj, module.v_proj)
        self.head_dim, self.scale = module.head_dim, module.scaling
        num_queries, num_keys = module.q_proj.out_features, module.k_proj.out_features
        self.entry_width = 2 * num_keys
        # RMSNorm of the whole query and key (OLMoE), or of each head's (Qwen3): as many elements as the norm has weights.
        norms = (getattr(module, "q_norm", None), getattr(module, "k_norm", None))
        columns = slice(num_queries), slice(num_queries, num_queries + num_keys)
        self.norms = [
            (part, norm.weight.float().numpy(), norm.variance_epsilon) for part, norm in zip(columns, norms) if norm
        ]
        self.out = PackedLinear(weights, module.o_proj)

    @staticmethod
    def cos_sin(rotary, positions_R: torch.Tensor):
        """cos and sin (R, J) of each position, by the model's rotary module."""
        parts = rotary(torch.empty(0), position_ids=positions_R[None])
        return tuple(part[0].chunk(2, -1)[0].contiguous().numpy() for part in parts)  # both halves are equal

    def __call__(self, x_RD, cos_RJ, sin_RJ, caches_R2, like_W, num_threads: int):
        qkv_RX = self.qkv(x_RD, num_threads)
        for columns, weight_N, eps in self.norms:
            part_RX = qkv_RX[:, columns]
            heads_XN = np.ascontiguousarray(part_RX).reshape(-1, len(weight_N))
            part_RX[:] = ops.rms_norm(heads_XN, 0, weight_N, eps).reshape(part_RX.shape)
        y_RX = gqa_decode.gqa_decode(qkv_RX, self.head_dim, cos_RJ, sin_RJ, self.scale, caches_R2, like_W, num_threads)
        return self.out(y_RX, num_threads)
