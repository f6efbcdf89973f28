"""Samplers that remove tokens, against transformers' warpers, llama.cpp's results or their definitions."""

import random

import numpy as np
import pytest
import torch
import transformers
from sampler_cases import assert_as_llama_cpp, llama_cpp_cases, random_logits, run

from deepseek import SamplingParams
from deepseek.inference.engine import stream_batch

WARPERS = {
    "top_k": (transformers.TopKLogitsWarper, lambda rng: rng.randint(1, 80)),
    "top_p": (transformers.TopPLogitsWarper, lambda rng: rng.uniform(0.05, 0.99)),
    "min_p": (transformers.MinPLogitsWarper, lambda rng: rng.uniform(0.01, 0.5)),
    "typical_p": (transformers.TypicalLogitsWarper, lambda rng: rng.uniform(0.05, 0.98)),
    "epsilon_cutoff": (transformers.EpsilonLogitsWarper, lambda rng: rng.uniform(0.0001, 0.3)),
    "eta_cutoff": (transformers.EtaLogitsWarper, lambda rng: rng.uniform(0.0001, 0.3)),
}
PARAMS = {
    "top-n-sigma": lambda n: dict(top_n_sigma=n),
    "typical": lambda p: dict(typical_p=p),
    "XTC": lambda probability, threshold: dict(xtc_probability=probability, xtc_threshold=threshold),
    "top-k": lambda k: dict(top_k=k),
    "top-p": lambda p: dict(top_p=p),
    "min-p": lambda p: dict(min_p=p),
}


@pytest.mark.parametrize("setting", WARPERS)
def test_keeps_what_transformers_keeps(setting):
    warper, random_value = WARPERS[setting]
    rng = random.Random(setting)
    for seed in range(100):
        value, logits_V = random_value(rng), random_logits(seed, scale=rng.uniform(0.5, 5))
        expected = warper(value)(torch.zeros(1, 1, dtype=torch.long), logits_V[None])[0]
        actual, _, _ = run(logits_V, SamplingParams(**{setting: value}))
        assert torch.equal(actual.isfinite(), expected.isfinite()), (seed, value)


@pytest.mark.parametrize("sampler", PARAMS)
def test_keeps_what_llama_cpp_keeps(sampler):
    cases = llama_cpp_cases(sampler)
    assert len(cases) > 3
    for case in cases:
        result_V, _, _ = run(case["logits"][0], SamplingParams(**PARAMS[sampler](*case["settings"])))
        assert_as_llama_cpp(result_V, case["results"][0]["kept"])


@pytest.mark.parametrize("order", ["transformers", "llama.cpp"])
def test_top_n_sigma_keeps_the_same_tokens_at_any_temperature(order):
    for seed in range(10):
        z = random_logits(seed).numpy()
        expected = z >= z.max() - 1.5 * z.std()
        assert 1 <= expected.sum() < len(z)
        for temperature in (0.5, 1, 3):
            params = SamplingParams(top_n_sigma=1.5, temperature=temperature, order=order)
            assert run(random_logits(seed), params)[0].isfinite().tolist() == expected.tolist()


def test_top_n_sigma_ignores_what_is_ruled_out():
    logits_V = torch.tensor([3.0, 2.0, 1.0, -torch.inf])  # without the last their standard deviation is 0.82
    kept = {n: int(run(logits_V, SamplingParams(top_n_sigma=n))[0].isfinite().sum()) for n in (1, 2, 3)}
    assert kept == {1: 1, 2: 2, 3: 3}


def test_xtc_keeps_only_the_least_likely_of_the_top_choices():
    logits_V = torch.tensor([0.4, 0.05, 0.3, 0.15, 0.1]).log()
    for uniform, kept in ((0.49, [1, 3, 4]), (0.5, [0, 1, 2, 3, 4])):
        params = SamplingParams(xtc_probability=0.5, xtc_threshold=0.12)
        result_V, _, state = run(logits_V, params, uniform=uniform)
        assert result_V.isfinite().nonzero().flatten().tolist() == kept
        assert state.details["XTC"] == {"drawn": uniform, "acts": float(uniform < 0.5)}
    one_choice = SamplingParams(xtc_probability=1, xtc_threshold=0.35)
    assert run(logits_V, one_choice)[0].isfinite().all()


def test_xtc_acts_at_as_many_tokens_as_its_probability_says(model, tokenizer):
    """What it does when it acts is held to llama.cpp above; when, each program draws from a generator of its own."""
    share, num_samples = 0.3, 8
    options = dict(xtc_probability=share, xtc_threshold=0.01, max_new_tokens=40)
    batch = [SamplingParams(seed=seed, **options) for seed in range(num_samples)]
    tokens = [token for step in stream_batch(model, tokenizer, "a fox", batch) for token in step if token]
    stages = [next(stage for stage in token.stages if stage.name == "XTC") for token in tokens]
    drawn = np.array([stage.details["drawn"] for stage in stages])
    acts = np.array([stage.details["acts"] == 1 for stage in stages])
    assert (acts == (drawn < share)).all() and not any(stage.changed for stage, a in zip(stages, acts) if not a)
    assert sum(stage.changed for stage in stages) > 0.8 * acts.sum()
    deviation = (share * (1 - share) / len(stages)) ** 0.5
    assert len(stages) > 200 and abs(acts.mean() - share) < 3 * deviation
    assert np.histogram(drawn, 4, (0, 1))[0].min() > len(stages) / 4 - 4 * (len(stages) * 3 / 16) ** 0.5  # uniform


def test_the_most_likely_token_is_kept_by_any_cutoff():
    for setting in ("epsilon_cutoff", "eta_cutoff"):
        logits_V = random_logits(0)
        result_V, _, _ = run(logits_V, SamplingParams(**{setting: 1.0}))
        assert result_V[logits_V.argmax()].isfinite() and np.isfinite(result_V).sum() >= 1
