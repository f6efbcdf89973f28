"""Why another word was not written: its steps through the samplers, as data and in words."""

import json

import pytest

from deepseek import SamplingParams, stream
from deepseek.inference.why_not import chain, first_tokens, percent, why_not

PARAMS = SamplingParams(top_k=5, temperature=0.8, seed=3, max_new_tokens=5)


@pytest.fixture(scope="module")
def probed(demo):
    """(probed ids, tokens of a text): those of "purple", and of all words that the last token could have been."""
    _, tokenizer = demo
    last = list(stream(*demo, "Once upon a time", PARAMS))[-1]
    ids = list(dict.fromkeys([*first_tokens("purple", tokenizer), *(candidate.id for candidate in last.candidates)]))
    return ids, list(stream(*demo, "Once upon a time", PARAMS, probe=ids))


def test_an_answer_holds_rank_and_probability_up_to_the_sampler_that_removed_the_word(probed):
    ids, tokens = probed
    for token in tokens:
        answer, *_ = json.loads(json.dumps(why_not(token, ids)))
        model, temperature, top_k = answer["steps"]
        assert (model["after"], temperature["after"]) == ("model", "temperature") and answer["text"].startswith(" pur")
        assert model["rank"] == temperature["rank"] > 5 and model["probability"] > temperature["probability"] > 0
        assert top_k == {"after": "top-k", "rank": 0, "probability": 0} and answer["removed_by"] == "top-k"
        assert answer["sentence"].startswith("“·pur") and "top-k removed it." in answer["sentence"]
        assert chain(answer).endswith(" → top-k ✕") and f"model {model['rank']:,} (" in chain(answer)


def test_one_that_stayed_in_and_the_token_itself_have_every_step(probed):
    ids, tokens = probed
    token = tokens[-1]
    for answer in why_not(token, ids):
        if answer["removed_by"] is None:
            assert [step["after"] for step in answer["steps"]] == ["model", "temperature", "top-k"]
            verb = "is the token that was written" if answer["id"] == token.id else "the draw fell on"
            assert verb in answer["sentence"]
    other = next(answer for answer in why_not(token, ids, is_forced=True) if answer["id"] != token.id)
    assert "you chose" in other["sentence"] or other["removed_by"]


def test_a_token_that_the_user_chose_may_have_been_removed(demo, probed):
    (purple, *_), _ = probed
    (token,) = stream(*demo, "Once", SamplingParams(top_k=1, max_new_tokens=1), {0: purple}, probe=[purple])
    (answer,) = why_not(token, [purple], is_forced=True)
    assert answer["sentence"].endswith("; top-k removed it, and you chose it.")


def test_a_word_is_looked_up_as_it_stands_in_fewer_tokens(demo):
    _, tokenizer = demo
    (token,) = first_tokens("dragon", tokenizer)
    assert tokenizer.decode([token]) == " dragon"
    assert [tokenizer.decode([token]) for token in first_tokens(" the", tokenizer)] == [" the"]
    assert len(first_tokens("the", tokenizer)) == 2  # both are tokens
    assert first_tokens("\ud800", tokenizer)  # half a pair, which a browser can send


@pytest.mark.parametrize("word", ["", "  ", None, 5, "x" * 101])
def test_a_bad_word_is_refused(demo, word):
    with pytest.raises(ValueError, match="^why_not is .*; it must be a word of 1 to 100 characters.$"):
        first_tokens(word, demo[1])


def test_a_tiny_probability_is_not_0():
    assert [percent(p) for p in (0.5, 0.00005, 0.00004)] == ["50.00%", "0.01%", "under 0.01%"]
