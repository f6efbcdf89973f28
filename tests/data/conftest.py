"""A tokenizer for the tests of tokenization and of the data loader."""

import pytest

from deepseek.data.tokenizer import train_tokenizer


@pytest.fixture(scope="session")
def byte_tokenizer(tmp_path_factory):
    """A tokenizer with one token per byte, after <|endoftext|>."""
    path = tmp_path_factory.mktemp("text") / "empty.txt"
    path.touch()
    return train_tokenizer([str(path)], 257)
