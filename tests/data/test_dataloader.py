"""Blocks of tokens: complete, mixed, shuffled, and the same after a resume."""

import hashlib
import json
import re
from itertools import islice

import pandas
import pytest
import torch
from pyarrow.parquet import ParquetFile

from deepseek.data import dataloader, file_formats, tables
from deepseek.data.dataloader import PackedDataLoader, held_out
from deepseek.data.text_lines import DataError
from deepseek.data.tokenizer import encode_document, train_tokenizer


@pytest.fixture(autouse=True)
def small_buffer(monkeypatch):
    monkeypatch.setattr(PackedDataLoader, "BUFFER_BLOCKS", 8)


@pytest.fixture
def write_source(tmp_path):
    """Writes a source of the given documents; returns its path."""

    def write(name, documents):
        (tmp_path / name).write_text("\n<|endoftext|>\n".join(documents))
        return str(tmp_path / name)

    return write


def take(loader, count):
    """The next blocks, (count, seq_len)."""
    return torch.stack(list(islice(loader, count)))


def numbered(count):
    return [f"story {i:03}" for i in range(count)]


def test_blocks_have_equal_length_and_hold_every_document(write_source, byte_tokenizer):
    blocks = take(PackedDataLoader([write_source("a.txt", numbered(40))], byte_tokenizer, seq_len=16), 60)
    assert blocks.shape == (60, 16) and blocks.dtype == torch.int64
    text = byte_tokenizer.decode(blocks.flatten())
    assert all(f"{i:03}" in text for i in range(0, 40, 7))


def test_the_seed_determines_the_order_of_blocks(write_source, byte_tokenizer):
    path = write_source("a.txt", numbered(100))
    first, again, other = (take(PackedDataLoader([path], byte_tokenizer, 16, seed), 30) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_seed_gives_the_same_blocks_on_every_machine(write_source):
    """The hash of the blocks, with a tokenizer trained on the same text, was recorded once."""
    paths = [
        write_source("a.txt", numbered(300)),
        write_source("b.txt", [f"{i} déjà vu 漢字 🦊 fox" for i in range(50)]),
    ]
    tokenizer = train_tokenizer(paths, 290, mixture_weights=[2, 1])
    loader = PackedDataLoader(paths, tokenizer, 16, seed=7, mixture_weights=[2, 1], skip_held_out=True)
    blocks = json.dumps(take(loader, 400).tolist())
    assert hashlib.sha256(blocks.encode()).hexdigest()[:16] == "d99a07f9a954cb4a"


def test_shuffling_moves_blocks_and_loses_none(write_source, byte_tokenizer, monkeypatch):
    path = write_source("a.txt", numbered(300))
    loader = PackedDataLoader([path], byte_tokenizer, 16)
    shuffled = [tuple(block) for block in take(loader, 150).tolist()]
    buffered = [tuple(block) for block in loader.state_dict()["buffer"].tolist()]
    monkeypatch.setattr(PackedDataLoader, "BUFFER_BLOCKS", 1)  # no shuffling
    in_order = [tuple(block) for block in take(PackedDataLoader([path], byte_tokenizer, 16), 158).tolist()]
    assert sorted(shuffled + buffered) == sorted(in_order)
    assert shuffled != in_order[:150] and set(in_order[:8]) <= set(shuffled)


@pytest.mark.parametrize("weights", [None, [3, 1], [1, 9]])
def test_sources_are_mixed_by_their_weights_in_tokens(write_source, byte_tokenizer, weights):
    sources = [write_source("a.txt", ["a" * 200] * 5), write_source("b.txt", ["b" * 60] * 7)]
    blocks = take(PackedDataLoader(sources, byte_tokenizer, 32, mixture_weights=weights), 1000)
    a, b = ((blocks == encode_document(byte_tokenizer, letter)[1]).sum().item() for letter in "ab")
    weights = weights or [1, 1]
    assert a / (a + b) == pytest.approx(weights[0] / sum(weights), rel=0.05)


SHAPES = {  # the documents of a source, and the least of the text that is held out where MIN_HELD_OUT is 50
    "stories": ([f"{i} fox " * 5 for i in range(400)], 0.006),
    "essays": (["".join(f"{i} word {j}\n" for j in range(60)) for i in range(30)], 0.006),
    "one book": (["".join(f"line {i}\n" for i in range(2000))], 0.005),
    "long last": (["a fox"] * 30 + ["".join(f"line {i}\n" for i in range(2000))], 0.005),
    "two documents": (["one fox\n" * 100, "two foxes\n" * 100], 0),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_at_most_one_percent_of_the_text_is_held_out_and_all_else_is_trained_on(
    write_source, byte_tokenizer, monkeypatch, shape
):
    monkeypatch.setattr(dataloader, "MIN_HELD_OUT", 50)
    documents, least = SHAPES[shape]
    path, size = write_source("a.txt", documents), len("".join(documents))
    validation = held_out(path, 1000)
    assert least <= len("".join(validation)) / size <= 0.01
    for skip_held_out in (True, False):
        stream = PackedDataLoader([path], byte_tokenizer, 16, skip_held_out=skip_held_out).streams[0]
        training = list(islice(stream, len(documents) - sum(text in documents for text in skip_held_out * validation)))
        rest = skip_held_out * validation
        assert sorted("\n".join(training + rest).split()) == sorted("\n".join(documents).split())


def test_what_is_held_out_is_told(write_source, caplog):
    caplog.set_level("INFO", "deepseek")
    assert len(held_out(write_source("a.txt", ["a fox " * 50] * 1000), 3)) == 3
    assert held_out(write_source("b.txt", ["short"]), 3) == []
    assert [re.sub("'.*'", "", message) for message in caplog.messages] == [
        "data : 900 of 260,100 characters are held out for validation.",
        "data : none of 5 characters are held out for validation.",
    ]


def test_a_source_of_less_than_a_block_is_refused(write_source, byte_tokenizer):
    with pytest.raises(DataError, match="a.txt' holds no text"):
        next(PackedDataLoader([write_source("a.txt", [])], byte_tokenizer, 16))
    sources = [write_source("b.txt", numbered(100)), write_source("a.txt", ["fourteen bytes"])]
    with pytest.raises(DataError, match="a.txt' holds less than one block of 16 tokens"):
        next(PackedDataLoader(sources[1:], byte_tokenizer, 16))
    assert "fourteen" in byte_tokenizer.decode(take(PackedDataLoader(sources, byte_tokenizer, 16), 9).flatten()), (
        "of many"
    )


def test_a_source_that_becomes_empty_is_refused_and_not_read_forever(write_source, byte_tokenizer):
    loader = PackedDataLoader([write_source("a.txt", numbered(100))], byte_tokenizer, 16)
    take(loader, 10)
    write_source("a.txt", [])
    with pytest.raises(DataError, match="a.txt' holds no text to train on"):
        take(loader, 100)


# Resuming


@pytest.mark.parametrize("num_blocks", [0, 1, 7, 100])
@pytest.mark.parametrize("skip_held_out", [False, True])
@pytest.mark.parametrize("counts", [[3], [120], [3, 120]], ids=["tiny", "one pass", "two sources"])
def test_a_restored_state_continues_identically(write_source, byte_tokenizer, counts, skip_held_out, num_blocks):
    """The tiny source is read many times over."""
    sources = [write_source(f"{count}.txt", numbered(count)) for count in counts]

    def new_loader():
        weights = range(1, len(sources) + 1)
        return PackedDataLoader(sources, byte_tokenizer, 16, 5, mixture_weights=weights, skip_held_out=skip_held_out)

    loader = new_loader()
    list(islice(loader, num_blocks))
    state = loader.state_dict()
    assert list(state) == [
        "fingerprints", "positions", "characters", "held_out", "drawn", "pending", "count", "buffer"
    ], "on disk"  # fmt: skip
    expected = take(loader, 60)
    buffer = state.pop("buffer")
    state = json.loads(json.dumps(state)) | {"buffer": buffer}
    for resumed in (new_loader(), loader):
        resumed.load_state_dict(state)
        assert torch.equal(take(resumed, 60), expected)


@pytest.fixture
def decoded(monkeypatch):
    """A list of every line and every .parquet row that is decoded, whether or not it is used."""
    decoded, lines, batches = [], file_formats.iter_lines, ParquetFile.iter_batches

    def counted_lines(*arguments):
        for pair in lines(*arguments):
            decoded.append(pair)
            yield pair

    def counted_batches(*arguments, **options):
        for batch in batches(*arguments, **options):
            decoded.extend(batch.to_pylist())
            yield batch

    for module in (file_formats, tables):
        monkeypatch.setattr(module, "iter_lines", counted_lines)
    monkeypatch.setattr(ParquetFile, "iter_batches", counted_batches)
    return decoded


GROUP = 500  # rows


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv", ".jsonl.gz", ".parquet"])
def test_resuming_reads_as_little_late_in_a_run_as_early(tmp_path, byte_tokenizer, decoded, suffix):
    """The rows decoded to read on for a hundred blocks (134 documents), after 100 blocks and after 3,000.

    Parquet is decoded from the start of a row group. The cost depends on the position within the group and not on the
    group's own position, so it is averaged over ten positions in a group.
    """
    path, rows = str(tmp_path / f"rows{suffix}"), pandas.DataFrame({"text": [f"story {i:05}" for i in range(5_000)]})
    if suffix == ".parquet":
        rows.to_parquet(path, row_group_size=GROUP)
    elif suffix == ".csv":
        rows.to_csv(path, index=False)
    elif suffix == ".txt":
        rows.assign(end="<|endoftext|>").to_csv(path, sep="\n", index=False, header=False)
    else:
        rows.to_json(path, orient="records", lines=True)
    offsets = range(0, 375, 38) if suffix == ".parquet" else [0]  # a group fills 375 blocks
    expected = take(PackedDataLoader([path], byte_tokenizer, 16), 3_500)
    loader, costs = PackedDataLoader([path], byte_tokenizer, 16), {100: [], 3_000: []}
    for start, cost in costs.items():
        for count in (start + offset for offset in offsets):
            list(islice(loader, count - loader.num_blocks))
            resumed = PackedDataLoader([path], byte_tokenizer, 16)
            resumed.load_state_dict(loader.state_dict())
            decoded.clear()
            assert torch.equal(take(resumed, 100), expected[count : count + 100])
            cost.append(len(decoded))
    early, late = (sum(cost) / len(cost) for cost in costs.values())
    print(f"{suffix}: {early:.0f} decoded after 100 blocks, {late:.0f} after 3,000 {list(costs.values())}")
    assert min(early, late) >= 130
    assert late <= 1.2 * early
    assert max(map(max, costs.values())) <= 2 * 134 + GROUP + 64, "at most a group more"


def test_a_small_source_resumes_identically_in_any_pass(tmp_path, byte_tokenizer):
    path = tmp_path / "upload.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in numbered(100)))
    loader = PackedDataLoader([str(path)], byte_tokenizer, 16, skip_held_out=True)
    for _ in range(12):  # 98 rows of 10 tokens make 61 blocks, so every other state is taken in another pass
        list(islice(loader, 37))
        resumed = PackedDataLoader([str(path)], byte_tokenizer, 16, skip_held_out=True)
        resumed.load_state_dict(loader.state_dict())
        assert torch.equal(take(resumed, 100), take(loader, 100))
        loader = resumed
    assert loader.num_characters[0] <= 900, "of the current pass"


def test_a_changed_source_or_a_state_without_positions_is_refused(write_source, byte_tokenizer):
    path = write_source("a.txt", numbered(60))
    loader = PackedDataLoader([path], byte_tokenizer, 16)
    list(islice(loader, 5))
    write_source("a.txt", numbered(61))
    with pytest.raises(DataError, match="a.txt' has changed since the run read it: it was 1,4.. bytes"):
        PackedDataLoader([path], byte_tokenizer, 16).load_state_dict(loader.state_dict())
    with pytest.raises(DataError, match="older version"):
        loader.load_state_dict({"read": [3]})
