"""Samplers that judge by a token's id and the text before, against transformers, llama.cpp's results or their definitions."""

import random

import pytest
import torch
import transformers
from sampler_cases import assert_as_llama_cpp, llama_cpp_cases, random_logits, run

from deepseek import SamplingParams
from deepseek.inference.penalties import repeated_lengths, sequence_limit
from deepseek.inference.token_rules import TokenRules


def banned(result_V):
    return result_V.isneginf().nonzero().flatten().tolist()


def test_logit_bias_is_added():
    rules = TokenRules(bias={3: 2.5, 5: -1.0, 99: 1.0})
    expected = random_logits(0, 10)
    expected[[3, 5]] += torch.tensor([2.5, -1.0])
    actual, active, _ = run(random_logits(0, 10), SamplingParams(logit_bias={3: 2.5}), rules=rules)
    torch.testing.assert_close(actual, expected)
    assert active["logit bias"] and not active["banned tokens"]


def test_bias_after_top_k_leaves_the_removed_tokens_removed():
    params = SamplingParams(logit_bias={0: 50.0}, top_k=2, order="top-k,logit bias")
    actual, _, _ = run(torch.tensor([1.0, 2.0, 3.0]), params, rules=TokenRules(bias={0: 50.0}))
    assert actual.tolist() == [-torch.inf, 2, 3]


def test_banned_sequences_are_those_of_transformers():
    rng = random.Random(0)
    for seed in range(60):
        sequences = [tuple(rng.choices(range(5), k=rng.randint(1, 3))) for _ in range(3)]
        text = rng.choices(range(5), k=rng.randint(1, 8))
        stock = transformers.NoBadWordsLogitsProcessor([list(ids) for ids in sequences])
        expected = stock(torch.tensor([text]), random_logits(seed, 10)[None])[0]
        rules = TokenRules(banned=sequences)
        actual, _, _ = run(random_logits(seed, 10), SamplingParams(banned_tokens=("1",)), text, rules=rules)
        assert banned(actual) == banned(expected), (sequences, text)


@pytest.mark.parametrize("num_output", [0, 2, 3, 4])
def test_min_new_tokens_is_that_of_transformers(num_output):
    prompt, output, eos = [1, 2], [3] * num_output, [4, 7]
    stock = transformers.MinNewTokensLengthLogitsProcessor(len(prompt), 3, eos)
    expected = stock(torch.tensor([prompt + output]), random_logits(0, 10)[None])[0]
    rules = TokenRules(eos_token_ids=frozenset(eos))
    actual, _, _ = run(random_logits(0, 10), SamplingParams(min_new_tokens=3), prompt, output, rules=rules)
    assert banned(actual) == banned(expected) == (eos if num_output < 3 else [])


def test_penalties_are_those_of_llama_cpp():
    for case in llama_cpp_cases("penalties"):
        theta, frequency, presence = case["settings"]
        params = SamplingParams(
            repetition_penalty=theta, frequency_penalty=frequency, presence_penalty=presence, penalty_scope="all"
        )
        result_V, _, _ = run(case["logits"][0], params, case["tokens"])
        assert_as_llama_cpp(result_V, case["results"][0]["kept"])


def breakers_of(numbers):
    """{first token: [the others]} of the fixture's breakers: each its length and its tokens."""
    breakers, numbers = {}, [int(number) for number in numbers]
    while numbers:
        size, first, *rest = numbers[: 1 + numbers[0]]
        breakers.setdefault(first, []).append(tuple(rest))
        numbers = numbers[1 + size :]
    return breakers


def test_dry_is_that_of_llama_cpp():
    num_penalized = 0
    for case in llama_cpp_cases("DRY"):
        multiplier, base, allowed, *breakers = case["settings"]
        params = SamplingParams(dry_multiplier=multiplier, dry_base=base, dry_allowed_length=allowed)
        rules = TokenRules(breakers=breakers_of(breakers))
        result_V, _, state = run(case["logits"][0], params, case["tokens"], rules=rules)
        assert_as_llama_cpp(result_V, case["results"][0]["kept"])
        num_penalized += state.details["DRY"]["match"] > 0
    assert num_penalized >= 8


def test_dry_by_its_definition():
    """The text ends with 1 2 3, which stood before 7; only 3 stood before 5."""
    tokens = [1, 2, 3, 7, 3, 5, 1, 2, 3]
    assert repeated_lengths(tokens, 99, 1) == {7: 3, 5: 1}
    assert repeated_lengths(tokens, 2, 1) == {7: 2, 5: 1} and repeated_lengths(tokens, 99, 2) == {7: 3}
    assert repeated_lengths([], 9, 1) == repeated_lengths([4], 9, 1) == {}
    params = SamplingParams(dry_multiplier=0.5, dry_base=2, dry_allowed_length=2)
    result_V, _, state = run(torch.zeros(8), params, tokens[:4], tokens[4:])
    assert result_V.tolist() == [0, 0, 0, 0, 0, 0, 0, -0.5 * 2**1] and state.details["DRY"] == {"match": 3}


def test_a_breaker_ends_the_sequences():
    assert sequence_limit([1, 2, 3, 4], {}) == 4
    assert sequence_limit([1, 2, 3, 4], {2: [()]}) == 2 and sequence_limit([1, 2], {2: [()]}) == 0
    assert sequence_limit([1, 2, 3, 4], {2: [(3,)]}) == 1 and sequence_limit([1, 2, 3, 4], {2: [(4,)]}) == 4
    assert sequence_limit([1, 2, 3, 4], {2: [(), (3,)], 1: [()]}) == 1


def test_a_very_long_repetition_is_not_infinitely_unlikely():
    """A token without any alternative stays possible."""
    params = SamplingParams(dry_multiplier=100, dry_base=10, dry_allowed_length=1)
    result_V, _, _ = run(torch.zeros(2), params, [0] * 600)
    assert result_V.isfinite().all() and result_V.softmax(-1).tolist() == [0, 1]


def test_penalties_after_truncation_work_on_what_is_left():
    params = SamplingParams(
        repetition_penalty=2, no_repeat_ngram_size=1, top_k=2, repetition_scope="all", order="top-k,repetition,n-gram"
    )
    result_V, active, _ = run(torch.tensor([1.0, 2.0, 3.0, 0.5]), params, [0, 2])
    assert result_V.tolist() == [-torch.inf, 2, -torch.inf, -torch.inf] and active["n-gram"]
