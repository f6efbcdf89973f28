"""Tokens that settings name by text or id."""

import pytest

from deepseek import SamplingParams
from deepseek.inference import token_rules as rules
from deepseek.inference.token_rules import TokenRules


def ids(tokenizer, text):
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_a_bias_names_a_token_by_id_or_text(tokenizer):
    params = SamplingParams(logit_bias={" fox": 2, 7: -1.5, '"7"': 3})
    assert params.logit_bias == (" fox=2", "7=-1.5", '"7"=3')
    expected = dict.fromkeys(ids(tokenizer, " fox"), 2.0)
    for token, bias in ((7, -1.5), *((token, 3.0) for token in ids(tokenizer, "7"))):
        expected[token] = expected.get(token, 0) + bias
    made = rules.token_rules(params, tokenizer, 10_000, {0})
    assert made == TokenRules(bias=expected, eos_token_ids=frozenset({0}))


def test_every_form_of_a_bias_means_the_same():
    """OpenAI's and vLLM's objects, llama.cpp's pairs, the command line's texts."""
    forms = [{"a=b": 1.5, 3: -2}, [["a=b", 1.5], [3, -2]], ("a=b=1.5", "3=-2"), ["a=b=1.5", (3, -2)]]
    assert {SamplingParams(logit_bias=form).logit_bias for form in forms} == {("a=b=1.5", "3=-2")}
    assert SamplingParams(logit_bias="x=1").logit_bias == ("x=1",) and SamplingParams(logit_bias={}).logit_bias == ()


@pytest.mark.parametrize("bias", ["x", "=1", "x=", "x=nan", "x=101", "x=-inf", {"x": None}, {5: True}, [["x"]], 5, [5]])
def test_a_bad_bias_is_refused_in_one_sentence(bias):
    with pytest.raises(ValueError, match="^logit_bias is .*; it must be "):
        SamplingParams(logit_bias=bias)


def test_a_banned_word_is_banned_with_a_space_before_it_too(tokenizer):
    params = SamplingParams(banned_tokens=("fox", " cat", "12", "!"))
    banned = rules.token_rules(params, tokenizer, 10_000, ()).banned
    texts = ("fox", " fox", " cat")
    assert banned == [*(ids(tokenizer, text) for text in texts), (12,), ids(tokenizer, "!")]


def test_what_names_no_token_is_refused(tokenizer):
    for params, message in (
        (SamplingParams(logit_bias={10: 1}), "^logit_bias names token 10; it must be from 0 to 9."),
        (SamplingParams(banned_tokens=["10"]), "^banned_tokens names token 10; it must be from 0 to 9."),
        (SamplingParams(banned_tokens=['""']), "^banned_tokens holds '\"\"'; it must be a text of at least one token."),
    ):
        with pytest.raises(ValueError, match=message):
            rules.token_rules(params, tokenizer, 10, ())


def test_a_text_in_quotes_may_be_any():
    assert rules.unquote('"1\\n"') == "1\n" and rules.unquote('"a') == '"a' and rules.unquote("a") == "a"
    assert rules.unquote('"') == '"'


class Letters:
    """A tokenizer whose tokens are given; a text becomes its letters."""

    def __init__(self, *words):
        self.words = words

    def __len__(self):
        return len(self.words)

    def decode(self, ids):
        return "".join(self.words[token] for token in ids)

    def __call__(self, text, **options):
        return {"input_ids": [self.words.index(letter) for letter in text]}


def test_breakers_are_all_tokens_that_hold_or_begin_the_text():
    tokenizer = Letters("a", "b", "c", "xab", "abc", "ca", "b.")
    assert rules.sequence_breakers(tokenizer, ("ab",)) == {0: [(1,)], 3: [()], 4: [()], 5: [(1,)]}
    assert rules.sequence_breakers(tokenizer, ("b", "ca")) == {
        1: [()], 2: [(0,)], 3: [()], 4: [(), (0,)], 5: [()], 6: [()],
    }  # fmt: skip


def test_the_default_breakers_of_dry(tokenizer):
    found = rules.token_rules(SamplingParams(dry_multiplier=1), tokenizer, len(tokenizer), ()).breakers
    texts = rules.vocabulary_texts(tokenizer)
    expected = {token for token, text in enumerate(texts) if any(breaker in text for breaker in '\n:"*')}
    assert set(found) == expected and all(rests == [()] for rests in found.values())
    assert rules.token_rules(SamplingParams(), tokenizer, 10, ()).breakers == {}
