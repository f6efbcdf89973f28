"""Which regular expressions and folders are refused; `test_hostile.py` opens a whole corpus of them."""

import json

import pytest

from deepseek.checkpoints.validation import MAX_PATTERN_CHARACTERS, FolderError, is_exponential, validate_folder

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
GPT4 = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"


@pytest.mark.parametrize("pattern", [GPT2, GPT4, r"\p{N}{1,3}", r"(ab)+c", r"\(a+\)+", "(a+)(b+)", ""])
def test_patterns_of_public_tokenizers_are_accepted(pattern):
    assert not is_exponential(pattern)


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+$", "(a|aa)*", "(a|b){9}", "((a+)b)+", "(x(a*))+", "((a)+b|c)*", "a" * (MAX_PATTERN_CHARACTERS + 1)],
)
def test_repeated_repetitions_are_refused(pattern):
    assert is_exponential(pattern)


def test_an_ordinary_folder_with_a_link_inside_is_accepted(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 512}))
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (tmp_path / "link.json").symlink_to("config.json")
    (tmp_path / "folder").mkdir()
    validate_folder(tmp_path)


@pytest.mark.parametrize("name, value", [("n_layers", 513), ("attn_implementation", "somebody/kernel")])
def test_a_config_is_checked_at_any_depth(tmp_path, name, value):
    (tmp_path / "config.json").write_text(json.dumps({"a": {"b": {name: value}}}))
    with pytest.raises(FolderError, match=name):
        validate_folder(tmp_path)
