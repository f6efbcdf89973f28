"""RMSNorm beside torch's own, value and gradients."""

import pytest
import torch
import torch.nn.functional as F

from deepseek.model.norm import rms_norm


@pytest.mark.parametrize("shape", [(1, 8), (3, 5, 72), (2, 1, 4, 33)])
@pytest.mark.parametrize("scale", [1e-4, 1, 1e3])
def test_values_and_gradients_are_those_of_torch(shape, scale):
    generator = torch.Generator().manual_seed(0)
    x, weight, gradient = (torch.randn(size, generator=generator) for size in (shape, shape[-1:], shape))
    x *= scale
    found = []
    for norm in (
        lambda x, weight: rms_norm(x, weight, 1e-6),
        lambda x, weight: F.rms_norm(x, weight.shape, weight, 1e-6),
    ):
        inputs = x.clone().requires_grad_(), weight.clone().requires_grad_()
        output = norm(*inputs)
        output.backward(gradient)
        found.append((output.detach(), inputs[0].grad * scale, inputs[1].grad))
    for ours, torchs in zip(*found):
        torch.testing.assert_close(ours, torchs, rtol=1e-4, atol=1e-4)


def test_bf16_stays_bf16():
    assert rms_norm(torch.ones(2, 8, dtype=torch.bfloat16), torch.ones(8), 1e-6).dtype == torch.bfloat16


def test_rows_that_lie_apart_in_memory_are_normed_too():
    x = torch.randn(4, 6, 20)[..., 3:11]
    torch.testing.assert_close(rms_norm(x, torch.ones(8), 1e-6), F.rms_norm(x, (8,), None, 1e-6))
