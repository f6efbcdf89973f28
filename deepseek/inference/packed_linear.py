"""Matrices laid out for products with few rows, in the precision asked for."""

import numpy as np
import torch

from deepseek.kernels import gemm

WEIGHT_FORMATS = ("model", "bf16", "int8")  # "model": as the model holds them


class PackedLinear:
    """Rows times matrices that meet the same input: x (R, in) to x [W1; W2; ...]^T (R, out), both float32 in NumPy.

    One tensor (E, out, in) is E matrices for different rows: those of matrix e end before row ends_E[e]. Numbers that
    bfloat16 holds exactly are kept as such. int8 keeps a scale a row: W is about round(W / scale) * scale with
    scale = max |row| / 127 (LLM.int8(), section 2).
    """

    def __init__(self, weights: str, *layers):
        matrices = [layer.weight if isinstance(layer, torch.nn.Linear) else layer for layer in layers]
        matrix = matrices[0] if len(matrices) == 1 else torch.cat(matrices)
        matrix = matrix if matrix.dim() == 3 else matrix[None]
        scale = torch.ones(matrix.shape[:2])
        if weights == "int8":
            rows = matrix.float()
            scale = rows.abs().amax(2).clamp(min=1e-12) / 127
            matrix = (rows / scale[..., None]).round().to(torch.int8)
        elif weights == "bf16":
            matrix = matrix.bfloat16()
        self.matrix, self.scale = to_numpy(matrix), scale.numpy()
        biases = [getattr(layer, "bias", None) for layer in layers]
        self.bias = None
        if any(bias is not None for bias in biases):
            parts = [torch.zeros(len(m)) if b is None else b.float() for m, b in zip(matrices, biases)]
            self.bias = torch.cat(parts).numpy()

    def __call__(self, x_RK: np.ndarray, threads: int, ends_E: np.ndarray | None = None) -> np.ndarray:
        ends_E = np.array([len(x_RK)]) if ends_E is None else ends_E
        y_RN = gemm.grouped_gemm(self.matrix, self.scale, x_RK, ends_E, threads)
        return y_RN if self.bias is None else y_RN + self.bias


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """A tensor's numbers for `kernels`: int8, the bits of bfloat16 where that holds them exactly, else float32."""
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.int8:
        return tensor.numpy()
    short = tensor.bfloat16()
    return short.view(torch.uint16).numpy() if torch.equal(short.to(tensor.dtype), tensor) else tensor.float().numpy()
