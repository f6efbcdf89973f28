"""Forced tokens as texts."""

import pytest

from deepseek.inference.forced_tokens import parse_forced_tokens


def test_a_text_is_a_position_and_an_id():
    assert parse_forced_tokens(["4-123", "0-7"]) == {4: 123, 0: 7} and parse_forced_tokens([]) == {}


@pytest.mark.parametrize("pair", ["x", "4", "4-", "-1-1", "4-1.", "4-100", "9" * 10 + "-1", 5, None])
def test_any_other_is_refused_in_one_sentence(pair):
    with pytest.raises(ValueError, match="^branches is .*; it must be a position, a dash and a token's id below 100.$"):
        parse_forced_tokens([pair], 100, "branches")
    with pytest.raises(ValueError, match="^forced_tokens are .*; they must be a list of texts such as '4-123'"):
        parse_forced_tokens(pair)
