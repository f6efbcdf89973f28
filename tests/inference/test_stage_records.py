"""Each stage's record in a TokenTrace, against the stages' definitions written once more, in numpy."""

import random

import numpy as np
import pytest
import torch

from deepseek import SamplingParams, stream


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def keep(z, kept):
    return np.where(kept, z, -np.inf)


def at_least(z, p):
    """The fewest most likely tokens that reach p together."""
    order = np.argsort(-z, kind="stable")
    before = np.cumsum(softmax(z)[order]) - softmax(z)[order]
    kept = np.zeros(len(z), bool)
    kept[order[before < p]] = True
    return kept


def completes(seen, n, size):
    """Tokens that would make the last n seen twice."""
    start = seen[len(seen) - n + 1 :] if n > 1 else []
    bars = [seen[i + n - 1] for i in range(len(seen) - n + 1) if seen[i : i + n - 1] == start]
    kept = np.ones(size, bool)
    kept[bars] = False
    return kept


def after_stage(name, z, p, prompt, output):
    """Logits after one stage, by its definition."""
    scope = {"all": prompt + output, "output": output}
    counts = np.bincount(scope[p.penalty_scope], minlength=len(z))
    seen = scope[p.repetition_scope]
    if name == "repetition":
        hit = np.isin(np.arange(len(z)), seen)
        return np.where(hit, np.where(z < 0, z * p.repetition_penalty, z / p.repetition_penalty), z)
    if name == "n-gram":
        n = p.no_repeat_ngram_size
        return keep(z, completes(seen, n, len(z))) if n and len(seen) >= n else z
    if name == "presence and frequency":
        return z - counts * p.frequency_penalty - (counts > 0) * p.presence_penalty
    if name == "temperature":
        if p.dynamic_temperature:
            q = softmax(z)[np.isfinite(z)]
            if len(q) <= 1:
                return z
            share = -(q * np.log(np.maximum(q, 1e-300))).sum() / np.log(len(q))
            return z / (p.temperature_min + (p.temperature_max - p.temperature_min) * share**p.temperature_exponent)
        return keep(z, np.arange(len(z)) == z.argmax()) if p.temperature == 0 else z / p.temperature
    if name == "top-k":
        return keep(z, z >= np.sort(z)[-p.top_k]) if 0 < p.top_k < len(z) else z
    if name == "top-p":
        return keep(z, at_least(z, p.top_p)) if p.top_p < 1 else z
    return keep(z, softmax(z) >= p.min_p * softmax(z).max()) if p.min_p else z


def random_settings(order, seed):
    dice = random.Random(seed)
    return SamplingParams(
        temperature=dice.choice([0.0, 0.4, 1.0, 1.7]),
        dynamic_temperature=dice.random() < 0.3,
        temperature_exponent=dice.choice([0.5, 1.0, 2.0]),
        top_k=dice.choice([0, 3, 40]),
        top_p=dice.choice([0.3, 0.9, 1.0]),
        min_p=dice.choice([0.0, 0.05]),
        repetition_penalty=dice.choice([1.0, 1.5]),
        presence_penalty=dice.choice([0.0, 0.7]),
        frequency_penalty=dice.choice([0.0, -0.4]),
        no_repeat_ngram_size=dice.choice([0, 1, 2]),
        repetition_scope=dice.choice(["all", "output"]),
        penalty_scope=dice.choice(["all", "output"]),
        order=order,
        max_new_tokens=6,
        seed=seed,
    )


@pytest.mark.parametrize("order", ["transformers", "llama.cpp"])
@pytest.mark.parametrize("seed", range(30))
def test_every_record_is_what_the_definitions_say(model, tokenizer, order, seed):
    params = random_settings(order, seed)
    prompt, output = tokenizer("Once upon a time")["input_ids"], []
    for token in stream(model, tokenizer, prompt, params):
        with torch.no_grad():
            z = model(torch.tensor([prompt + output])).logits[0, -1].double().numpy()
        columns = [softmax(z)]
        for stage in token.stages:
            before, z = z, after_stage(stage.name, z, params, prompt, output)
            columns.append(softmax(z))
            assert stage.num_candidates == np.isfinite(z).sum(), stage
            assert stage.changed == (not np.array_equal(before, z)), stage
        for candidate in token.candidates:
            wanted = [column[candidate.id] for column in columns]
            assert candidate.probabilities == pytest.approx(wanted, abs=1e-4)
            gone = [stage.name for stage, value in zip(token.stages, columns[1:]) if value[candidate.id] == 0]
            assert candidate.removed_by == (gone[0] if gone else None)
        best = set(np.argsort(-columns[-1], kind="stable")[: min(5, token.stages[-1].num_candidates)])
        assert best <= {candidate.id for candidate in token.candidates}
        output.append(token.id)
