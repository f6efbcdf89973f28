"""What the tests of the samplers share: random logits, running a chain, and results of llama.cpp."""

import json
import math

import numpy as np
import torch
from running import ROOT

from deepseek.inference.sampling import SamplingState, apply_samplers


def run(logits_V, params, prompt=(), output=(), **state):
    """(logits after the last sampler, -inf where removed; {sampler: active}; the state) of samplers run on torch logits."""
    state = SamplingState(list(prompt), list(output), **state)
    steps = list(apply_samplers(logits_V.numpy(), params, state))
    *_, ids_N, logits_N = steps[-1]
    assert ids_N.tolist() == sorted(set(ids_N.tolist())) and logits_N.dtype == np.float32
    result_V = torch.full_like(logits_V, -math.inf)
    result_V[ids_N] = torch.from_numpy(logits_N)
    return result_V, {name: active for name, active, *_ in steps}, state


def random_logits(seed, vocabulary=60, scale=4.0):
    """Normal logits (vocabulary,)."""
    return torch.randn(vocabulary, generator=torch.Generator().manual_seed(seed)) * scale


def llama_cpp_cases(*samplers):
    """The cases of fixtures/llama_cpp/samplers.json with these samplers, each with its logits as float32 tensors."""
    cases = json.loads((ROOT / "tests/fixtures/llama_cpp/samplers.json").read_text())
    return [{**case, "logits": torch.tensor(case["logits"])} for case in cases if case["sampler"] in samplers]


def assert_as_llama_cpp(result_V, kept, atol=2e-3):
    """The logits left are those of llama.cpp, up to a constant."""
    ids, logits = zip(*kept)
    assert result_V.isfinite().nonzero().flatten().tolist() == list(ids)
    expected_N = torch.tensor(logits).softmax(-1)
    torch.testing.assert_close(result_V[list(ids)].softmax(-1), expected_N, atol=atol, rtol=1e-3)
