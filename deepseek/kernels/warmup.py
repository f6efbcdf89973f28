"""Compiles the decode kernels before the first request: `python -m deepseek.kernels.warmup [CHECKPOINT]`.

Numba compiles a kernel for the types of its arguments at the first call and caches it on disk. That takes seconds but neither
torch nor a model, so the app runs it in a second process while it imports the rest.
"""

import json
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
from llvmlite.binding import get_host_cpu_features

from deepseek.kernels import sampling
from deepseek.kernels.gemm import grouped_gemm
from deepseek.kernels.mla_decode import mla_decode
from deepseek.kernels.ops import combine_experts, rms_norm, sigmoid, silu_and_mul, topk_route


def compile_sampling() -> None:
    """Calls every kernel of `sampling` on a few logits."""
    logits_N = np.arange(8, dtype=np.float32)
    probs_N, _ = sampling.softmax_entropy(logits_N)
    sampling.top_k_indices(logits_N, 2)
    sampling.top_p_indices(probs_N, 0.9)
    sampling.typical_indices(probs_N, 1.0, 0.9)
    sampling.sample_index(probs_N, 0.5)


def compile_decode(weight_dtype, cache_dtype) -> None:
    """Calls every single-threaded kernel of a decode step, with weights and caches of these NumPy dtypes."""
    row, square, ends = np.ones((1, 4), np.float32), np.zeros((1, 4, 4), weight_dtype), np.array([1])
    rms_norm(row, 0, row[0], 1e-6)
    grouped_gemm(square, row, row, ends, 1)
    indices, weights = topk_route(sigmoid(row), row, row, 1, True, 1.0)
    combine_experts(silu_and_mul(np.ones((1, 8), np.float32)), indices[0], weights, row)
    query, cache = np.ones((1, 8), np.float32), np.zeros((1, 6), cache_dtype)
    cos, caches = row[:, :1].copy(), np.array([(cache.ctypes.data, 1)])
    mla_decode(query, query, 0, row[0], 1e-6, cos, cos, square, square, 1.0, caches, cache[0], 1)


def main():
    compile_sampling()
    checkpoint = sys.argv[1] if len(sys.argv) > 1 else "assets/demo"
    with suppress(OSError, ValueError):  # a model of the Hub, or none: loading it will report that
        config = json.loads(Path(checkpoint, "config.json").read_bytes())
        # Models are loaded in `preferred_dtype`, and weights that bfloat16 represents exactly are stored as such.
        is_bf16 = any(get_host_cpu_features().get(name) for name in ("avx512bf16", "amx-tile"))
        is_exact = is_bf16 or config.get("dtype") == "bfloat16"
        compile_decode(np.uint16 if is_exact else np.float32, np.uint16 if is_bf16 else np.float32)


if __name__ == "__main__":
    main()
