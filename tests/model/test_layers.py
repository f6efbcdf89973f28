"""Linear layers, RMSNorm and the gated MLP against their definitions."""

import pytest
import torch
import torch.nn.functional as F

from deepseek.model.config import preset
from deepseek.model.layers import DeepseekV3MLP, DeepseekV3RMSNorm, Linear

dtypes = pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])


@dtypes
def test_rms_norm_is_the_definition_in_the_dtype_of_its_input(dtype, tolerance):
    norm, x = DeepseekV3RMSNorm(8, eps=1e-2), torch.randn(4, 6, 20)[..., 3:11]
    torch.nn.init.normal_(norm.weight)
    output = norm(x.to(dtype))
    assert output.dtype == dtype
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-2).sqrt() * norm.weight
    torch.testing.assert_close(output.float(), expected, rtol=tolerance, atol=tolerance)


@dtypes
@pytest.mark.parametrize("bias", [True, False])
def test_linear_computes_in_the_dtype_of_its_input(dtype, tolerance, bias):
    layer, x = Linear(8, 6, bias=bias), torch.randn(3, 8)
    output = layer(x.to(dtype))
    assert output.dtype == dtype
    torch.testing.assert_close(output.float(), F.linear(x, layer.weight, layer.bias), rtol=tolerance, atol=tolerance)


def test_mlp_is_a_gated_linear_unit():
    mlp, x = DeepseekV3MLP(preset("tiny"), 12), torch.randn(3, 72)
    expected = (F.silu(x @ mlp.gate_proj.weight.T) * (x @ mlp.up_proj.weight.T)) @ mlp.down_proj.weight.T
    torch.testing.assert_close(mlp(x), expected)
