"""The feed-forward networks of a decode step: gated linear units, and mixtures of experts by softmax or sigmoid routers.

Shape letters are those of deepseek/model/moe.py, and R sequences.
"""

import numpy as np
import torch

from deepseek.inference.packed_linear import PackedLinear
from deepseek.interpret.moe_layers import MoELayer
from deepseek.interpret.router_watch import steered
from deepseek.kernels import ops


class GLU:
    """down(silu(gate x) * up x); of stacked weights, E networks that each take the rows up to their end in `ends_E`."""

    def __init__(self, weights: str, down, *gate_up):
        self.gate_up, self.down = PackedLinear(weights, *gate_up), PackedLinear(weights, down)

    def __call__(self, x_RD, num_threads: int, ends_E=None):
        return self.down(ops.silu_and_mul(self.gate_up(x_RD, num_threads, ends_E)), num_threads, ends_E)


def dense_glu(module, weights: str) -> GLU:
    """The GLU of a module with three projections, as transformers names them."""
    return GLU(weights, module.down_proj, module.gate_proj, module.up_proj)


class MoE:
    """The router, the routed experts and, where `block` has them, the shared experts of the MoE layer `layer`."""

    def __init__(self, block, layer: MoELayer, config, weights: str):
        router, experts = layer.router, layer.experts
        self.num_experts, self.top_k = layer.num_experts, layer.top_k
        self.router = PackedLinear("model", router.weight.float())
        bias_E = getattr(router, "e_score_correction_bias", None)  # DeepSeek-V3's, and then its scores are sigmoids
        self.score = ops.softmax if bias_E is None else ops.sigmoid
        self.bias_E = np.zeros(self.num_experts, np.float32) if bias_E is None else bias_E.float().numpy()
        # Mixtral has no such field and does; DeepSeek-V2 has one and does not, whatever it says.
        self.normalize = config.model_type != "deepseek_v2" and bool(getattr(config, "norm_topk_prob", True))
        self.scaling = float(getattr(config, "routed_scaling_factor", 1.0))
        self.experts = GLU(weights, experts.down_proj, experts.gate_up_proj)
        shared = getattr(block, "shared_experts", None) or getattr(block, "shared_expert", None)
        self.shared = dense_glu(shared, weights) if shared else None
        shared_gate = getattr(block, "shared_expert_gate", None)  # Qwen2-MoE's
        self.shared_gate = PackedLinear("model", shared_gate) if shared_gate else None

    def __call__(self, x_RD, expert_bias_RE, num_threads: int):
        """(output (R, D), experts (R, K), their weights (R, K)); `expert_bias_RE` as `DecodeModel` has it."""
        scores_RE = self.score(self.router(x_RD, num_threads))
        offset_RE = np.zeros_like(scores_RE)
        bias_RE = offset_RE + self.bias_E
        if expert_bias_RE is not None:
            is_steered_RE = np.isfinite(expert_bias_RE)
            strength_RE = np.where(is_steered_RE, expert_bias_RE, np.float32(0))
            offset_RE = _steered(scores_RE, strength_RE) - scores_RE
            ranks_RE = scores_RE + self.bias_E
            bias_RE += np.where(is_steered_RE, _steered(ranks_RE, strength_RE) - ranks_RE, expert_bias_RE)
        routing = self.top_k, self.normalize, self.scaling
        indices_RK, weights_RK = ops.topk_route(scores_RE, bias_RE, offset_RE, *routing)
        order_A = indices_RK.argsort(axis=None, kind="stable")  # assignments sorted by expert
        ends_E = indices_RK.ravel()[order_A].searchsorted(np.arange(self.num_experts), "right")
        y_AD = self.experts(x_RD[order_A // self.top_k], num_threads, ends_E)
        y_RD = self._shared_output(x_RD, num_threads)
        ops.combine_experts(y_AD, order_A, weights_RK, y_RD)
        return y_RD, indices_RK, weights_RK

    def _shared_output(self, x_RD, num_threads: int):
        if not self.shared:
            return np.zeros_like(x_RD)
        y_RD = self.shared(x_RD, num_threads)
        return y_RD * ops.sigmoid(self.shared_gate(x_RD, num_threads)) if self.shared_gate else y_RD


def _steered(scores_RE, strength_RE):
    return steered(torch.from_numpy(scores_RE), torch.from_numpy(strength_RE)).numpy()
