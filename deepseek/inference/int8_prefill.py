"""Prompts in int8, for CPUs that multiply it natively: weights with a scale per output, activations with one per token.

A product takes half of bf16's time and a quarter of float32's (AMD Zen 4, torch 2.13). The scheme is LLM.int8()'s (Dettmers et
al., 2022, section 2) without its outliers, torchao's Int8DynamicActivationInt8Weight.

Shape letters: X tokens, A assignments of a token to an expert, N outputs, K inputs.
"""

import torch
from torch import nn

from deepseek.inference.packed_linear import quantize_rows
from deepseek.model import cpu_features
from deepseek.model.deepseek_v3 import DeepseekV3ForCausalLM
from deepseek.model.layers import Linear
from deepseek.model.mla import DeepseekV3Attention
from deepseek.model.moe import DeepseekV3Experts


def int8_linear(x, int8_NK: torch.Tensor, scale_N: torch.Tensor) -> torch.Tensor:
    """x (..., K) times the transpose of a matrix in int8, (..., N) in float32."""
    x_XK, scale_X = quantize_rows(x.flatten(0, -2))
    y_XN = torch._int_mm(x_XK, int8_NK.mT).float()
    return y_XN.mul_(scale_X[:, None]).mul_(scale_N).unflatten(0, x.shape[:-1])


class Int8Linear(Linear):
    """A linear layer that computes in int8. It keeps its weight: the absorbed path of attention multiplies others by it."""

    def __init__(self, linear: nn.Linear):
        nn.Module.__init__(self)
        self.weight, self.bias = linear.weight, linear.bias
        self.int8_NK, self.scale_N = quantize_rows(linear.weight)

    def forward(self, x):
        y = int8_linear(x, self.int8_NK, self.scale_N)
        return y if self.bias is None else y.add_(self.bias)


def grouped_int8_linear(x_AK, counts: list[int], matrices: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """`int8_linear` for rows sorted by expert, each times its expert's matrix: (A, N). They are rounded at once."""
    x_AK, scale_A = quantize_rows(x_AK)
    hit = [(rows, *matrix) for rows, matrix in zip(x_AK.split(counts), matrices, strict=True) if len(rows)]
    products = [torch._int_mm(rows, int8_NK.mT).float().mul_(scale_N) for rows, int8_NK, scale_N in hit]
    return torch.cat(products).mul_(scale_A[:, None])


class Int8Experts(DeepseekV3Experts):
    """Experts that compute in int8."""

    def __init__(self, experts: DeepseekV3Experts):
        nn.Module.__init__(self)
        self.gate_up_proj, self.down_proj, self.act = experts.gate_up_proj, experts.down_proj, experts.act
        self.int8_gate_up = [quantize_rows(matrix) for matrix in self.gate_up_proj]
        self.int8_down = [quantize_rows(matrix) for matrix in self.down_proj]

    def grouped_forward(self, x_AD, counts: list[int]):
        gate, up = grouped_int8_linear(x_AD, counts, self.int8_gate_up).chunk(2, -1)
        return grouped_int8_linear(self.act(gate) * up, counts, self.int8_down)

    def expert_forward(self, x, expert: int):
        gate, up = int8_linear(x, *self.int8_gate_up[expert]).chunk(2, -1)
        return int8_linear(self.act(gate) * up, *self.int8_down[expert])


def supports(model) -> bool:
    """Whether `quantize` makes prompts faster: our DeepSeek-V3 on a CPU with int8 instructions."""
    is_ours = isinstance(model, DeepseekV3ForCausalLM)
    return is_ours and model.device.type == "cpu" and cpu_features.has_int8_instructions()


@torch.no_grad()
def quantize(model: DeepseekV3ForCausalLM) -> None:
    """Makes a model in eval mode compute its linear layers and experts in int8, in place; routers as before.

    Attention over a prompt is in bf16, scores too, where the processor has bf16 instructions but no AMX tiles (with those torch's
    fused kernel attends): in float32 it would be a third of the time. The weights stay beside their int8, which takes half of
    bf16's memory more.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            model.set_submodule(name, Int8Linear(module))
        elif isinstance(module, DeepseekV3Experts):
            model.set_submodule(name, Int8Experts(module))
        elif isinstance(module, DeepseekV3Attention):
            module.prefill_in_bf16 = cpu_features.has_bf16_instructions()
