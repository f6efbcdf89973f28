"""Matrices laid out for products with few rows, in the precision asked for."""

import torch
import torch.nn.functional as F

WEIGHTS = ("model", "bf16", "int8")  # "model": as the model holds them


class Product:
    """Row vector times matrices that meet the same input: x (1, in) to x [W1; W2; ...]^T (1, out), both float32.

    int8 keeps a scale a row: W is about round(W / scale) * scale with scale = max |row| / 127 (LLM.int8(), section 2).
    """

    def __init__(self, weights: str, *layers):
        matrices = [layer.weight if isinstance(layer, torch.nn.Linear) else layer for layer in layers]
        self.matrix = matrices[0] if len(matrices) == 1 else torch.cat(matrices)
        biases = [getattr(layer, "bias", None) for layer in layers]
        self.bias = None
        if any(bias is not None for bias in biases):
            parts = [torch.zeros(len(m)) if b is None else b.float() for m, b in zip(matrices, biases)]
            self.bias = torch.cat(parts)
        self.scale = None
        if weights == "int8" and self.matrix.shape[1] % 64 == 0:  # torch's kernel reads past the end of other rows
            rows = self.matrix.float()
            scale = rows.abs().amax(1).clamp(min=1e-12) / 127
            self.matrix, self.scale = (rows / scale[:, None]).round().to(torch.int8), scale.bfloat16()
        elif weights != "model":
            self.matrix = self.matrix.bfloat16()
        self.dtype = self.matrix.dtype if self.scale is None else torch.bfloat16

    def __call__(self, x):
        x = x.to(self.dtype)
        y = F.linear(x, self.matrix) if self.scale is None else torch._weight_int8pack_mm(x, self.matrix, self.scale)
        return y.float() if self.bias is None else y.float() + self.bias
