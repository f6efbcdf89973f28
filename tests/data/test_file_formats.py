"""Every format yields the same documents from any position; a file that cannot be read is refused in one sentence."""

import gzip
import json
import lzma
import subprocess
import sys
from pathlib import Path

import pandas
import pyarrow
import pytest

from deepseek.data import file_formats, tables
from deepseek.data.readers import documents, iter_documents
from deepseek.data.text_lines import DataError

ROOT = Path(__file__).parents[2]
STORIES = ["once upon a time", 'two\nlines, and "quotes"', "a little fox, schön"]
SEPARATED = "\n<|endoftext|>\n".join(STORIES)
ROWS = pandas.DataFrame({"id": range(3), "title": ["A", "B", "C"], "text": STORIES})
JSONL = ROWS.to_json(orient="records", lines=True)
BOM = "\ufeff"


def texts(source):
    return list(documents(str(source)))


def zst(data):
    return pyarrow.compress(data, "zstd", asbytes=True)


WRITERS = {
    "stories.txt": lambda path: path.write_text(SEPARATED, "utf-8"),
    "bom.txt": lambda path: path.write_text(BOM + SEPARATED, "utf-8"),
    "stories.txt.xz": lambda path: path.write_bytes(lzma.compress(SEPARATED.encode())),
    "stories.TXT.GZ": lambda path: path.write_bytes(gzip.compress(SEPARATED.encode())),
    "stories.txt.zst": lambda path: path.write_bytes(zst(SEPARATED.encode())),
    "stories.md": lambda path: path.write_text(SEPARATED, "utf-8"),
    "utf-16.txt": lambda path: path.write_text(SEPARATED, "utf-16"),
    "utf-16.csv.xz": lambda path: path.write_bytes(lzma.compress(ROWS.to_csv(index=False).encode("utf-16"))),
    "stories.jsonl": lambda path: path.write_text(JSONL),
    "stories.jsonl.zst": lambda path: path.write_bytes(zst(JSONL.encode())),
    "array.json": lambda path: path.write_text(ROWS.to_json(orient="records")),
    "indented.json": lambda path: path.write_text(BOM + ROWS.to_json(orient="records", indent=2), "utf-8"),
    "object.json": lambda path: path.write_text(
        "\n".join(json.dumps(row, indent=1) for row in ROWS.to_dict("records"))
    ),
    "bom.jsonl": lambda path: path.write_text(BOM + JSONL, "utf-8"),
    "stories.jsonl.xz": lambda path: path.write_bytes(lzma.compress(JSONL.encode())),
    "stories.csv": lambda path: ROWS.to_csv(path, index=False),
    "bom.csv": lambda path: path.write_text(BOM + ROWS[["text"]].to_csv(index=False), "utf-8"),
    "stories.csv.gz": lambda path: ROWS.to_csv(path, index=False),
    "semicolons.csv": lambda path: ROWS.to_csv(path, index=False, sep=";"),
    "tabs.csv": lambda path: ROWS.to_csv(path, index=False, sep="\t"),
    "no_names.csv": lambda path: ROWS.to_csv(path, index=False, header=False),
    "blank_rows.csv": lambda path: path.write_text(
        "\n\n" + ROWS.to_csv(index=False).replace("\n1", "\n\n1") + "\n ,\n\n"
    ),
    "blank_rows.jsonl": lambda path: path.write_text("\n\n" + JSONL + "\n{}\n\n"),
    "stories.parquet": lambda path: ROWS.to_parquet(path),
    "groups.parquet": lambda path: ROWS.to_parquet(path, row_group_size=1),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_yields_the_same_documents_and_resumes_at_any_position(tmp_path, name):
    path = tmp_path / name
    WRITERS[name](path)
    assert texts(path) == STORIES
    positions = [json.loads(json.dumps(position)) for _, position in iter_documents(str(path))]
    for index, position in enumerate([None, *positions]):
        assert list(iter_documents(str(path), position)) == list(zip(STORIES, positions))[index:]


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_of_a_table_without_a_text_column_the_first_column_of_strings_is_read(tmp_path, suffix):
    rows, path = ROWS.drop(columns="text"), tmp_path / f"a{suffix}"
    {
        ".csv": lambda: rows.to_csv(path, index=False),
        ".parquet": lambda: rows.to_parquet(path),
        ".jsonl": lambda: rows.to_json(path, orient="records", lines=True),
    }[suffix]()
    assert texts(path) == ["A", "B", "C"]


def test_windows_line_ends_and_empty_documents(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\r\n<|endoftext|>\r\n\r\n<|endoftext|>\r\ntwo\r\n")
    assert texts(tmp_path / "a.txt") == ["one", "two"]


def test_a_line_of_any_length_is_split_between_characters(tmp_path, monkeypatch):
    monkeypatch.setattr(file_formats, "MAX_DOCUMENT_CHARACTERS", 7)
    line = "漢字🦊é" * 10
    (tmp_path / "a.txt").write_text(line, "utf-8")
    pieces = list(iter_documents(str(tmp_path / "a.txt")))
    assert len(pieces) > 5 and "".join(text for text, _ in pieces) == line
    assert list(iter_documents(str(tmp_path / "a.txt"), pieces[3][1])) == pieces[4:]


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv", ".parquet"])
def test_a_long_document_is_split_at_a_line_or_word_and_none_of_it_is_lost(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(file_formats, "MAX_DOCUMENT_CHARACTERS", 50)
    rows = pandas.DataFrame({"text": ["one two three " * 20, "short", "漢字🦊é" * 40, "lines\nof a poem\n" * 9]})
    path = tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        rows.to_parquet(path)
    elif suffix == ".csv":
        rows.to_csv(path, index=False)
    elif suffix == ".txt":
        path.write_text("\n<|endoftext|>\n".join(rows["text"]), "utf-8")
    else:
        rows.to_json(path, orient="records", lines=True)
    pieces = list(iter_documents(str(path)))
    assert max(len(text) for text, _ in pieces) <= 50 and len(pieces) > 10
    assert "".join(text for text, _ in pieces).replace("\n", "") == "".join(rows["text"]).replace("\n", "")
    if suffix != ".txt":
        assert {text[-1] for text, _ in pieces[:5]} == {" "}
    for index, (_, position) in enumerate(pieces):
        assert list(iter_documents(str(path), json.loads(json.dumps(position)))) == pieces[index + 1 :]


def test_half_a_surrogate_pair_in_json_does_not_reach_the_tokenizer(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "fox \\ud83e end"}\n{"text": "\\ud83e\\udd8a"}\n')
    assert texts(tmp_path / "a.jsonl") == ["fox ? end", "🦊"]


UNREADABLE = {
    "bad.txt": (b"good\nb\xffd", "is not UTF-8 text at byte 6"),
    "end.txt": (b"good\nb\xc3", "is not UTF-8 text at byte 6"),
    "bad.csv": (b"text\ngood\nb\xffd\n", "is not UTF-8 text at byte 11"),
    "bad.jsonl": (b'{"text": "a"}\n{"text": "\xe9"}\n', "is not UTF-8 text at byte 24"),
    "nul.txt": (b"some\nte\0xt", "is not text: byte 7 is NUL"),
    "picture.txt": (b"\x89PNG\r\n\x1a\n\0\0", "is not UTF-8 text at byte 0"),
    "cut.txt.xz": (lzma.compress(SEPARATED.encode())[:-9], "is not a whole compressed file"),
    "other.txt.xz": (b"plain", "is not a whole compressed file"),
    "other.txt.gz": (b"plain", "cannot be read: Not a gzipped file"),
    "cut.txt.zst": (zst(SEPARATED.encode())[:-9], "cannot be read: Truncated compressed stream"),
    "other.jsonl.zst": (b"x" * 100, "cannot be read: ZSTD decompress failed: Unknown frame descriptor"),
    "cut.jsonl": (b'{"text": "one"}\n{"text":', "must hold JSON objects; line 2 (byte 24): Expecting value"),
    "list.json": (b'["one", "two"]', "must hold JSON objects; line 1 (byte 1): not an object"),
    "deep.jsonl": (b'{"a":' * 100_000, "must hold JSON objects; line 1 (byte 0): maximum recursion"),
    "array.json": (b"[]", "holds no rows"),
    "empty.jsonl": (b"", "holds no rows"),
    "empty.csv": (b"", "holds no rows"),
    "blank.csv": (b"\n\ntext\n\n", "holds no rows"),
    "cut.parquet": (b"PAR1", "cannot be read"),
    "twice.parquet.xz": (b"", "is compressed twice"),
    "numbers.csv": (b"a,b\n1,2\n", "has no column of text; its columns are a, b"),
    "story.pdf": (b"%PDF", "must end in .txt"),
    "story": (b"no suffix", "must end in .txt"),
    "missing.txt": (None, "is not there"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_file_that_cannot_be_read_is_refused_in_one_sentence(tmp_path, name):
    content, reason = UNREADABLE[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        texts(tmp_path / name)
    message = str(caught.value)
    assert str(tmp_path / name) in message and reason in message and "\n" not in message


def test_an_unclosed_quote_does_not_swallow_a_large_csv_file(tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_text('text\n"' + "never closed\n" * 20_000)
    monkeypatch.setattr(tables, "MAX_ROW_BYTES", 100_000)
    with pytest.raises(DataError, match="a bad row in line 2: field larger than field limit"):
        texts(tmp_path / "a.csv")


def test_memory_does_not_grow_with_a_file(tmp_path):
    """Three files of 40 MB: JSON lines, one line, and .parquet rows in groups of 1,000; in a process with little else."""
    rows = [f"{number} " + "fox " * 250 for number in range(40_000)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    (tmp_path / "line.txt").write_text("fox " * 10_000_000)
    pandas.DataFrame({"text": rows}).to_parquet(tmp_path / "rows.parquet", row_group_size=1000)
    code = """
import re, sys
from pathlib import Path
import pyarrow.parquet
from deepseek.data.readers import documents
# Not ru_maxrss, which a new process inherits from the one that starts it.
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
before = peak()
for file in sys.argv[1:]:
    print(sum(map(len, documents(file))))
print(peak() - before)
"""
    files = [str(tmp_path / name) for name in ("rows.jsonl", "line.txt", "rows.parquet")]
    output = subprocess.run([sys.executable, "-c", code, *files], cwd=ROOT, capture_output=True, text=True)
    *sizes, growth_kb = map(int, output.stdout.split())
    assert sizes[1] == 40_000_000 and min(sizes) >= 40_000_000
    assert growth_kb < 24_000
