"""The tokenizer, and blocks that can be taken up again where they were left."""

import hashlib
import json
import random
from itertools import islice

import pandas
import pytest
import torch
from pyarrow.parquet import ParquetFile

from deepseek.data import readers
from deepseek.data.dataloader import HOLD_OUT_EVERY, PackedDataLoader, held_out
from deepseek.data.readers import DataError
from deepseek.data.tokenizer import encode_document, train_tokenizer

STORIES = ["once upon a time", 'two\nlines, and "quotes"', "a little fox, schön"]
SEPARATED = "\n<|endoftext|>\n".join(STORIES)


def take(blocks, count):
    return list(islice(blocks, count))


# The tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "stories.txt"
    path.write_text(SEPARATED, "utf-8")
    return train_tokenizer([str(path)], 300)


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    """A tokenizer with one token a byte."""
    path = tmp_path_factory.mktemp("text") / "empty.txt"
    path.touch()
    return train_tokenizer([str(path)], 257)


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
    ids = encode_document(tokenizer, text)
    assert ids[0] == 0
    assert tokenizer.decode(ids[1:]) == text


def test_the_tokenizer_learns_its_text_and_keeps_id_0_for_the_end(tokenizer, letters):
    assert tokenizer.convert_ids_to_tokens(0) == "<|endoftext|>"
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == tokenizer.pad_token_id == 0
    assert len(tokenizer) <= 300 and len(letters) == 257
    assert (
        len(encode_document(tokenizer, STORIES[0])) < len(encode_document(letters, STORIES[0])) == 1 + len(STORIES[0])
    )
    assert tokenizer("once")["input_ids"] == encode_document(tokenizer, "once")


# Blocks


@pytest.fixture(autouse=True)
def small_buffer(monkeypatch):
    monkeypatch.setattr(PackedDataLoader, "BUFFER", 8)


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
    blocks = take(PackedDataLoader([source("a.txt", numbered(40))], letters, seq_len=16), 60)
    assert {(block.shape, block.dtype) for block in blocks} == {((16,), torch.int64)}
    text = letters.decode(torch.cat(blocks))
    assert all(f"{i:03}" in text for i in range(0, 40, 7))


def test_a_seed_fixes_the_order_of_blocks(source, letters):
    def first(seed):
        return torch.stack(take(PackedDataLoader([source("a.txt", numbered(100))], letters, 16, seed), 30))

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


def test_a_seed_gives_the_same_blocks_on_every_machine(source):
    """Whatever learned the tokenizer and drew the blocks, on whichever system: the hash was noted once."""
    paths = [source("a.txt", numbered(300)), source("b.txt", [f"{i} déjà vu 漢字 🦊 fox" for i in range(50)])]
    tokenizer = train_tokenizer(paths, 290, mixture_weights=[2, 1])
    blocks = PackedDataLoader(paths, tokenizer, 16, seed=7, mixture_weights=[2, 1], skip_held_out=True)
    drawn = json.dumps(torch.stack(take(blocks, 400)).tolist())
    assert hashlib.sha256(drawn.encode()).hexdigest()[:16] == "ed31049a8503edfa"


def test_shuffling_moves_blocks_and_loses_none(source, letters, monkeypatch):
    path = source("a.txt", numbered(300))
    shuffled = PackedDataLoader([path], letters, 16)
    drawn = [tuple(block.tolist()) for block in take(shuffled, 150)]
    waiting = [tuple(block) for block in shuffled.state()["buffer"].tolist()]
    monkeypatch.setattr(PackedDataLoader, "BUFFER", 1)  # no shuffling: the blocks in a row are the text itself
    in_order = [tuple(block.tolist()) for block in take(PackedDataLoader([path], letters, 16), 158)]
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
        return PackedDataLoader(sources, letters, 16, seed=5, mixture_weights=shares, skip_held_out=skip_held_out)

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
    drawn = torch.cat(take(PackedDataLoader(sources, letters, 32, mixture_weights=shares), 1000))
    a, b = ((drawn == encode_document(letters, letter)[1]).sum().item() for letter in "ab")
    wanted = shares or [1, 1]
    assert a / (a + b) == pytest.approx(wanted[0] / sum(wanted), rel=0.05)


def test_held_out_documents_are_left_to_validation(source, letters, monkeypatch):
    monkeypatch.setattr(PackedDataLoader, "BUFFER", 1)
    path = source("a.txt", numbered(120))
    left = list(held_out(path))
    assert len(left) == 3
    text = letters.decode(torch.cat(take(PackedDataLoader([path], letters, 16, skip_held_out=True), 200)))
    seen = text.split("<|endoftext|>")[1:-1]
    rest = [story for story in numbered(120) if story not in left]
    assert seen[: 2 * len(rest)] == rest * 2
    assert set(seen) == set(rest)


def test_a_lone_document_is_trained_on(source, letters):
    path = source("a.txt", ["the only story there is"])
    assert list(held_out(path)) == []
    assert len(next(PackedDataLoader([path], letters, 16, skip_held_out=True))) == 16


def test_a_source_without_text_is_refused(source, letters):
    with pytest.raises(DataError, match="a.txt' holds no text"):
        next(PackedDataLoader([source("a.txt", [])], letters, 16))


def test_a_source_of_less_than_a_block_is_refused(source, letters):
    with pytest.raises(DataError, match="a.txt' holds 15 tokens to train on, less than one block of 16"):
        next(PackedDataLoader([source("b.txt", numbered(100)), source("a.txt", ["fourteen bytes"])], letters, 16))


# Resuming


def counted(monkeypatch):
    """A list that grows by every line and every row of .parquet that is decoded, wherever it is dropped afterwards."""
    decoded, lines, batches = [], readers._lines, ParquetFile.iter_batches

    def counting_lines(*arguments):
        for pair in lines(*arguments):
            decoded.append(pair)
            yield pair

    def counting_batches(*arguments, **options):
        for batch in batches(*arguments, **options):
            decoded.extend(batch.to_pylist())
            yield batch

    monkeypatch.setattr(readers, "_lines", counting_lines)
    monkeypatch.setattr(ParquetFile, "iter_batches", counting_batches)
    return decoded


GROUP = 500  # rows


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv", ".jsonl.gz", ".parquet"])
def test_resuming_reads_as_little_late_in_a_run_as_early(tmp_path, letters, monkeypatch, suffix):
    """What is decoded to go on for a hundred blocks, after 100 and after 10,000; 134 documents fill a hundred.

    Parquet is entered at a row group only, so what comes before a position in its group is decoded again: a matter of
    where in the group a run stands, not of how far it is. So the mean over ten places, spread over a group, is taken.
    """
    path, rows = str(tmp_path / f"rows{suffix}"), pandas.DataFrame({"text": [f"story {i:05}" for i in range(20_000)]})
    if suffix == ".parquet":
        rows.to_parquet(path, row_group_size=GROUP)
    elif suffix == ".csv":
        rows.to_csv(path, index=False)
    elif suffix == ".txt":
        rows.assign(end="<|endoftext|>").to_csv(path, sep="\n", index=False, header=False)
    else:
        rows.to_json(path, orient="records", lines=True)
    decoded = counted(monkeypatch)
    places = range(0, 375, 38) if suffix == ".parquet" else [0]  # a group of 500 rows fills 375 blocks
    whole, blocks, costs = (
        take(PackedDataLoader([path], letters, 16), 10_500),
        PackedDataLoader([path], letters, 16),
        {},
    )
    for step in (100, 10_000):
        costs[step] = []
        for count in (step + place for place in places):
            take(blocks, count - blocks.count)
            again = PackedDataLoader([path], letters, 16)
            again.restore(blocks.state())
            decoded.clear()
            assert torch.equal(torch.stack(take(again, 100)), torch.stack(whole[count : count + 100]))
            costs[step].append(len(decoded))
    early, late = (sum(cost) / len(cost) for cost in costs.values())
    print(f"{suffix}: {early:.0f} decoded after 100 blocks, {late:.0f} after 10,000 {list(costs.values())}")
    assert min(early, late) >= 130
    assert late <= 1.2 * early
    assert max(map(max, costs.values())) <= 2 * 134 + GROUP + 64, "no more than a group, whatever the place"


def test_a_hundred_rows_that_wrap_resume_with_no_difference(tmp_path, letters):
    path = tmp_path / "upload.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in numbered(100)))
    blocks = PackedDataLoader([str(path)], letters, 16, skip_held_out=True)
    for _ in range(12):  # 98 rows of 10 tokens make 61 blocks, so every other state is taken in another pass
        take(blocks, 37)
        again = PackedDataLoader([str(path)], letters, 16, skip_held_out=True)
        again.restore(blocks.state())
        assert torch.equal(torch.stack(take(again, 100)), torch.stack(take(blocks, 100)))
        blocks = again
    assert blocks.documents[0] <= 100 < 60 * HOLD_OUT_EVERY


def test_a_changed_source_is_not_resumed_from(source, letters):
    path = source("a.txt", numbered(60))
    blocks = PackedDataLoader([path], letters, 16)
    take(blocks, 5)
    source("a.txt", numbered(61))
    with pytest.raises(DataError, match="a.txt' has changed since the run read it: it was 1,4.. bytes"):
        PackedDataLoader([path], letters, 16).restore(blocks.state())


def test_a_cursor_without_positions_is_refused(source, letters):
    with pytest.raises(DataError, match="older version"):
        PackedDataLoader([source("a.txt", numbered(9))], letters, 16).restore({"read": [3]})
