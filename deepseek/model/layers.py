"""Layers that attention and feed-forward share: linear, RMSNorm, gated MLP."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN


class Linear(nn.Linear):
    """A linear layer that computes in its input's dtype, whatever dtype its weights are stored in."""

    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class DeepseekV3RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension, in the dtype of x (Zhang and Sennrich, 2019)."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


class DeepseekV3MLP(nn.Module):
    """GLU feed-forward: down(act(gate x) * up x) (Shazeer, 2020)."""

    def __init__(self, config, width: int):
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, width, bias=False)
        self.up_proj = Linear(config.hidden_size, width, bias=False)
        self.down_proj = Linear(width, config.hidden_size, bias=False)
        self.act = ACT2FN[config.hidden_act]

    def forward(self, x):
        return self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))
