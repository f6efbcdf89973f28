"""Sources, the tokenizer, and blocks that can be taken up again where they were left."""

import json
import lzma
import random
from itertools import islice

import pandas
import pytest
import torch

from deepseek.data import Blocks, DataError, documents, encode, held_out, learn_tokenizer

STORIES = ["once upon a time", 'two\nlines, and "quotes"', "a little fox, schön"]
SEPARATED = "\n<|endoftext|>\n".join(STORIES)
ROWS = pandas.DataFrame({"id": range(3), "title": ["A", "B", "C"], "text": STORIES})
JSONL = ROWS.to_json(orient="records", lines=True)


def read(source):
    return list(documents(str(source)))


def take(blocks, count):
    return list(islice(blocks, count))


# Sources


@pytest.mark.parametrize(
    "name, write",
    [
        ("stories.txt", lambda path: path.write_text(SEPARATED, "utf-8")),
        ("stories.txt.xz", lambda path: path.write_bytes(lzma.compress(SEPARATED.encode()))),
        ("stories.jsonl", lambda path: path.write_text(JSONL)),
        ("stories.jsonl.xz", lambda path: path.write_bytes(lzma.compress(JSONL.encode()))),
        ("stories.csv", lambda path: ROWS.to_csv(path, index=False)),
        ("stories.parquet", lambda path: ROWS.to_parquet(path)),
    ],
)
def test_every_format_holds_the_same_documents(tmp_path, name, write):
    write(tmp_path / name)
    assert read(tmp_path / name) == STORIES


def test_a_table_without_a_text_column_gives_its_first_column_of_strings(tmp_path):
    ROWS.drop(columns="text").to_csv(tmp_path / "a.csv", index=False)
    assert read(tmp_path / "a.csv") == ["A", "B", "C"]


def test_windows_line_ends_and_empty_documents(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\r\n<|endoftext|>\r\n\r\n<|endoftext|>\r\ntwo\r\n")
    assert read(tmp_path / "a.txt") == ["one", "two"]


def test_the_built_in_source_needs_no_file():
    texts = list(islice(documents("builtin"), 300))
    assert len(texts) == 300 and all(text.strip() for text in texts)
    assert any("statement\n***" in text for text in texts) and any("import " in text for text in texts)


UNREADABLE = {
    "bad.txt": (b"good\nb\xffd", "byte 6"),
    "cut.txt.xz": (lzma.compress(SEPARATED.encode())[:-9], "not a whole compressed file"),
    "other.txt.xz": (b"plain", "not a whole compressed file"),
    "cut.jsonl": (b'{"text": "one"}\n{"text":', "cannot be read"),
    "cut.parquet": (b"PAR1", "cannot be read"),
    "numbers.csv": (b"a,b\n1,2\n", "no column of text; its columns are a, b"),
    "story.pdf": (b"%PDF", "must be .txt"),
    "story": (b"no suffix", "must be .txt"),
    "missing.txt": (None, "is not there"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_is_named_in_one_sentence(tmp_path, name):
    content, reason = UNREADABLE[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(tmp_path / name)
    message = str(caught.value)
    assert str(tmp_path / name) in message and reason in message and "\n" not in message


# The tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "stories.txt"
    path.write_text(SEPARATED, "utf-8")
    return learn_tokenizer([str(path)], 300)


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    """A tokenizer with one token a byte."""
    path = tmp_path_factory.mktemp("text") / "empty.txt"
    path.touch()
    return learn_tokenizer([str(path)], 257)


DICE = random.Random(0)
ANY = [*range(0xD800), *range(0xE000, 0x110000)]  # every character but the surrogates, which no text holds alone
TEXTS = {
    "bytes": DICE.randbytes(2000).decode("utf-8", "replace"),
    "latin": DICE.randbytes(2000).decode("latin-1"),
    "all of Unicode": "".join(map(chr, DICE.choices(ANY, k=999))),
    "emoji": "👩‍👩‍👧 🏴‍☠️ e\u0301 ﬁ",
    "control": "".join(map(chr, range(32))) + "\x7f\ufeff\u2028\r\n",
    "right to left": "שלום \u202eمرحبا\u202c",
    "spaces": "  a  b\n\n\n c \t . , ! n't ",
    "empty": "",
    "special": "a<|endoftext|>b",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_any_text_round_trips(tokenizer, text):
    ids = encode(tokenizer, text)
    assert ids[0] == 0
    assert tokenizer.decode(ids[1:]) == text


def test_the_tokenizer_learns_its_text_and_keeps_id_0_for_the_end(tokenizer, letters):
    assert tokenizer.convert_ids_to_tokens(0) == "<|endoftext|>"
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == tokenizer.pad_token_id == 0
    assert len(tokenizer) <= 300 and len(letters) == 257
    assert len(encode(tokenizer, STORIES[0])) < len(encode(letters, STORIES[0])) == 1 + len(STORIES[0])
    assert tokenizer("once")["input_ids"] == encode(tokenizer, "once")


# Blocks


@pytest.fixture(autouse=True)
def small_buffer(monkeypatch):
    monkeypatch.setattr(Blocks, "BUFFER", 8)


@pytest.fixture
def source(tmp_path):
    """Builds a source of the given documents."""

    def build(name, texts):
        (tmp_path / name).write_text("\n<|endoftext|>\n".join(texts))
        return str(tmp_path / name)

    return build


def numbered(count):
    return [f"story {i:03}" for i in range(count)]


def test_blocks_are_whole_and_hold_every_document(source, letters):
    blocks = take(Blocks([source("a.txt", numbered(40))], letters, context=16), 60)
    assert {(block.shape, block.dtype) for block in blocks} == {((16,), torch.int64)}
    text = letters.decode(torch.cat(blocks))
    assert all(f"{i:03}" in text for i in range(0, 40, 7))


def test_a_seed_fixes_the_order_of_blocks(source, letters):
    def first(seed):
        return torch.stack(take(Blocks([source("a.txt", numbered(100))], letters, 16, seed), 30))

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


def test_shuffling_moves_blocks_and_loses_none(source, letters, monkeypatch):
    path = source("a.txt", numbered(300))
    shuffled = Blocks([path], letters, 16)
    drawn = [tuple(block.tolist()) for block in take(shuffled, 150)]
    waiting = [tuple(block) for block in shuffled.state()["buffer"].tolist()]
    monkeypatch.setattr(Blocks, "BUFFER", 1)  # no shuffling: the blocks in a row are the text itself
    in_order = [tuple(block.tolist()) for block in take(Blocks([path], letters, 16), 158)]
    assert sorted(drawn + waiting) == sorted(in_order)
    assert drawn != in_order[:150] and set(in_order[:8]) <= set(drawn)


@pytest.mark.parametrize("done", [0, 1, 7, 100])
@pytest.mark.parametrize("skip_held_out", [False, True])
@pytest.mark.parametrize("counts", [[3], [120], [3, 120]], ids=["tiny", "one pass", "two sources"])
def test_a_restored_cursor_goes_on_identically(source, letters, counts, skip_held_out, done):
    """The tiny source is read through many times on the way."""
    sources = [source(f"{count}.txt", numbered(count)) for count in counts]

    def fresh():
        shares = range(1, len(sources) + 1)
        return Blocks(sources, letters, 16, seed=5, shares=shares, skip_held_out=skip_held_out)

    blocks = fresh()
    take(blocks, done)
    state = blocks.state()
    expected = torch.stack(take(blocks, 60))

    buffer = state.pop("buffer")
    state = json.loads(json.dumps(state)) | {"buffer": buffer}  # what a file can hold is enough
    for restored in (fresh(), blocks):
        restored.restore(state)
        assert torch.equal(torch.stack(take(restored, 60)), expected)


@pytest.mark.parametrize("shares", [None, [3, 1], [1, 9]])
def test_sources_are_mixed_by_their_share_of_tokens(source, letters, shares):
    sources = [source("a.txt", ["a" * 200] * 5), source("b.txt", ["b" * 60] * 7)]
    drawn = torch.cat(take(Blocks(sources, letters, 32, shares=shares), 1000))
    a, b = ((drawn == encode(letters, letter)[1]).sum().item() for letter in "ab")
    wanted = shares or [1, 1]
    assert a / (a + b) == pytest.approx(wanted[0] / sum(wanted), rel=0.05)


def test_held_out_documents_are_left_to_validation(source, letters, monkeypatch):
    monkeypatch.setattr(Blocks, "BUFFER", 1)
    path = source("a.txt", numbered(120))
    left = list(held_out(path))
    assert len(left) == 3
    text = letters.decode(torch.cat(take(Blocks([path], letters, 16, skip_held_out=True), 200)))
    seen = text.split("<|endoftext|>")[1:-1]
    rest = [story for story in numbered(120) if story not in left]
    assert seen[: 2 * len(rest)] == rest * 2
    assert set(seen) == set(rest)


def test_a_lone_document_is_trained_on(source, letters):
    path = source("a.txt", ["the only story"])
    assert list(held_out(path)) == []
    assert len(next(Blocks([path], letters, 16, skip_held_out=True))) == 16


def test_a_source_without_text_is_refused(source, letters):
    with pytest.raises(DataError, match="a.txt' holds no text"):
        next(Blocks([source("a.txt", [])], letters, 16))
