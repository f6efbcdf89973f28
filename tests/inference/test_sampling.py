"""Every stage against transformers' own processors, or against its definition worked out by hand."""

import math
import random
from dataclasses import fields

import numpy as np
import pytest
import torch
import transformers

from deepseek.inference.sampling import SAMPLER_ORDERS, SamplingParams, SamplingState, apply_samplers
from deepseek.settings.schema import item_type

FIELDS = {field.name: field for field in fields(SamplingParams)}
NUMBERS = [name for name, field in FIELDS.items() if item_type(field) in (int, float)]
CHOICES = ["order", "repetition_scope", "penalty_scope"]


def run(logits_V, params, prompt=(), output=()):
    """Logits after the last stage, -inf for what is gone; stages in order with whether they were active; the context."""
    context = SamplingState(list(prompt), list(output))
    steps = list(apply_samplers(logits_V.numpy(), params, context))
    *_, ids_N, logits_N = steps[-1]
    assert ids_N.tolist() == sorted(set(ids_N.tolist())) and logits_N.dtype == np.float32
    left_V = torch.full_like(logits_V, -math.inf)
    left_V[ids_N] = torch.from_numpy(logits_N)
    return left_V, {name: active for name, active, *_ in steps}, context


def test_the_stages_that_look_at_the_whole_vocabulary_come_first():
    assert all(order[:2] == ("repetition", "n-gram") for order in SAMPLER_ORDERS.values())


def random_logits(seed, vocabulary=60, scale=4.0):
    return torch.randn(vocabulary, generator=torch.Generator().manual_seed(seed)) * scale


def softmax(logits):
    weights = np.exp(np.asarray(logits, np.float64) - np.max(logits))
    return weights / weights.sum()


def stock(logits_V, params, prompt, output):
    """The same settings in transformers: a LogitsProcessorList in the order that is asked for."""
    repetition = transformers.RepetitionPenaltyLogitsProcessor(params.repetition_penalty)
    ngram = transformers.NoRepeatNGramLogitsProcessor(params.no_repeat_ngram_size)
    temperature = [transformers.TemperatureLogitsWarper(float(params.temperature))]
    truncation = [
        transformers.TopKLogitsWarper(params.top_k),
        transformers.TopPLogitsWarper(params.top_p),
        transformers.MinPLogitsWarper(params.min_p),
    ]
    rest = temperature + truncation if params.order == "transformers" else truncation + temperature
    seen = prompt + output if params.repetition_scope == "all" else output
    return transformers.LogitsProcessorList([repetition, ngram, *rest])(torch.tensor([seen]), logits_V[None])[0]


@pytest.mark.parametrize("scope", ["all", "output"])
@pytest.mark.parametrize("order", SAMPLER_ORDERS)
def test_agrees_with_transformers(order, scope):
    draw = random.Random(0)
    for seed in range(150):
        params = SamplingParams(
            order=order,
            repetition_scope=scope,
            repetition_penalty=draw.uniform(0.5, 2),
            no_repeat_ngram_size=draw.randint(1, 4),
            temperature=draw.uniform(0.2, 3),
            top_k=draw.randint(1, 80),
            top_p=draw.uniform(0.1, 1),
            min_p=draw.uniform(0, 0.3),
        )
        prompt, output = draw.choices(range(60), k=15), draw.choices(range(8), k=15)
        expected = stock(random_logits(seed), params, prompt, output)
        actual, _, _ = run(random_logits(seed), params, prompt, output)
        assert torch.equal(actual.isfinite(), expected.isfinite()), params
        torch.testing.assert_close(actual.softmax(-1), expected.softmax(-1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("seen, banned", [([], []), ([1], []), ([1, 1], [1]), ([1, 2], []), ([1, 2, 1], [2])])
def test_no_pair_comes_twice(seen, banned):
    logits_V, _, _ = run(random_logits(0, 4), SamplingParams(no_repeat_ngram_size=2), seen)
    assert logits_V.isneginf().nonzero().flatten().tolist() == banned


@pytest.mark.parametrize("scope", ["all", "output"])
def test_presence_and_frequency_penalties_count_what_was_seen(scope):
    prompt, output, logits_V = [1, 1, 2], [2, 3, 3, 3], random_logits(0, 6)
    params = SamplingParams(presence_penalty=0.5, frequency_penalty=0.25, penalty_scope=scope)
    count = np.array([0, 2, 2, 3, 0, 0] if scope == "all" else [0, 0, 1, 3, 0, 0])
    expected = logits_V.numpy() - 0.25 * count - np.where(count > 0, 0.5, 0)
    np.testing.assert_allclose(run(logits_V, params, prompt, output)[0], expected, atol=1e-6)


def test_penalties_cover_the_scopes_that_are_offered_by_default():
    """Repetition reads prompt and output, presence and frequency the output only."""
    ones = torch.ones(4)
    assert run(ones, SamplingParams(repetition_penalty=2), [0], [1])[0].tolist() == [0.5, 0.5, 1, 1]
    assert run(ones, SamplingParams(presence_penalty=2), [0], [1])[0].tolist() == [1, -1, 1, 1]


@pytest.mark.parametrize("order", SAMPLER_ORDERS)
def test_dynamic_temperature_follows_the_entropy_of_the_candidates_left(order):
    for seed in range(50):
        logits_V = random_logits(seed, scale=1 + seed / 10)
        options = dict(temperature_min=0.3, temperature_max=2.0, temperature_exponent=0.5 + seed / 25, top_k=10)
        actual, _, context = run(logits_V, SamplingParams(dynamic_temperature=True, order=order, **options))
        kept = np.sort(logits_V.numpy())[-10:]
        candidates = kept if order == "llama.cpp" else logits_V.numpy()
        p = softmax(candidates)
        share = -(p * np.log(p)).sum() / math.log(len(candidates))
        expected = 0.3 + (2.0 - 0.3) * share ** (0.5 + seed / 25)
        assert context.temperature == pytest.approx(expected, abs=1e-5)
        np.testing.assert_allclose(np.sort(actual.softmax(-1))[-10:], softmax(kept / expected), atol=1e-5)


def test_dynamic_temperature_leaves_a_single_candidate_alone():
    params = SamplingParams(dynamic_temperature=True, temperature_min=0.2, top_k=1, order="llama.cpp")
    logits_V, _, context = run(random_logits(0), params)
    assert context.temperature == 1 and logits_V.max() == random_logits(0).max()


def test_the_two_orders_differ_as_their_names_say():
    """At a high temperature top-p keeps more when it comes after the temperature than before it."""
    logits_V = torch.tensor([4.0, 3.0, 2.0, 1.0, 0.0])
    kept = {
        o: run(logits_V, SamplingParams(temperature=5, top_p=0.9, order=o))[0].isfinite().sum() for o in SAMPLER_ORDERS
    }
    assert kept == {"transformers": 5, "llama.cpp": 3}


@pytest.mark.parametrize("order", SAMPLER_ORDERS)
def test_temperature_zero_takes_the_most_likely(order):
    for seed in range(20):
        logits_V, _, context = run(random_logits(seed), SamplingParams(temperature=0, top_p=0.9, order=order))
        assert logits_V.softmax(-1)[random_logits(seed).argmax()] == 1 and context.temperature == 0


@pytest.mark.parametrize("order", SAMPLER_ORDERS)
def test_neutral_settings_change_nothing(order):
    logits_V, active, context = run(random_logits(0), SamplingParams(order=order), [1, 2, 1, 2], [1, 2, 1])
    assert torch.equal(logits_V, random_logits(0)) and context.temperature == 1
    assert active == dict.fromkeys(SAMPLER_ORDERS[order], False)


# Validation


def refusal(**setting):
    """The message with which a setting is refused; it must be short, and name the field and its value."""
    ((name, value),) = setting.items()
    with pytest.raises(ValueError) as caught:
        SamplingParams(**setting)
    text = str(caught.value)
    assert text.startswith(f"{name} is {repr(value)[:50]}") and "it must be" in text and len(text) < 200, text
    return text


@pytest.mark.parametrize("name", [field.name for field in fields(SamplingParams)])
def test_wrong_kinds_of_value_are_refused(name):
    wrong = [math.nan, math.inf, -math.inf, {}, b"x", [1], 1j, None]
    if name in NUMBERS:
        wrong += [True, "1", *([1.5] if item_type(FIELDS[name]) is int else [])]
    else:
        wrong += [1, 0.5, ["all", ""]]
    for value in wrong:
        if (name, value) != ("seed", None):
            refusal(**{name: value})


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_outside_their_range_are_refused(name):
    low, high = (FIELDS[name].metadata[bound] for bound in ("low", "high"))
    for value in (low - 1, high + 1, 2 * high + 1, 10**400, -(10**400)):
        refusal(**{name: value})
    for value in (low, high):
        at_the_edge = {"temperature_min": 0.01, "temperature_max": 10, name: value}
        assert getattr(SamplingParams(**at_the_edge), name) == value


@pytest.mark.parametrize("name", CHOICES)
def test_a_refused_choice_lists_what_there_is(name):
    assert all(choice in refusal(**{name: "first"}) for choice in FIELDS[name].metadata["choices"])


def test_temperatures_that_make_no_sense_are_refused():
    refusal(temperature=0.001)
    with pytest.raises(ValueError, match="temperature_min is 1.2; .* temperature_max, 0.8"):
        SamplingParams(temperature_min=1.2, temperature_max=0.8)


@pytest.mark.parametrize("stop", ["", [""], ["x"] * 17, "x" * 201, ["fine", None]])
def test_stop_strings_that_cannot_be_are_refused(stop):
    refusal(stop=stop)


def test_stop_is_one_text_or_several():
    assert SamplingParams(stop="end").stop == ("end",)
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")


def test_whole_floats_are_integers_and_the_seed_may_be_missing():
    params = SamplingParams(top_k=40.0, temperature=1, seed=None)
    assert params.top_k == 40 and type(params.top_k) is int and type(params.temperature) is float
    assert params.seed is None


# Nothing that the settings ask for may leave the sampler without a choice


def test_no_settings_leave_zero_candidates():
    draw, passed_over = random.Random(1), 0
    for seed in range(1000):
        vocabulary = draw.choice([1, 2, 3, 60])
        params = SamplingParams(
            temperature=draw.choice([0, 0.01, 1, 10]),
            dynamic_temperature=draw.random() < 0.3,
            temperature_min=0.01,
            temperature_max=10,
            temperature_exponent=draw.choice([0, 0.5, 10]),
            top_k=draw.choice([0, 1, 2, 1_000_000]),
            top_p=draw.choice([0.001, 0.5, 1]),
            min_p=draw.choice([0, 0.5, 1]),
            repetition_penalty=draw.choice([0.1, 1, 10]),
            presence_penalty=draw.choice([-10, 0, 10]),
            frequency_penalty=draw.choice([-10, 0, 10]),
            no_repeat_ngram_size=draw.choice([0, 1, 2, 100]),
            order=draw.choice(list(SAMPLER_ORDERS)),
            repetition_scope=draw.choice(["all", "output"]),
            penalty_scope=draw.choice(["all", "output"]),
        )
        prompt = draw.choices(range(vocabulary), k=draw.randint(1, 20))
        output = draw.choices(range(vocabulary), k=draw.randint(0, 20))
        logits_V = random_logits(seed, vocabulary, scale=draw.choice([0, 1, 1000]))
        final, active, _ = run(logits_V, params, prompt, output)
        probabilities = final.softmax(-1)
        assert final.isfinite().any() and not probabilities.isnan().any(), params
        assert probabilities.sum() == pytest.approx(1, abs=1e-5)
        passed_over += params.no_repeat_ngram_size > 0 and not active["n-gram"]
    assert passed_over > 50  # small vocabularies in which every token completes an n-gram


def test_a_stage_that_would_remove_every_candidate_is_passed_over():
    """After 0 both 0 and 1 complete a pair already seen, and there is no third token."""
    params = SamplingParams(no_repeat_ngram_size=2, top_k=1)
    logits_V, active, _ = run(torch.tensor([1.0, 2.0]), params, [0, 0, 1, 0])
    assert not active["n-gram"] and active["top-k"]
    assert logits_V.tolist() == [-math.inf, 2.0]
