"""Prompts and documents in, exact incremental text out, for any ids."""

import random
import time

import pytest
from chatting import CHAT, RENDERED
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from deepseek.data.tokenizer import IncrementalDetokenizer, encode_document, encode_prompt, token_texts, train_tokenizer

RNG = random.Random(0)
CHARACTERS = [*range(0xD800), *range(0xE000, 0x110000)]  # all but the surrogates, which no text holds alone
TEXTS = {
    "plain": "plain",
    "accents": "déjà vu, naïve",
    "CJK": "漢字とかな",
    "emoji": "👩‍👩‍👧 🏴‍☠️ 🦊🇩🇪 ﬁ",
    "combining": "e\u0301 combining u\u0308",
    "replacement character": "a\ufffdb",
    "Devanagari and Hebrew": "नमस्ते\n\tשלום",
    "right to left": "שלום \u202eمرحبا\u202c",
    "bytes": RNG.randbytes(2000).decode("utf-8", "replace"),
    "latin": RNG.randbytes(2000).decode("latin-1"),
    "all of Unicode": "".join(map(chr, RNG.choices(CHARACTERS, k=999))),
    "control": "".join(map(chr, range(32))) + "\x7f\ufeff\u2028\r\n",
    "spaces": "  a  b\n\n\n c \t . , ! n't ",
    "empty": "",
    "special": "a<|endoftext|>b",
}


def word_tokenizer():
    """Pieces that begin with a space, which the decoder strips at the start of a text, as Llama's and Mixtral's do."""
    pieces = ["</s>", "▁", "▁one", "▁two", "three", "▁漢"]
    tokenizer = Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, []))
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


@pytest.fixture(params=["trained", "byte", "word"])
def any_tokenizer(request, tokenizer, byte_tokenizer):
    return {"trained": tokenizer, "byte": byte_tokenizer, "word": word_tokenizer()}[request.param]


def chunks(tokenizer, ids):
    detokenizer = IncrementalDetokenizer(tokenizer)
    return [*(detokenizer.add_token(token) for token in ids), detokenizer.flush()]


def decode(tokenizer, ids):
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


# Documents and prompts


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_any_text_round_trips(tokenizer, byte_tokenizer, text):
    for any_tokenizer in (tokenizer, byte_tokenizer):
        ids = encode_document(any_tokenizer, text)
        assert ids[0] == 0
        assert any_tokenizer.decode(ids[1:]) == text
        if "<|" not in text:
            assert "".join(chunks(any_tokenizer, ids[1:])) == text


def test_a_trained_tokenizer_compresses_its_text_and_has_one_special_token(tokenizer, byte_tokenizer):
    assert tokenizer.convert_ids_to_tokens(0) == "<|endoftext|>"
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == tokenizer.pad_token_id == 0
    assert len(tokenizer) <= 300 and len(byte_tokenizer) == 257
    text = "Once upon a time"
    assert len(encode_document(tokenizer, text)) < len(encode_document(byte_tokenizer, text)) == 1 + len(text)
    assert tokenizer("once")["input_ids"] == encode_document(tokenizer, "once")


def test_text_without_spaces_is_learned_from_in_seconds(tmp_path):
    """It took minutes, since a word's merges cost the square of its length."""
    (tmp_path / "dna.txt").write_text("".join(RNG.choices("ACGT", k=200_000)) + " " * 50_000)
    start = time.process_time()
    tokenizer = train_tokenizer([str(tmp_path / "dna.txt")], 500)
    assert time.process_time() - start < 10
    assert len(tokenizer) == 500 and len(encode_document(tokenizer, "ACGT" * 100)) < 200


@pytest.mark.parametrize("start", ["bos_token", "eos_token", None])
def test_a_document_begins_with_a_token_if_the_tokenizer_has_one(start):
    tokenizer = word_tokenizer()
    tokenizer.eos_token = None
    if start:
        setattr(tokenizer, start, "</s>")
    assert encode_document(tokenizer, "one") == ([0] if start else []) + tokenizer("one")["input_ids"]


def test_a_prompt_is_encoded_with_the_special_tokens_of_its_tokenizer(tokenizer):
    ids = encode_prompt(tokenizer, "the fox", 50)
    assert ids[0] == tokenizer.bos_token_id and decode(tokenizer, ids[1:]) == "the fox"
    assert encode_prompt(tokenizer, "<|endoftext|>the fox", 50) == ids, "no second begin token"
    assert encode_prompt(tokenizer, "the fox", 50, add_special_tokens=False) == ids[1:]
    assert encode_prompt(tokenizer, "x" * 10_000, None)
    assert encode_prompt(tokenizer, (5, 6, 7), 4) == [5, 6, 7], "ids are used as they are"


@pytest.mark.parametrize("prompt", ["", " ", "\n\t \u3000", []])
def test_an_empty_prompt_is_refused(tokenizer, prompt):
    with pytest.raises(ValueError, match="prompt is empty"):
        encode_prompt(tokenizer, prompt, 50)


def test_a_prompt_that_fills_the_context_is_refused_with_both_numbers(tokenizer):
    assert len(encode_prompt(tokenizer, [5] * 49, 50)) == 49
    with pytest.raises(
        ValueError, match="prompt has 50 tokens; the model reads 49 at most, to leave space for a new token"
    ):
        encode_prompt(tokenizer, [5] * 50, 50)
    with pytest.raises(ValueError, match="prompt has 1,000,000 characters; the model reads 49 "):
        encode_prompt(tokenizer, "x" * 1_000_000, 50)
    assert len(encode_prompt(tokenizer, [5] * 50, 50, min_new_tokens=0)) == 50
    with pytest.raises(ValueError, match="^text has 51 tokens; the model reads 50 at most.$"):
        encode_prompt(tokenizer, [5] * 51, 50, min_new_tokens=0, name="text")


def test_a_lone_surrogate_becomes_a_question_mark(tokenizer):
    assert decode(tokenizer, encode_prompt(tokenizer, "a\ud83eb", 50)[1:]) == "a?b"


# Incremental decoding


def test_chunks_join_to_the_full_decode_of_any_ids(any_tokenizer):
    rng = random.Random(0)
    for _ in range(200):
        ids = rng.choices(range(len(any_tokenizer)), k=rng.randint(0, 40))
        assert "".join(chunks(any_tokenizer, ids)) == decode(any_tokenizer, ids), ids


def test_text_without_a_space_streams_character_by_character(byte_tokenizer):
    text = "abc漢字🦊x"
    pieces = chunks(byte_tokenizer, byte_tokenizer(text)["input_ids"][1:])
    assert [piece for piece in pieces if piece] == list(text)
    assert pieces[-1] == "", "nothing is left for the end"


def test_bytes_that_never_become_a_character_come_at_the_end(byte_tokenizer):
    ids = byte_tokenizer("a🦊")["input_ids"][1:-1]
    assert chunks(byte_tokenizer, ids) == ["a", "", "", "", "\ufffd"]


def test_token_texts_join_to_the_text(any_tokenizer):
    rng = random.Random(1)
    ordinary = sorted(set(range(len(any_tokenizer))) - set(any_tokenizer.all_special_ids))
    for _ in range(100):
        ids = rng.choices(ordinary, k=rng.randint(0, 30))
        texts = token_texts(any_tokenizer, ids)
        assert len(texts) == len(ids) and "".join(texts) == decode(any_tokenizer, ids)


def test_the_text_of_a_special_token_is_its_name(tokenizer, chat_tokenizer):
    ids = tokenizer("fox")["input_ids"]
    assert token_texts(tokenizer, ids)[0] == "<|endoftext|>" and "".join(token_texts(tokenizer, ids[1:])) == "fox"
    ids = chat_tokenizer("fox<|channel|>🦊<|im_end|>", add_special_tokens=False)["input_ids"]
    texts = token_texts(chat_tokenizer, ids)
    assert "".join(texts) == "".join(chunks(chat_tokenizer, ids)) == "fox<|channel|>🦊<|im_end|>"
    assert texts.count("<|channel|>") == texts.count("<|im_end|>") == 1


def test_a_chat_is_encoded_as_transformers_encodes_it(chat_tokenizer):
    ids = encode_prompt(chat_tokenizer, CHAT, 500)
    assert ids == chat_tokenizer.apply_chat_template(CHAT, add_generation_prompt=True)["input_ids"]
    assert ids[0] == chat_tokenizer.convert_tokens_to_ids("<|im_start|>"), "no begin token before the template's text"
    assert chat_tokenizer.decode(ids) == RENDERED
    with pytest.raises(ValueError, match="prompt has 68 tokens; the model reads 49 at most"):
        encode_prompt(chat_tokenizer, CHAT, 50)


def test_a_document_that_begins_with_the_begin_token_gets_no_second_one(tokenizer):
    assert encode_document(tokenizer, "<|endoftext|>fox") == encode_document(tokenizer, "fox")
