"""Where text comes from: `documents(source)`, and `read(source, position)`, which takes up again where it was left.

- a source is the text that ships with Python, a file (.txt, .jsonl, .csv, each also as .xz or .gz; .parquet), or a
  data set of the Hub, which is read file by file in the same way
- a position is a JSON value; reading on from it makes no earlier document again (.xz and .gz are decompressed again up
  to it, and of .parquet the row group that it lies in, since these can be entered at their start alone)
- memory does not grow with the source, whatever the length of its lines; of .parquet, the text of one row group as it
  lies in the file is held
"""

import codecs
import contextlib
import csv
import gzip
import hashlib
import inspect
import json
import lzma
import platform
import re
import sys
import sysconfig
import zlib
from collections.abc import Iterator
from pathlib import Path

END_OF_TEXT = "<|endoftext|>"
BUILTIN = "builtin"
MAX_DOCUMENT_CHARACTERS = (
    1 << 20
)  # characters; a longer .txt is cut at a line's end, of a longer row the rest is left out
MAX_ROW_BYTES = 1 << 24  # bytes
MAX_COMPRESSION_RATIO = 200  # times that a text may have been packed; what is packed tighter is a trap
NOT_PROSE = {"test", "tests", "idle_test", "lib2to3", "site-packages", "__pycache__", "topics.py"}
UNPACK = {".xz": lzma.open, ".gz": gzip.open}
csv.field_size_limit(MAX_ROW_BYTES)  # the module's own limit is 128 KiB, less than a book


class DataError(ValueError):
    """Text that cannot be read; the message is one sentence that names it and says why."""


def documents(source: str) -> Iterator[str]:
    """The documents of one source, in their order. `source` is "builtin", a file's path or a Hub id.

    A .txt file is cut at lines that hold only <|endoftext|>; of a table (each line of .jsonl is one object) the column
    "text" is read, or the first column whose first value is text. A Hub id is name/dataset or name/dataset:subset.
    Raises DataError.
    """
    return (text for text, _ in iter_documents(source))


def iter_documents(source: str, position=None) -> Iterator[tuple[str, object]]:
    """(document, position after it) for every document after `position`, from the start where that is None."""
    if source == BUILTIN:
        return _built_in(position or 0)
    return _read_files([(file, _reader(file)) for file in _files(source)], *position or (0, None))


def fingerprint(source: str) -> str:
    """What tells a changed source from the one that a position belongs to; for a file, its size and its two ends."""
    if source == BUILTIN:
        topics, files = _library()
        names = hashlib.sha256(str([(name, path.stat().st_size) for name, path in files]).encode()).hexdigest()[:12]
        return f"{len(topics) + len(files)} texts of Python {platform.python_version()}, sha256 of their names {names}"
    names = _files(source)
    if names != [source]:
        names = [re.sub("@[0-9a-f]{40}", "", name) for name in names]  # without the revision
        return f"{len(names)} files, sha256 of their names {hashlib.sha256(str(names).encode()).hexdigest()[:12]}"
    with open(source, "rb") as file:
        size, ends = file.seek(0, 2), hashlib.sha256()
        for place in (0, max(0, size - 65536)):
            file.seek(place)
            ends.update(file.read(65536))
    return f"{size:,} bytes, sha256 of its ends {ends.hexdigest()[:12]}"


def _files(source: str) -> list[str]:
    """The files of a source that is not the built-in one."""
    if Path(source).is_file():
        return [source]
    if re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", source) and Path(source).suffix not in (*UNPACK, *READERS):
        return _hub_files(source)
    raise DataError(f"data {source!r} is not there; it must be {BUILTIN!r}, a file or a Hub id such as name/dataset.")


def _hub_files(source: str) -> list[str]:
    """Addresses of the train split's files, each with the data set's revision in it."""
    import datasets  # slow to import, and only here needed
    from huggingface_hub import HfApi

    name, _, subset = source.partition(":")
    try:
        if not Path(name).is_dir():
            HfApi().dataset_info(name, timeout=10)  # fails at once; the builder would retry for half a minute
        files = datasets.load_dataset_builder(name, subset or None).config.data_files
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"data {source!r} cannot be had from the Hub ({reason[:300]}); {BUILTIN!r} and files need no network."
        ) from error
    if "train" not in files:
        raise DataError(f"data {source!r} has no split 'train'; its splits are {', '.join(files)}.")
    return list(files["train"])


def _reader(file: str):
    """The function that reads a file of this name."""
    suffixes = [suffix.lower() for suffix in Path(file).suffixes]
    packed = suffixes[-1:] and suffixes[-1] in UNPACK
    kind = (suffixes[:-1] if packed else suffixes)[-1:]
    if packed and kind == [".parquet"]:
        raise DataError(f"data {file!r} is compressed twice; unpack it to .parquet, which is compressed inside.")
    if not kind or kind[0] not in READERS:
        raise DataError(f"data {file!r} must end in {', '.join(READERS)}, and may in .xz or .gz after that.")
    return READERS[kind[0]]


def _read_files(files, index: int, place) -> Iterator[tuple[str, object]]:
    for number, (file, reader) in enumerate(files[index:], index):
        for text, place in reader(file, place):  # noqa: B020  (the place in the first file is the one to start at)
            yield text, [number, place]
        place = None


@contextlib.contextmanager
def _open(file: str):
    """(the file's bytes decompressed, the file); what goes wrong while they are read becomes a DataError."""
    remote = "://" in file
    try:
        if remote:
            from huggingface_hub import HfFileSystem

            raw = HfFileSystem().open(file, "rb")
        else:
            raw = open(file, "rb")  # noqa: SIM115
        with raw:
            unpack = UNPACK.get(Path(file).suffix.lower())
            yield unpack(raw) if unpack else raw, raw
    except DataError:
        raise
    except (lzma.LZMAError, EOFError, zlib.error) as error:
        raise DataError(f"data {file!r} is not a whole compressed file: {error}.") from error
    except Exception as error:
        if not (remote or isinstance(error, OSError)):
            raise
        raise DataError(f"data {file!r} cannot be read: {' '.join(str(error).split())}.") from error


def _lines(file: str, offset: int, longest: int) -> Iterator[tuple[str, int]]:
    """(line, byte after it) from byte `offset` on; a line of more than `longest` bytes comes in pieces."""
    with _open(file) as (content, raw):
        content.seek(offset)
        rest = b""  # the begun character at the end of a piece
        while piece := content.readline(longest):
            if content is not raw and offset > max(4 * MAX_DOCUMENT_CHARACTERS, MAX_COMPRESSION_RATIO * raw.tell()):
                raise DataError(
                    f"data {file!r} unpacks to {MAX_COMPRESSION_RATIO} times its size and more; text does not."
                )
            line = rest + piece
            if (nul := line.find(0)) >= 0:
                raise DataError(f"data {file!r} is not text: byte {offset + nul} is NUL.")
            try:
                text, used = codecs.utf_8_decode(line, "strict", False)
            except UnicodeDecodeError as error:
                raise DataError(f"data {file!r} is not UTF-8 text at byte {offset + error.start}.") from error
            if offset == 0:
                text = text.removeprefix("\ufeff")
            offset, rest = offset + used, line[used:]
            yield text, offset
        if rest:
            raise DataError(f"data {file!r} is not UTF-8 text at byte {offset}.")


def _plain(file: str, offset: int | None) -> Iterator[tuple[str, int]]:
    lines, size = [], 0
    for line, offset in _lines(file, offset or 0, MAX_DOCUMENT_CHARACTERS):  # noqa: B020
        end = line.strip() == END_OF_TEXT
        if not end:
            lines.append(line)
            size += len(line)
        if end or size >= MAX_DOCUMENT_CHARACTERS:
            if text := "".join(lines).strip("\r\n"):
                yield text, offset
            lines, size = [], 0
    if text := "".join(lines).strip("\r\n"):
        yield text, offset


def _whole_lines(file: str, offset: int) -> Iterator[tuple[str, int]]:
    for line, end in _lines(file, offset, MAX_ROW_BYTES):
        if end - offset >= MAX_ROW_BYTES - 4 and not line.endswith("\n"):
            raise DataError(f"data {file!r} has a line of more than {MAX_ROW_BYTES >> 20} MiB at byte {offset}.")
        yield line, end
        offset = end


def _json_rows(file: str, offset: int) -> Iterator[tuple[dict, int]]:
    for line, end in _whole_lines(file, offset):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("not an object")
        except (ValueError, RecursionError) as error:
            byte = end - len(line[getattr(error, "pos", 0) :].encode())
            reason = getattr(error, "msg", error)
            raise DataError(f"data {file!r} must hold one JSON object a line; byte {byte}: {reason}.") from error
        yield row, end


def _csv_rows(file: str, offset: int) -> Iterator[tuple[dict, int]]:
    end = 0

    def lines(start):
        nonlocal end
        for line, after in _whole_lines(file, start):
            end = after
            yield line

    def rows(start):
        try:
            yield from csv.reader(lines(start))
        except csv.Error as error:
            raise DataError(f"data {file!r} is not CSV before byte {end}: {error}.") from error

    names = next(rows(0), [])
    for values in rows(offset or end):
        yield dict(zip(names, values)), end


def _table(rows):
    """A reader of a table from `rows(file, offset)`, which yields (row, byte after it)."""

    def reader(file: str, position) -> Iterator[tuple[str, list]]:
        offset, column = position or (0, None)
        row: dict = {}
        for row, end in rows(file, offset):
            column = column or _text_column(row)
            if column and isinstance(text := row.get(column), str) and text:
                # JSON may hold half a surrogate pair, which is no character and which no tokenizer takes.
                yield text[:MAX_DOCUMENT_CHARACTERS].encode("utf-8", "replace").decode(), [end, column]
        if not (row or offset):
            raise DataError(f"data {file!r} holds no rows.")
        if column is None:
            raise _no_text(file, row)

    return reader


def _text_column(row: dict) -> str | None:
    strings = [name for name, value in row.items() if isinstance(value, str) and not _is_number(value)]
    return "text" if "text" in row else next(iter(strings), None)


def _is_number(value: str) -> bool:
    """Whether a cell of a CSV file is a number, or empty."""
    try:
        float(value or 0)
        return True
    except ValueError:
        return False


def _no_text(file: str, columns) -> DataError:
    return DataError(f"data {file!r} has no column of text; its columns are {', '.join(map(str, columns)) or 'none'}.")


def _parquet(file: str, row: int | None) -> Iterator[tuple[str, int]]:
    """`row` is the number of rows before the position."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    row = row or 0
    with _open(file) as (_, raw):
        try:
            table = ParquetFile(raw)
            types = {field.name: str(field.type) for field in table.schema_arrow}
            strings = [name for name, kind in types.items() if "string" in kind]
            column = "text" if "text" in strings else next(iter(strings), None)
            if column is None:
                raise _no_text(file, types)
            group, first = 0, 0  # the row group that holds `row`, and that group's first row
            while group < table.num_row_groups and first + table.metadata.row_group(group).num_rows <= row:
                first += table.metadata.row_group(group).num_rows
                group += 1
            groups = range(group, table.num_row_groups)
            place = next(place for place in range(len(table.schema)) if table.schema.column(place).path == column)
            for number in groups:
                part = table.metadata.row_group(number).column(place)
                if part.total_uncompressed_size > max(
                    MAX_ROW_BYTES, MAX_COMPRESSION_RATIO * part.total_compressed_size
                ):
                    raise DataError(
                        f"data {file!r} unpacks to {MAX_COMPRESSION_RATIO} times its size and more; text does not."
                    )
            for batch in table.iter_batches(batch_size=16, row_groups=groups, columns=[column]):
                for text in batch.column(0).slice(min(len(batch), max(0, row - first))).to_pylist():
                    row += 1
                    if isinstance(text, str) and text:
                        yield text[:MAX_DOCUMENT_CHARACTERS], row
                first += len(batch)
        except (pyarrow.ArrowException, UnicodeDecodeError) as error:
            raise DataError(f"data {file!r} cannot be read: {' '.join(str(error).split())}.") from error


READERS = {
    ".txt": _plain,
    ".jsonl": _table(_json_rows),
    ".json": _table(_json_rows),
    ".csv": _table(_csv_rows),
    ".parquet": _parquet,
}


def _library() -> tuple[list[str], list[tuple[str, Path]]]:
    """(topics of the language reference, (name, path) of the library's modules), in the same order on every machine.

    What a machine adds to the library's folder, such as a record of how its Python was built, is no part of it.
    """
    from pydoc_data.topics import topics

    library = Path(sysconfig.get_path("stdlib"))
    files = sorted((path.relative_to(library).as_posix(), path) for path in library.rglob("*.py"))
    known = [file for file in files if file[0].removesuffix(".py").split("/")[0] in sys.stdlib_module_names]
    return list(topics.values()), [file for file in known if not NOT_PROSE & set(file[0].split("/"))]


def _built_in(start: int) -> Iterator[tuple[str, int]]:
    """The text that ships with Python: its language reference, then docstring and source of every library module.

    Another version of Python holds other text.
    """
    topics, files = _library()
    texts = [*topics, *(path for _, path in files)]
    for number, text in enumerate(texts[start:], start + 1):
        if isinstance(text, Path):
            try:
                text = text.read_text("utf-8")
            except (OSError, UnicodeDecodeError):
                continue
            if len(text) <= 200:
                continue
            text = inspect.cleandoc(text)[:MAX_DOCUMENT_CHARACTERS]
        yield text, number
