"""Mirostat and adaptive-p along a text, against llama.cpp's results and their definitions."""

import math

import numpy as np
import pytest
import torch
from sampler_cases import assert_as_llama_cpp, llama_cpp_cases, random_logits, run

from deepseek import SamplingParams
from deepseek.inference.adaptive import accept
from deepseek.inference.sampling import SamplingState, apply_samplers


def test_temperature_is_that_of_llama_cpp():
    for case in llama_cpp_cases("temperature"):
        middle, half, exponent = case["settings"]
        params = SamplingParams(
            dynamic_temperature=True,
            temperature_min=middle - half,
            temperature_max=middle + half,
            temperature_exponent=exponent,
        )
        result_V, _, _ = run(case["logits"][0], params)
        assert_as_llama_cpp(result_V, case["results"][0]["kept"])


def steps_of(case, params):
    """(logits left, the state after the token that llama.cpp chose, its result) of each step."""
    state = SamplingState([], [])
    for logits_V, result in zip(case["logits"], case["results"]):
        *_, (_, _, ids_N, logits_N) = apply_samplers(logits_V.numpy(), params, state)
        result_V = torch.full_like(logits_V, -math.inf)
        result_V[ids_N] = torch.from_numpy(logits_N)
        accept(int(result["state"][-1]), params, state)
        yield result_V, state, result


def test_mirostat_is_that_of_llama_cpp():
    num_kept = set()
    for case in llama_cpp_cases("mirostat"):
        tau, eta = case["settings"]
        for result_V, state, result in steps_of(case, SamplingParams(mirostat_tau=tau, mirostat_eta=eta)):
            assert_as_llama_cpp(result_V, result["kept"])
            assert state.mirostat_mu == pytest.approx(result["state"][0], abs=2e-3)
            num_kept.add(len(result["kept"]))
    assert len(num_kept) > 5


def test_adaptive_p_is_that_of_llama_cpp():
    for case in llama_cpp_cases("adaptive-p"):
        target, decay = case["settings"]
        for result_V, state, result in steps_of(case, SamplingParams(adaptive_target=target, adaptive_decay=decay)):
            assert_as_llama_cpp(result_V, result["kept"])
            assert state.adaptive_sums == pytest.approx(result["state"][:2], abs=2e-3)


def test_mirostat_holds_the_surprise_near_tau():
    rng = np.random.default_rng(0)
    params, state, surprises = SamplingParams(mirostat_tau=3.0, mirostat_eta=0.2), SamplingState([], []), []
    for seed in range(300):
        *_, (_, _, ids_N, logits_N) = apply_samplers(random_logits(seed, 200, 2.0).numpy(), params, state)
        probs_N = np.exp(logits_N.astype(float)) / np.exp(logits_N.astype(float)).sum()
        index = rng.choice(len(ids_N), p=probs_N)
        surprises.append(-math.log2(probs_N[index]))
        accept(int(ids_N[index]), params, state)
    assert np.mean(surprises[50:]) == pytest.approx(3.0, abs=0.2)


def test_adaptive_p_moves_its_target_against_the_average():
    params, state = SamplingParams(adaptive_target=0.5, adaptive_decay=0.5), SamplingState([], [])
    logits = np.log(np.array([0.9, 0.1], np.float32))
    list(apply_samplers(logits, params, state))
    assert state.details["adaptive-p"] == {"target": 0.5, "average": 0.5}
    accept(0, params, state)  # sums 0.9 + 0.5 * 1 and 1 + 0.5 * 2
    list(apply_samplers(logits, params, state))
    assert state.details["adaptive-p"]["average"] == pytest.approx(1.4 / 2)
    assert state.details["adaptive-p"]["target"] == pytest.approx(1 - 1.4 / 2)


def test_a_forced_token_moves_the_state_as_a_sampled_one_does():
    """One that mirostat cut by its surprise among the kept; one that was removed before, not at all."""
    logits = np.log(np.array([0.5, 0.25, 0.125, 0.125], np.float32))
    params = SamplingParams(mirostat_tau=0.75, mirostat_eta=0.5, banned_tokens=("9",))
    for token, surprise in ((0, -math.log2(2 / 3)), (1, -math.log2(1 / 3)), (2, -math.log2(1 / 6))):
        state = SamplingState([], [], mirostat_mu=2.0)
        *_, (_, _, ids_N, _) = apply_samplers(logits, params, state)
        assert ids_N.tolist() == [0, 1]
        accept(token, params, state)
        assert state.mirostat_mu == pytest.approx(2 - 0.5 * (surprise - 0.75), abs=1e-5) and state.output_ids == [token]
    state = SamplingState([], [], mirostat_mu=2.0)
    list(apply_samplers(logits, SamplingParams(mirostat_tau=0.75, top_k=2, order="mirostat,top-k"), state))
    accept(9, params, state)
    assert state.mirostat_mu == 2.0
