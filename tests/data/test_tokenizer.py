"""Text in and out: the pieces join to the whole for any ids, and come as early as they can."""

import random

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from deepseek.data.tokenizer import IncrementalDetokenizer, encode_prompt, token_texts

MULTI_BYTE = [
    "plain",
    "déjà vu, naïve",
    "漢字とかな",
    "👩‍👩‍👧 🦊🇩🇪",
    "e\u0301 combining u\u0308",
    "a\ufffdb",
    "नमस्ते\n\tשלום",
]


def byte_tokenizer():
    """A token a byte, so that any bytes can come in any order."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def word_tokenizer():
    """Pieces that begin with a space, which the decoder strips at the start of a text, as Llama's and Mixtral's do."""
    pieces = ["</s>", "▁", "▁one", "▁two", "three", "▁漢"]
    tokenizer = Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, []))
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


@pytest.fixture(params=["learned", "byte", "word"])
def any_tokenizer(request, tokenizer):
    return {"learned": lambda: tokenizer, "byte": byte_tokenizer, "word": word_tokenizer}[request.param]()


def chunks(tokenizer, ids):
    stream = IncrementalDetokenizer(tokenizer)
    return [*(stream.push(token) for token in ids), stream.end()]


def decode(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def test_chunks_join_to_the_full_decode_of_any_ids(any_tokenizer):
    draw = random.Random(0)
    for _ in range(200):
        ids = draw.choices(range(len(any_tokenizer)), k=draw.randint(0, 40))
        assert "".join(chunks(any_tokenizer, ids)) == decode(any_tokenizer, ids), ids


@pytest.mark.parametrize("text", MULTI_BYTE)
def test_characters_of_several_bytes_stream_exactly(tokenizer, text):
    for any_tokenizer in (tokenizer, byte_tokenizer()):
        ids = any_tokenizer(text, add_special_tokens=False)["input_ids"]
        assert "".join(chunks(any_tokenizer, ids)) == text


def test_text_without_a_space_streams_character_by_character():
    tokenizer = byte_tokenizer()
    text = "abc漢字🦊x"
    pieces = chunks(tokenizer, tokenizer(text)["input_ids"])
    assert [piece for piece in pieces if piece] == list(text)
    assert pieces[-1] == "", "nothing is left for the end"


def test_bytes_that_never_become_a_character_come_out_at_the_end():
    tokenizer = byte_tokenizer()
    ids = tokenizer("a🦊")["input_ids"][:-1]
    assert chunks(tokenizer, ids) == ["a", "", "", "", "\ufffd"]


def test_token_texts_join_to_the_text(any_tokenizer):
    draw = random.Random(1)
    ordinary = sorted(set(range(len(any_tokenizer))) - set(any_tokenizer.all_special_ids))
    for _ in range(100):
        ids = draw.choices(ordinary, k=draw.randint(0, 30))
        texts = token_texts(any_tokenizer, ids)
        assert len(texts) == len(ids) and "".join(texts) == decode(any_tokenizer, ids)


def test_a_special_token_stands_under_its_own_name(tokenizer):
    ids = tokenizer("fox")["input_ids"]
    assert token_texts(tokenizer, ids)[0] == "<|endoftext|>" and "".join(token_texts(tokenizer, ids[1:])) == "fox"


# Prompts


def test_a_prompt_is_encoded_with_the_special_tokens_of_its_tokenizer(tokenizer):
    ids = encode_prompt(tokenizer, "the fox", 50)
    assert ids[0] == tokenizer.bos_token_id and decode(tokenizer, ids) == "the fox"
    assert encode_prompt(tokenizer, "x" * 10_000, None)


def test_ids_are_taken_as_they_are(tokenizer):
    assert encode_prompt(tokenizer, (5, 6, 7), 4) == [5, 6, 7]


@pytest.mark.parametrize("prompt", ["", " ", "\n\t \u3000", []])
def test_an_empty_prompt_is_refused(tokenizer, prompt):
    with pytest.raises(ValueError, match="prompt is empty"):
        encode_prompt(tokenizer, prompt, 50)


def test_a_prompt_that_leaves_no_room_is_refused_with_both_numbers(tokenizer):
    assert len(encode_prompt(tokenizer, [5] * 49, 50)) == 49
    with pytest.raises(ValueError, match="prompt has 50 tokens; the model reads 49 at most"):
        encode_prompt(tokenizer, [5] * 50, 50)
    with pytest.raises(ValueError, match="prompt has 1,000,000 characters; the model reads 49 "):
        encode_prompt(tokenizer, "x" * 1_000_000, 50)


def test_a_lone_surrogate_becomes_a_question_mark(tokenizer):
    assert decode(tokenizer, encode_prompt(tokenizer, "a\ud83eb", 50)) == "a?b"
