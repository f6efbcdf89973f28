"""Every sampler against transformers' own processors or against its definition, and the settings' limits."""

import math
import random
from dataclasses import fields

import numpy as np
import pytest
import torch
import transformers
from sampler_cases import random_logits, run

from deepseek.inference.sampler_order import SAMPLER_ORDERS
from deepseek.inference.sampling import SamplingParams
from deepseek.settings.schema import item_type

FIELDS = {field.name: field for field in fields(SamplingParams)}
NUMBERS = [name for name, field in FIELDS.items() if item_type(field) in (int, float)]
CHOICES = ["repetition_scope", "penalty_scope"]


def softmax(logits):
    weights = np.exp(np.asarray(logits, np.float64) - np.max(logits))
    return weights / weights.sum()


def stock(logits_V, params, prompt, output):
    """Logits after the same settings in transformers, as a LogitsProcessorList."""
    repetition = transformers.RepetitionPenaltyLogitsProcessor(params.repetition_penalty)
    ngram = transformers.NoRepeatNGramLogitsProcessor(params.no_repeat_ngram_size)
    temperature = [transformers.TemperatureLogitsWarper(float(params.temperature))]
    truncation = [
        transformers.TopKLogitsWarper(params.top_k),
        transformers.TopPLogitsWarper(params.top_p),
        transformers.MinPLogitsWarper(params.min_p),
    ]
    rest = temperature + truncation if params.order == "transformers" else truncation + temperature
    ids = prompt + output if params.repetition_scope == "all" else output
    return transformers.LogitsProcessorList([repetition, ngram, *rest])(torch.tensor([ids]), logits_V[None])[0]


@pytest.mark.parametrize("scope", ["all", "output"])
@pytest.mark.parametrize("order", SAMPLER_ORDERS)
def test_agrees_with_transformers(order, scope):
    rng = random.Random(0)
    for seed in range(150):
        params = SamplingParams(
            order=order,
            repetition_scope=scope,
            repetition_penalty=rng.uniform(0.5, 2),
            no_repeat_ngram_size=rng.randint(1, 4),
            temperature=rng.uniform(0.2, 3),
            top_k=rng.randint(1, 80),
            top_p=rng.uniform(0.1, 1),
            min_p=rng.uniform(0, 0.3),
        )
        prompt, output = rng.choices(range(60), k=15), rng.choices(range(8), k=15)
        expected = stock(random_logits(seed), params, prompt, output)
        actual, _, _ = run(random_logits(seed), params, prompt, output)
        assert torch.equal(actual.isfinite(), expected.isfinite()), params
        torch.testing.assert_close(actual.softmax(-1), expected.softmax(-1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("ids, removed", [([], []), ([1], []), ([1, 1], [1]), ([1, 2], []), ([1, 2, 1], [2])])
def test_no_bigram_repeats(ids, removed):
    logits_V, _, _ = run(random_logits(0, 4), SamplingParams(no_repeat_ngram_size=2), ids)
    assert logits_V.isneginf().nonzero().flatten().tolist() == removed


@pytest.mark.parametrize("scope", ["all", "output"])
def test_presence_and_frequency_penalties_count_tokens(scope):
    prompt, output, logits_V = [1, 1, 2], [2, 3, 3, 3], random_logits(0, 6)
    params = SamplingParams(presence_penalty=0.5, frequency_penalty=0.25, penalty_scope=scope)
    count = np.array([0, 2, 2, 3, 0, 0] if scope == "all" else [0, 0, 1, 3, 0, 0])
    expected = logits_V.numpy() - 0.25 * count - np.where(count > 0, 0.5, 0)
    np.testing.assert_allclose(run(logits_V, params, prompt, output)[0], expected, atol=1e-6)


def test_default_scopes():
    """Repetition counts prompt and output, presence and frequency the output only."""
    ones = torch.ones(4)
    assert run(ones, SamplingParams(repetition_penalty=2), [0], [1])[0].tolist() == [0.5, 0.5, 1, 1]
    assert run(ones, SamplingParams(presence_penalty=2), [0], [1])[0].tolist() == [1, -1, 1, 1]


@pytest.mark.parametrize("order", SAMPLER_ORDERS)
def test_dynamic_temperature_follows_the_entropy_of_the_remaining_candidates(order):
    for seed in range(50):
        logits_V = random_logits(seed, scale=1 + seed / 10)
        options = dict(temperature_min=0.3, temperature_max=2.0, temperature_exponent=0.5 + seed / 25, top_k=10)
        actual, _, state = run(logits_V, SamplingParams(dynamic_temperature=True, order=order, **options))
        top_10 = np.sort(logits_V.numpy())[-10:]
        candidates = top_10 if order == "llama.cpp" else logits_V.numpy()
        p = softmax(candidates)
        normalized = -(p * np.log(p)).sum() / math.log(len(candidates))
        expected = 0.3 + (2.0 - 0.3) * normalized ** (0.5 + seed / 25)
        assert state.temperature == pytest.approx(expected, abs=1e-5)
        np.testing.assert_allclose(np.sort(actual.softmax(-1))[-10:], softmax(top_10 / expected), atol=1e-5)


def test_dynamic_temperature_leaves_a_single_candidate_alone():
    params = SamplingParams(dynamic_temperature=True, temperature_min=0.2, top_k=1, order="llama.cpp")
    logits_V, _, state = run(random_logits(0), params)
    assert state.temperature == 1 and logits_V.max() == random_logits(0).max()


def test_the_two_orders_differ_as_their_names_say():
    """At a high temperature top-p keeps more when it comes after the temperature than before it."""
    logits_V = torch.tensor([4.0, 3.0, 2.0, 1.0, 0.0])
    num_candidates = {
        o: run(logits_V, SamplingParams(temperature=5, top_p=0.9, order=o))[0].isfinite().sum() for o in SAMPLER_ORDERS
    }
    assert num_candidates == {"transformers": 5, "llama.cpp": 3}


@pytest.mark.parametrize("order", SAMPLER_ORDERS)
def test_temperature_zero_takes_the_most_likely(order):
    for seed in range(20):
        logits_V, _, state = run(random_logits(seed), SamplingParams(temperature=0, top_p=0.9, order=order))
        assert logits_V.softmax(-1)[random_logits(seed).argmax()] == 1 and state.temperature == 0


@pytest.mark.parametrize("order", SAMPLER_ORDERS)
def test_neutral_settings_change_nothing(order):
    logits_V, active, state = run(random_logits(0), SamplingParams(order=order), [1, 2, 1, 2], [1, 2, 1])
    assert torch.equal(logits_V, random_logits(0)) and state.temperature == 1
    assert active == dict.fromkeys(["grammar", *SAMPLER_ORDERS[order]], False)


# Validation


def error_of(**setting):
    """The error message of a bad setting; it must be short and name the field and its value."""
    ((name, value),) = setting.items()
    with pytest.raises(ValueError) as caught:
        SamplingParams(**setting)
    text = str(caught.value)
    assert text.startswith(f"{name} is {repr(value)[:50]}") and "it must be" in text and len(text) < 200, text
    return text


@pytest.mark.parametrize("name", [field.name for field in fields(SamplingParams)])
def test_values_of_a_wrong_type_are_refused(name):
    values = [math.nan, math.inf, -math.inf, {}, b"x", [1], 1j, None]
    if name in NUMBERS:
        values += [True, "1", *([1.5] if item_type(FIELDS[name]) is int else [])]
    else:
        values += [1, 0.5, ["all", ""]]
    fine = [
        ("seed", None),
        ("logit_bias", {}),
        ("json_schema", {}),
        ("order", ["all", ""]),
    ]  # the last: test_sampler_order.py
    for value in values:
        if (name, value) not in fine:
            error_of(**{name: value})


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_outside_their_range_are_refused(name):
    low, high = (FIELDS[name].metadata[bound] for bound in ("low", "high"))
    for value in (low - 1, high + 1, 2 * high + 1, 10**400, -(10**400)):
        error_of(**{name: value})
    for value in (low, high):
        settings = {"temperature_min": 0.01, "temperature_max": 10, name: value}
        assert getattr(SamplingParams(**settings), name) == value


@pytest.mark.parametrize("name", CHOICES)
def test_the_error_of_a_choice_lists_the_choices(name):
    assert all(choice in error_of(**{name: "first"}) for choice in FIELDS[name].metadata["choices"])


def test_temperatures_that_contradict_are_refused():
    error_of(temperature=0.001)
    with pytest.raises(ValueError, match="temperature_min is 1.2; .* temperature_max, 0.8"):
        SamplingParams(temperature_min=1.2, temperature_max=0.8)


@pytest.mark.parametrize("stop", ["", [""], ["x"] * 17, "x" * 201, ["fine", None]])
def test_bad_stop_strings_are_refused(stop):
    error_of(stop=stop)


def test_stop_is_a_string_or_a_list():
    assert SamplingParams(stop="end").stop == ("end",)
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")


def test_numbers_are_converted_and_the_seed_may_be_none():
    params = SamplingParams(top_k=40.0, temperature=1, seed=None)
    assert params.top_k == 40 and type(params.top_k) is int and type(params.temperature) is float
    assert params.seed is None


# No settings may remove every candidate


def test_no_settings_leave_zero_candidates():
    rng, num_skipped = random.Random(1), 0
    for seed in range(1000):
        vocabulary = rng.choice([1, 2, 3, 60])
        params = SamplingParams(
            temperature=rng.choice([0, 0.01, 1, 10]),
            dynamic_temperature=rng.random() < 0.3,
            temperature_min=0.01,
            temperature_max=10,
            temperature_exponent=rng.choice([0, 0.5, 10]),
            top_k=rng.choice([0, 1, 2, 1_000_000]),
            top_p=rng.choice([0.001, 0.5, 1]),
            min_p=rng.choice([0, 0.5, 1]),
            repetition_penalty=rng.choice([0.1, 1, 10]),
            presence_penalty=rng.choice([-10, 0, 10]),
            frequency_penalty=rng.choice([-10, 0, 10]),
            no_repeat_ngram_size=rng.choice([0, 1, 2, 100]),
            order=rng.choice(list(SAMPLER_ORDERS)),
            repetition_scope=rng.choice(["all", "output"]),
            penalty_scope=rng.choice(["all", "output"]),
        )
        prompt = rng.choices(range(vocabulary), k=rng.randint(1, 20))
        output = rng.choices(range(vocabulary), k=rng.randint(0, 20))
        logits_V = random_logits(seed, vocabulary, scale=rng.choice([0, 1, 1000]))
        final, active, _ = run(logits_V, params, prompt, output)
        probabilities = final.softmax(-1)
        assert final.isfinite().any() and not probabilities.isnan().any(), params
        assert probabilities.sum() == pytest.approx(1, abs=1e-5)
        num_skipped += params.no_repeat_ngram_size > 0 and not active["n-gram"]
    assert num_skipped > 50  # small vocabularies in which every token repeats an n-gram


def test_a_sampler_that_would_remove_every_candidate_is_skipped():
    """After 0, both 0 and 1 repeat a bigram, and there is no third token."""
    params = SamplingParams(no_repeat_ngram_size=2, top_k=1)
    logits_V, active, _ = run(torch.tensor([1.0, 2.0]), params, [0, 0, 1, 0])
    assert not active["n-gram"] and active["top-k"]
    assert logits_V.tolist() == [-math.inf, 2.0]
