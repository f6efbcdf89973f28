"""Products of groups of rows with a matrix each, as the experts of a mixture need them.

Shape letters: A rows, I and O a matrix's inputs and outputs, E matrices.
"""

import torch


def grouped(x_AI, weight_EOI, counts: list[int]):
    """x W_e^T, the first counts[0] rows with matrix 0, the next counts[1] with matrix 1, and so on: (A, O).

    In the precision of the rows. A matrix without a row is not read, and its gradient is zero.
    """
    return _Grouped.apply(x_AI, weight_EOI, counts)


class _Grouped(torch.autograd.Function):
    """Its gradients are written where they stay; autograd would make that of every matrix, and then stack them."""

    @staticmethod
    def forward(ctx, x_AI, weight_EOI, counts):
        ctx.save_for_backward(x_AI, weight_EOI)
        ctx.counts = counts
        y_AO = x_AI.new_empty(len(x_AI), weight_EOI.shape[1])
        for x, weight, y in zip(x_AI.split(counts), weight_EOI, y_AO.split(counts)):
            if len(x):
                torch.mm(x, weight.T.to(x.dtype), out=y)
        return y_AO

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, to_y_AO):
        x_AI, weight_EOI = ctx.saved_tensors
        to_x_AI, to_weight_EOI = torch.empty_like(x_AI), torch.empty_like(weight_EOI)
        groups = zip(*(rows.split(ctx.counts) for rows in (x_AI, to_y_AO, to_x_AI)), weight_EOI, to_weight_EOI)
        for x, to_y, to_x, weight, to_weight in groups:
            torch.mm(to_y, weight.to(x.dtype), out=to_x)
            if x.dtype == weight.dtype:
                torch.mm(to_y.T, x, out=to_weight)
            else:
                to_weight.copy_(to_y.T @ x)
        return to_x_AI, to_weight_EOI, None
