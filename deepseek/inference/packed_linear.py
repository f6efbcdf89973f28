"""Linear layers packed for products with few rows, in the weight format asked for."""

import numpy as np
import torch

from deepseek.checkpoints.memory import free_memory
from deepseek.kernels import gemm

WEIGHT_FORMATS = ("model", "bf16", "int8")  # "model": as the model stores them
WEIGHTS_HELP = "matrices as the model stores them (model), or rounded to bf16 or int8"
MEMORY_FACTOR = 8  # a copy of weights must leave seven times its size free


class PackedLinear:
    """x (R, in) to x [W1; W2; ...]^T (R, out) for layers that share an input, both float32 in NumPy.

    A tensor (E, out, in) is E matrices, one for each range of rows: those of matrix e end before row ends_E[e]. `order`
    permutes the outputs. Weights that bfloat16 represents exactly are stored in it. int8 stores a scale per output, as
    `quantize_rows` gives it.
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
            matrix, scale = _quantize(matrix)
        elif weights == "bf16":
            matrix = matrix.bfloat16()
        self.matrix, self.scale = to_numpy(matrix), scale.numpy()

    def __call__(self, x_RK: np.ndarray, num_threads: int, ends_E: np.ndarray | None = None) -> np.ndarray:
        ends_E = np.array([len(x_RK)]) if ends_E is None else ends_E
        y_RN = gemm.grouped_gemm(self.matrix, self.scale, x_RK, ends_E, num_threads)
        return y_RN if self.bias is None else y_RN + self.bias


def quantize_rows(matrix_XK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(int8 (X, K), scales (X,)) of a matrix M: M ~ int8 * scale, with scale = max |row| / 127 (LLM.int8(), section 2)."""
    matrix_XK = matrix_XK.float()
    scale_X = matrix_XK.abs().amax(-1).clamp(min=1e-12) / 127
    return (matrix_XK / scale_X[:, None]).round_().to(torch.int8), scale_X


def _quantize(matrix_ENK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(int8 matrices, scales (E, N)); one matrix after the other, which needs no copy in float32 of all of them."""
    int8_ENK, scale_EN = torch.empty_like(matrix_ENK, dtype=torch.int8), torch.empty(matrix_ENK.shape[:2])
    for expert, matrix_NK in enumerate(matrix_ENK):
        int8_ENK[expert], scale_EN[expert] = quantize_rows(matrix_NK)
    return int8_ENK, scale_EN


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """A tensor for `kernels`: int8 as it is, bfloat16's bits as uint16, else float32.

    Float32 that bfloat16 represents exactly is copied to it, which takes half the time to read and gives the same results,
    unless memory is short.
    """
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.int8:
        return tensor.numpy()
    if tensor.dtype == torch.bfloat16 or _fits_bfloat16(tensor):
        return tensor.bfloat16().view(torch.uint16).numpy()
    return tensor.float().numpy()


def _fits_bfloat16(tensor: torch.Tensor) -> bool:
    """Whether a tensor is bfloat16's in another dtype and there is memory for many of its size in bfloat16."""
    exact = all(torch.equal(part.bfloat16().to(part.dtype), part) for part in tensor)
    free = free_memory()
    return exact and (free is None or MEMORY_FACTOR * 2 * tensor.numel() < free)
