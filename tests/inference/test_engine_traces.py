"""What a TokenTrace says: the model's figures against a full pass, the samplers' against their definitions in NumPy."""

import json
import random

import numpy as np
import pytest
import torch

from deepseek import SamplingParams, stream
from deepseek.inference.sampling import SamplingState, apply_samplers

PROMPT = "Once upon a time"
# Few enough candidates remain that the trace lists them all.
SETTINGS = dict(temperature=1.5, top_k=8, top_p=0.8, min_p=0.05, repetition_penalty=1.2, frequency_penalty=0.5)


@pytest.fixture(scope="module")
def tokens(model, tokenizer):
    return generate(model, tokenizer, seed=3, max_new_tokens=24, no_repeat_ngram_size=3, **SETTINGS)


def generate(model, tokenizer, record=True, **settings):
    return list(stream(model, tokenizer, PROMPT, SamplingParams(**settings), record=record))


def ids_of(tokens):
    return [token.id for token in tokens]


def full_pass(model, tokenizer, tokens, **inputs):
    """One pass over the prompt and all tokens, without a cache."""
    with torch.no_grad():
        ids = tokenizer(PROMPT)["input_ids"] + ids_of(tokens)
        return model(torch.tensor([ids]), use_cache=False, **inputs)


# The model's figures


def test_texts_join_to_the_full_decode(any_model, tokenizer):
    tokens = generate(any_model, tokenizer, seed=0, max_new_tokens=40)
    ids = [token for token in ids_of(tokens) if token != tokenizer.eos_token_id]  # which can only be the last
    assert "".join(token.text for token in tokens) == tokenizer.decode(ids)


def test_figures_are_those_of_a_full_pass(any_model, tokenizer):
    tokens = generate(any_model, tokenizer, seed=0, max_new_tokens=16)
    logits = full_pass(any_model, tokenizer, tokens).logits[0]
    num_prompt_tokens = len(tokenizer(PROMPT)["input_ids"])
    for index, token in enumerate(tokens):
        assert token.position == num_prompt_tokens + index and token.milliseconds > 0
        p = logits[token.position - 1].softmax(-1)
        assert token.probability == pytest.approx(float(p[token.id]), abs=1e-5)
        assert token.rank == 1 + int((p > p[token.id]).sum())
        assert token.entropy == pytest.approx(float(-(p * p.log()).sum()), abs=1e-4)
        assert token.sampler_probability == token.probability and token.temperature == 1


def test_sampler_probability_is_that_of_the_settings(any_model, tokenizer):
    params = SamplingParams(seed=1, max_new_tokens=16, dynamic_temperature=True, order="llama.cpp", **SETTINGS)
    tokens = list(stream(any_model, tokenizer, PROMPT, params))
    logits = full_pass(any_model, tokenizer, tokens).logits[0]
    for index, token in enumerate(tokens):
        state = SamplingState(tokenizer(PROMPT)["input_ids"], ids_of(tokens[:index]))
        steps = list(apply_samplers(logits[token.position - 1].numpy(), params, state))
        place = [name for name, *_ in steps].index("temperature")
        (*_, before), (*_, ids, after) = steps[place - 1], steps[place]
        assert token.sampler_probability == pytest.approx(float(softmax(after)[ids == token.id][0]), abs=1e-4)
        assert token.temperature == pytest.approx(state.temperature, abs=1e-4)
        p = softmax(before)
        assert len(p) == token.stages[place].num_candidates == token.stages[-1].num_candidates
        assert token.temperature_entropy == pytest.approx(-(p * np.log(p)).sum(), abs=1e-4)


def test_experts_are_those_of_a_full_pass(model, tokenizer, tokens):
    output = full_pass(model, tokenizer, tokens, output_router_indices=True)
    for token in tokens:
        assert list(token.experts) == [1, 2]
        for (_, pairs), indices in zip(token.experts.items(), output.router_indices):
            experts, weights = zip(*pairs)
            assert sorted(experts) == sorted(indices[token.position].tolist())
            assert sum(weights) == pytest.approx(model.config.routed_scaling_factor, abs=1e-5)
            assert list(weights) == sorted(weights, reverse=True)


def test_dense_models_have_no_experts(llama, tokenizer):
    assert all(token.experts == {} for token in generate(llama, tokenizer, seed=0, max_new_tokens=2))


def test_without_record_the_tokens_are_the_same_and_candidates_are_empty(model, tokenizer, tokens):
    plain = generate(model, tokenizer, seed=3, max_new_tokens=24, no_repeat_ngram_size=3, record=False, **SETTINGS)
    assert ids_of(plain) == ids_of(tokens)
    assert all(token.candidates == token.stages == [] for token in plain)


def test_a_trace_is_json(tokens):
    assert json.loads(json.dumps(tokens[0].as_dict()))["stages"][0]["name"] == "grammar"


# The samplers' record


def test_candidates_name_the_sampler_that_removed_them(tokens):
    removers = set()
    for token in tokens:
        names = ["raw", *(stage.name for stage in token.stages)]
        for candidate in token.candidates:
            zero_after = [name for name, p in zip(names, candidate.probabilities, strict=True) if p == 0]
            assert candidate.removed_by == (zero_after[0] if zero_after else None)
        removers |= {candidate.removed_by for candidate in token.candidates}
    assert {None, "top-k", "top-p"} <= removers


def test_the_remaining_candidates_are_counted_and_include_the_token(tokens):
    for token in tokens:
        counts = [stage.num_candidates for stage in token.stages]
        assert counts == sorted(counts, reverse=True) and counts[0] == 300
        remaining = {c.id: c for c in token.candidates if c.removed_by is None}
        assert len(remaining) == counts[-1] <= 8
        assert sum(c.probabilities[-1] for c in remaining.values()) == pytest.approx(1, abs=1e-5)
        assert remaining[token.id].probabilities[-1] == pytest.approx(token.sampler_probability)
        assert remaining[token.id].probabilities[0] == pytest.approx(token.probability)


def test_a_stage_says_whether_it_is_active_and_whether_it_changed_the_logits(model, tokenizer):
    (token,) = generate(model, tokenizer, seed=0, max_new_tokens=1, top_k=8, min_p=1e-9, frequency_penalty=1)
    stages = {stage.name: (stage.active, stage.changed) for stage in token.stages}
    assert stages["top-k"] == (True, True)
    assert stages["min-p"] == stages["presence and frequency"] == (True, False)
    assert stages["temperature"] == stages["repetition"] == (False, False)


def softmax(z):
    e = np.exp(np.float64(z) - z.max())
    return e / e.sum()


def keep(z, mask):
    return np.where(mask, z, -np.inf)


def top_p_mask(z, p):
    """The fewest most likely tokens that reach p together."""
    order = np.argsort(-z, kind="stable")
    before = np.cumsum(softmax(z)[order]) - softmax(z)[order]
    mask = np.zeros(len(z), bool)
    mask[order[before < p]] = True
    return mask


def ngram_mask(token_ids, n, size):
    """The tokens that do not repeat an n-gram."""
    start = token_ids[len(token_ids) - n + 1 :] if n > 1 else []
    repeats = [token_ids[i + n - 1] for i in range(len(token_ids) - n + 1) if token_ids[i : i + n - 1] == start]
    mask = np.ones(size, bool)
    mask[repeats] = False
    return mask


def apply_definition(name, z, p, prompt, output):
    """Logits after one sampler, by its definition."""
    scope = {"all": prompt + output, "output": output}
    counts = np.bincount(scope[p.penalty_scope], minlength=len(z))
    token_ids = scope[p.repetition_scope]
    if name == "repetition":
        penalized = np.where(z < 0, z * p.repetition_penalty, z / p.repetition_penalty)
        return np.where(np.isin(np.arange(len(z)), token_ids), penalized, z)
    if name == "n-gram":
        n = p.no_repeat_ngram_size
        return keep(z, ngram_mask(token_ids, n, len(z))) if n and len(token_ids) >= n else z
    if name == "presence and frequency":
        return z - counts * p.frequency_penalty - (counts > 0) * p.presence_penalty
    if name == "temperature":
        if p.dynamic_temperature:
            q = softmax(z)[np.isfinite(z)]
            if len(q) <= 1:
                return z
            normalized = -(q * np.log(np.maximum(q, 1e-300))).sum() / np.log(len(q))
            low, high = p.temperature_min, p.temperature_max
            return z / (low + (high - low) * normalized**p.temperature_exponent)
        return keep(z, np.arange(len(z)) == z.argmax()) if p.temperature == 0 else z / p.temperature
    if name == "top-k":
        return keep(z, z >= np.sort(z)[-p.top_k]) if 0 < p.top_k < len(z) else z
    if name == "top-p":
        return keep(z, top_p_mask(z, p.top_p)) if p.top_p < 1 else z
    if name == "min-p":
        return keep(z, softmax(z) >= p.min_p * softmax(z).max()) if p.min_p else z
    return z  # off


def random_settings(order, seed):
    rng = random.Random(seed)
    return SamplingParams(
        temperature=rng.choice([0.0, 0.4, 1.0, 1.7]),
        dynamic_temperature=rng.random() < 0.3,
        temperature_exponent=rng.choice([0.5, 1.0, 2.0]),
        top_k=rng.choice([0, 3, 40]),
        top_p=rng.choice([0.3, 0.9, 1.0]),
        min_p=rng.choice([0.0, 0.05]),
        repetition_penalty=rng.choice([1.0, 1.5]),
        presence_penalty=rng.choice([0.0, 0.7]),
        frequency_penalty=rng.choice([0.0, -0.4]),
        no_repeat_ngram_size=rng.choice([0, 1, 2]),
        repetition_scope=rng.choice(["all", "output"]),
        penalty_scope=rng.choice(["all", "output"]),
        order=order,
        max_new_tokens=6,
        seed=seed,
    )


@pytest.mark.parametrize("order", ["transformers", "llama.cpp"])
def test_every_record_follows_the_definitions(model, tokenizer, order):
    for seed in range(30):
        params = random_settings(order, seed)
        prompt, output = tokenizer(PROMPT)["input_ids"], []
        for token in stream(model, tokenizer, prompt, params):
            with torch.no_grad():
                z = model(torch.tensor([prompt + output])).logits[0, -1].double().numpy()
            columns = [softmax(z)]
            for stage in token.stages:
                content = prompt[1:]  # without the token that begins a text
                before, z = z, apply_definition(stage.name, z, params, content, output)
                columns.append(softmax(z))
                assert stage.num_candidates == np.isfinite(z).sum(), (seed, stage)
                assert stage.changed == (not np.array_equal(before, z)), (seed, stage)
            for candidate in token.candidates:
                expected = [column[candidate.id] for column in columns]
                assert candidate.probabilities == pytest.approx(expected, abs=1e-4), seed
                removers = [stage.name for stage, p in zip(token.stages, columns[1:]) if p[candidate.id] == 0]
                assert candidate.removed_by == (removers[0] if removers else None), seed
            best = set(np.argsort(-columns[-1], kind="stable")[: min(5, token.stages[-1].num_candidates)])
            assert best <= {candidate.id for candidate in token.candidates}
            output.append(token.id)
