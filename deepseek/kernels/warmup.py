"""Compiles loops before a text asks for them: `python -P deepseek/warm.py [CHECKPOINT]`.

Numba compiles a loop for the kinds of its arguments when it is first called, and keeps that on disk. It takes seconds, but
neither torch nor a model: so the app has it done while it still imports the rest.
"""

import gc
import json
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
from llvmlite.binding import get_host_cpu_features

DEMO = "assets/demo"


def candidates() -> None:
    """Calls every loop of `candidates` on a few numbers."""
    from deepseek.kernels.sampling import (
        array_equal,
        lookup_probs,
        sample_index,
        softmax_entropy,
        top_k_indices,
        top_p_indices,
    )

    ids_N, logits_N = np.arange(8), np.arange(8, dtype=np.float32)
    shares_N, _ = softmax_entropy(logits_N)
    (
        top_k_indices(logits_N, 2),
        top_p_indices(shares_N, 0.9),
        sample_index(shares_N, 0.5),
        array_equal(logits_N, logits_N),
    )
    lookup_probs(ids_N, shares_N, ids_N)


def kernels(weights, cached) -> None:
    """Calls every loop of `kernels` that one thread uses, with numbers stored as these kinds in weights and in caches."""
    from deepseek.kernels.gemm import grouped_gemm
    from deepseek.kernels.mla_decode import mla_decode
    from deepseek.kernels.ops import combine_experts, rms_norm, silu_and_mul, topk_route

    row, square, ends = np.ones((1, 4), np.float32), np.zeros((1, 4, 4), weights), np.array([1])
    rms_norm(row, 0, row[0], 1e-6)
    grouped_gemm(square, row, row, ends, 1)
    indices, weights = topk_route(row, row, 1, 1.0)
    combine_experts(silu_and_mul(np.ones((1, 8), np.float32)), indices[0], weights, row)
    query, cache = np.ones((1, 8), np.float32), np.zeros((1, 6), cached)
    turn, place = row[:, :1].copy(), np.array([(cache.ctypes.data, 1)])
    mla_decode(query, query, 0, row[0], 1e-6, turn, turn, square, square, 1.0, place, cache[0], 1)


def main():
    gc.disable()
    candidates()
    checkpoint = sys.argv[1] if len(sys.argv) > 1 else DEMO
    with suppress(OSError, ValueError):  # a model of the Hub, or none: whoever opens it will know
        config = json.loads(Path(checkpoint, "config.json").read_bytes())
        features = get_host_cpu_features()
        short = features.get("avx512bf16") or features.get("amx-tile")  # models are held so: `preferred_dtype`
        exact = short or config.get("dtype") == "bfloat16"
        kernels(np.uint16 if exact else np.float32, np.uint16 if short else np.float32)


if __name__ == "__main__":
    main()
