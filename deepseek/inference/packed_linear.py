"""Linear layers packed for products with few rows, in the weight format asked for."""

import numpy as np
import torch

from deepseek.kernels import gemm

WEIGHT_FORMATS = ("model", "bf16", "int8")  # "model": as the model stores them


class PackedLinear:
    """x (R, in) to x [W1; W2; ...]^T (R, out) for layers that share an input, both float32 in NumPy.

    A tensor (E, out, in) is E matrices, one for each range of rows: those of matrix e end before row ends_E[e]. `order`
    permutes the outputs. Weights that bfloat16 represents exactly are stored in it. int8 stores a scale per output:
    W ~ round(W / scale) * scale with scale = max |row| / 127 (LLM.int8(), section 2).
    """

    def __init__(self, weights: str, *layers, order: torch.Tensor | None = None):
        matrices = [layer.weight if isinstance(layer, torch.nn.Linear) else layer for layer in layers]
        order = slice(None) if order is None else order
        matrix, self.bias = (torch.cat(matrices) if len(matrices) > 1 else matrices[0])[order], None
        biases = [getattr(layer, "bias", None) for layer in layers]
        if any(bias is not None for bias in biases):
            biases = [torch.zeros(len(m)) if b is None else b.float() for m, b in zip(matrices, biases)]
            self.bias = torch.cat(biases)[order].numpy()
        matrix = matrix if matrix.dim() == 3 else matrix[None]
        scale = torch.ones(matrix.shape[:2])
        if weights == "int8":
            rows = matrix.float()
            scale = rows.abs().amax(2).clamp(min=1e-12) / 127
            matrix = (rows / scale[..., None]).round().to(torch.int8)
        elif weights == "bf16":
            matrix = matrix.bfloat16()
        self.matrix, self.scale = to_numpy(matrix), scale.numpy()

    def __call__(self, x_RK: np.ndarray, num_threads: int, ends_E: np.ndarray | None = None) -> np.ndarray:
        ends_E = np.array([len(x_RK)]) if ends_E is None else ends_E
        y_RN = gemm.grouped_gemm(self.matrix, self.scale, x_RK, ends_E, num_threads)
        return y_RN if self.bias is None else y_RN + self.bias


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """A tensor for `kernels`: int8 as it is, bfloat16's bits as uint16 where that is exact, else float32."""
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.int8:
        return tensor.numpy()
    rounded = tensor.bfloat16()
    exact = torch.equal(rounded.to(tensor.dtype), tensor)
    return rounded.view(torch.uint16).numpy() if exact else tensor.float().numpy()
