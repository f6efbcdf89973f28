"""Mixture of experts: sigmoid routing and dropless SwiGLU experts beside a shared one.

Definitions: DeepSeekMoE, section 3 (experts); DeepSeek-V3, section 2.1.2 (routing with a bias).

Shape letters: B batch, S tokens, X = B*S rows, D hidden width, E experts, K experts per token, F inner width of an expert,
A = X*K assignments of a token to an expert.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN

from deepseek.model.layers import DeepseekV3MLP


class DeepseekV3TopkRouter(nn.Module):
    """Selects K of E experts per token, in fp32: scores plus bias select, scores without the bias weigh."""

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
        biased_XE = scores_XE + self.e_score_correction_bias
        if config.n_group > 1:
            # Only experts of the topk_group best groups compete; a group's score is the sum of its two best experts.
            groups = biased_XE.view(-1, config.n_group, config.n_routed_experts // config.n_group)
            best = groups.topk(2, -1).values.sum(-1).topk(config.topk_group, -1).indices
            excluded = torch.ones_like(groups[..., 0], dtype=torch.bool).scatter(1, best, False)
            biased_XE = groups.masked_fill(excluded.unsqueeze(-1), -math.inf).flatten(1)
        indices_XK = biased_XE.topk(config.num_experts_per_tok, -1).indices
        weights_XK = scores_XE.gather(1, indices_XK)
        if config.norm_topk_prob:
            weights_XK = weights_XK / (weights_XK.sum(-1, keepdim=True) + 1e-20)
        return logits_XE, weights_XK * config.routed_scaling_factor, indices_XK


class DeepseekV3Experts(nn.Module):
    """E GLU networks as stacked weights. Each runs on the tokens routed to it; no token is dropped."""

    def __init__(self, config):
        super().__init__()
        num_experts, width, inner = config.n_routed_experts, config.hidden_size, config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(num_experts, 2 * inner, width))
        self.down_proj = nn.Parameter(torch.empty(num_experts, width, inner))
        self.act = ACT2FN[config.hidden_act]

    def expert_forward(self, x, expert: int):
        """The output of a single expert."""
        gate, up = F.linear(x, self.gate_up_proj[expert].to(x.dtype)).chunk(2, -1)
        return F.linear(self.act(gate) * up, self.down_proj[expert].to(x.dtype))

    def grouped_forward(self, x_AD, counts: list[int]):
        """The outputs (A, D) of rows sorted by expert: expert 0 gets the first counts[0] of them."""
        hit = [(x, expert) for expert, x in enumerate(x_AD.split(counts)) if len(x)]  # the others' weights are not read
        return torch.cat([self.expert_forward(x, expert) for x, expert in hit])

    def forward(self, x_XD, weights_XK, indices_XK):
        num_tokens, top_k = indices_XK.shape
        if num_tokens == 1:
            outputs = [self.expert_forward(x_XD, expert) for expert in indices_XK[0].tolist()]
            return weights_XK.to(x_XD.dtype) @ torch.cat(outputs)
        order_A = indices_XK.flatten().argsort(stable=True)  # assignments, sorted by expert
        counts = torch.bincount(indices_XK.flatten(), minlength=len(self.gate_up_proj)).tolist()
        outputs_AD = self.grouped_forward(x_XD.index_select(0, order_A // top_k), counts)
        outputs_XKD = outputs_AD.index_select(0, order_A.argsort()).view(num_tokens, top_k, -1)
        return (weights_XK.to(outputs_XKD.dtype).unsqueeze(1) @ outputs_XKD).squeeze(1)


class DeepseekV3MoE(nn.Module):
    """The sum of the routed experts and the shared experts, both on the same input."""

    def __init__(self, config):
        super().__init__()
        self.gate = DeepseekV3TopkRouter(config)
        self.experts = DeepseekV3Experts(config)
        self.shared_experts = DeepseekV3MLP(config, config.moe_intermediate_size * config.n_shared_experts)

    def forward(self, x_BSD):
        x_XD = x_BSD.flatten(0, 1)
        _, weights_XK, indices_XK = self.gate(x_XD)
        return self.experts(x_XD, weights_XK, indices_XK).view_as(x_BSD) + self.shared_experts(x_BSD)
