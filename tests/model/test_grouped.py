"""Products by groups beside one product a group, values and gradients."""

import math

import pytest
import torch

from deepseek.model.grouped import grouped


@pytest.mark.parametrize("counts", [[3, 0, 5, 2], [0, 0, 0, 1], [10, 0, 0, 0], [0, 0, 0, 0]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients(counts, dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(sum(counts), 6, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(4, 7, 6, generator=generator, requires_grad=True)
    gradient = torch.randn(sum(counts), 7, generator=generator).to(dtype)
    expected = torch.cat([rows @ matrix.T for rows, matrix in zip(x.float().split(counts), weight.to(dtype).float())])
    found = grouped(x, weight, counts)
    assert found.dtype == dtype
    tolerance = dict(rtol=1e-5, atol=1e-5) if dtype == torch.float32 else dict(rtol=2e-2, atol=5e-2)
    torch.testing.assert_close(found.float(), expected, **tolerance)
    wanted = torch.autograd.grad(expected, (x, weight), gradient.float())
    for ours, theirs in zip(torch.autograd.grad(found, (x, weight), gradient), wanted):
        torch.testing.assert_close(ours.float(), theirs.float(), **tolerance)


def test_a_matrix_without_a_row_is_not_read_and_gets_no_gradient():
    weight = torch.ones(3, 2, 2)
    weight[1] = math.nan
    weight.requires_grad_()
    grouped(torch.ones(4, 2), weight, [1, 0, 3]).sum().backward()
    assert weight.grad.isfinite().all() and weight.grad[1].eq(0).all()
