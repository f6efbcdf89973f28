"""Text sources: `documents(source)`, and `iter_documents(source, position)`, which resumes at any position.

- a source is the text that ships with Python, a file (.txt, .jsonl, .csv, each also as .xz or .gz; .parquet), or a
  Hub data set, which is read file by file in the same way
- a position is a JSON value; resuming from it parses no earlier document again (.xz and .gz files are decompressed
  from their start, and .parquet files are decoded from the start of the position's row group)
- memory does not grow with the source, however long its lines are; of a .parquet file, one row group is in memory
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
from functools import partial
from pathlib import Path

BUILTIN = "builtin"
END_OF_TEXT = "<|endoftext|>"  # between documents: a line of a .txt file, a token of a block
MAX_DOCUMENT_CHARACTERS = 1 << 20  # a longer .txt document is split at the end of a line, a longer row is truncated
MAX_ROW_BYTES = 1 << 24
MAX_COMPRESSION_RATIO = 200  # uncompressed bytes per compressed byte; text compresses less, decompression bombs more
EXCLUDED_LIBRARY_PARTS = {"test", "tests", "idle_test", "lib2to3", "site-packages", "__pycache__", "topics.py"}
DECOMPRESSORS = {".xz": lzma.open, ".gz": gzip.open}


class DataError(ValueError):
    """A source that cannot be read; the message is one sentence that names the source and the reason."""


def documents(source: str) -> Iterator[str]:
    """The documents of a source, in order. `source` is "builtin", the path of a file or a Hub id.

    A .txt file is split at lines that hold only <|endoftext|>. Of a table (each line of .jsonl is one object), the
    column "text" is read, or the first column of strings. A Hub id is name/dataset or name/dataset:subset.
    Raises DataError.
    """
    return (text for text, _ in iter_documents(source))


def iter_documents(source: str, position=None) -> Iterator[tuple[str, object]]:
    """Yields (document, position after it) from `position` on, or from the start if it is None. Raises DataError."""
    if source == BUILTIN:
        return _read_builtin(position or 0)
    return _read_files([(file, _reader(file)) for file in _files(source)], *position or (0, None))


def fingerprint(source: str) -> str:
    """Tells whether a source has changed: of a file, its size and a hash of its two ends; else a hash of names."""
    if source == BUILTIN:
        topics, files = _library()
        names = [(name, path.stat().st_size) for name, path in files]
        python = f"Python {platform.python_version()}"
        return f"{len(topics) + len(files)} texts of {python}, sha256 of their names {_short_sha256(names)}"
    names = _files(source)
    if names != [source]:
        names = [re.sub("@[0-9a-f]{40}", "", name) for name in names]  # without the revision
        return f"{len(names)} files, sha256 of their names {_short_sha256(names)}"
    with open(source, "rb") as file:
        size, ends = file.seek(0, 2), hashlib.sha256()
        for offset in (0, max(0, size - 65536)):
            file.seek(offset)
            ends.update(file.read(65536))
    return f"{size:,} bytes, sha256 of its ends {ends.hexdigest()[:12]}"


def _short_sha256(names: list) -> str:
    return hashlib.sha256(str(names).encode()).hexdigest()[:12]


def _files(source: str) -> list[str]:
    """The files of any source but the built-in one."""
    if Path(source).is_file():
        return [source]
    if re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", source) and Path(source).suffix not in (*DECOMPRESSORS, *READERS):
        return _hub_files(source)
    raise DataError(f"data {source!r} is not there; it must be {BUILTIN!r}, a file or a Hub id such as name/dataset.")


def _hub_files(source: str) -> list[str]:
    """URLs of the train split's files, each with the revision of the data set."""
    import datasets  # slow to import, and needed only here
    from huggingface_hub import HfApi

    name, _, subset = source.partition(":")
    try:
        if not Path(name).is_dir():
            HfApi().dataset_info(name, timeout=10)  # fails at once; the builder would retry for half a minute
        files = datasets.load_dataset_builder(name, subset or None).config.data_files
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"data {source!r} cannot be fetched from the Hub ({reason[:300]}); {BUILTIN!r} and files need no network."
        ) from error
    if "train" not in files:
        raise DataError(f"data {source!r} has no split 'train'; its splits are {', '.join(files)}.")
    return list(files["train"])


def _reader(file: str):
    """The function that reads a file with this suffix."""
    path = Path(file.lower())
    compressed = path.suffix in DECOMPRESSORS
    suffix = Path(path.stem).suffix if compressed else path.suffix
    if compressed and suffix == ".parquet":
        raise DataError(f"data {file!r} is compressed twice; unpack it to .parquet, which is compressed inside.")
    if suffix not in READERS:
        raise DataError(f"data {file!r} must end in {', '.join(READERS)}, and may in .xz or .gz after that.")
    return READERS[suffix]


def _read_files(files, start: int, file_position) -> Iterator[tuple[str, list]]:
    for index, (file, reader) in enumerate(files[start:], start):
        for text, end in reader(file, file_position):
            yield text, [index, end]
        file_position = None


@contextlib.contextmanager
def _open(file: str):
    """Gives (decompressed content, raw file); raises DataError for what fails while they are read."""
    remote = "://" in file
    try:
        if remote:
            from huggingface_hub import HfFileSystem
        with (HfFileSystem().open if remote else open)(file, "rb") as raw:
            decompress = DECOMPRESSORS.get(Path(file).suffix.lower())
            yield decompress(raw) if decompress else raw, raw
    except DataError:
        raise
    except (lzma.LZMAError, EOFError, zlib.error) as error:
        raise DataError(f"data {file!r} is not a whole compressed file: {error}.") from error
    except Exception as error:
        if not (remote or isinstance(error, OSError)):
            raise
        raise _unreadable(file, error) from error


def _unreadable(file: str, error: Exception) -> DataError:
    return DataError(f"data {file!r} cannot be read: {' '.join(str(error).split())}.")


def _check_compression(file: str, size: int, compressed_size: int, min_size: int) -> None:
    """Refuses a decompression bomb of more than `min_size` bytes."""
    if size > max(min_size, MAX_COMPRESSION_RATIO * compressed_size):
        raise DataError(f"data {file!r} unpacks to {MAX_COMPRESSION_RATIO} times its size and more; text does not.")


def _lines(file: str, offset: int, max_bytes: int) -> Iterator[tuple[str, int]]:
    """Yields (line, byte offset after it) from byte `offset` on; a line of more than `max_bytes` comes in pieces."""
    with _open(file) as (content, raw):
        content.seek(offset)
        partial_character = b""  # at the end of a piece
        while piece := content.readline(max_bytes):
            if content is not raw:
                _check_compression(file, offset, raw.tell(), 4 * MAX_DOCUMENT_CHARACTERS)
            line = partial_character + piece
            if (nul := line.find(0)) >= 0:
                raise DataError(f"data {file!r} is not text: byte {offset + nul} is NUL.")
            try:
                text, length = codecs.utf_8_decode(line, "strict", False)
            except UnicodeDecodeError as error:
                raise DataError(f"data {file!r} is not UTF-8 text at byte {offset + error.start}.") from error
            if offset == 0:
                text = text.removeprefix("\ufeff")
            offset, partial_character = offset + length, line[length:]
            yield text, offset
        if partial_character:
            raise DataError(f"data {file!r} is not UTF-8 text at byte {offset}.")


def _read_txt(file: str, offset: int | None) -> Iterator[tuple[str, int]]:
    lines, size = [], 0
    for line, end in _lines(file, offset or 0, MAX_DOCUMENT_CHARACTERS):
        is_separator = line.strip() == END_OF_TEXT
        if not is_separator:
            lines.append(line)
            size += len(line)
        if is_separator or size >= MAX_DOCUMENT_CHARACTERS:
            if text := "".join(lines).strip("\r\n"):
                yield text, end
            lines, size = [], 0
    if text := "".join(lines).strip("\r\n"):
        yield text, end


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
    csv.field_size_limit(MAX_ROW_BYTES)  # the default is 128 KiB, less than a book
    end = 0

    def lines(start):
        nonlocal end
        for line, end in _whole_lines(file, start):  # noqa: B007  (nonlocal)
            yield line

    try:
        names = next(csv.reader(lines(0)), [])
        for values in csv.reader(lines(offset or end)):
            yield dict(zip(names, values)), end
    except csv.Error as error:
        raise DataError(f"data {file!r} is not CSV before byte {end}: {error}.") from error


def _read_table(rows, file: str, position) -> Iterator[tuple[str, list]]:
    """Reads the text column of `rows(file, offset)`, which yields (row, byte offset after it)."""
    offset, column = position or (0, None)
    row: dict = {}
    for row, end in rows(file, offset):
        column = column or _text_column(row)
        if column and isinstance(text := row.get(column), str) and text:
            # JSON may hold half a surrogate pair, which is no character and which no tokenizer accepts.
            yield text[:MAX_DOCUMENT_CHARACTERS].encode("utf-8", "replace").decode(), [end, column]
    if not (row or offset):
        raise DataError(f"data {file!r} holds no rows.")
    if column is None:
        raise _no_text_column(file, row)


def _text_column(row: dict) -> str | None:
    strings = [name for name, value in row.items() if isinstance(value, str) and not _is_number(value)]
    return "text" if "text" in row else next(iter(strings), None)


def _is_number(cell: str) -> bool:
    """Whether a cell of a CSV file is a number, or empty."""
    try:
        float(cell or 0)
        return True
    except ValueError:
        return False


def _no_text_column(file: str, columns) -> DataError:
    return DataError(f"data {file!r} has no column of text; its columns are {', '.join(map(str, columns)) or 'none'}.")


def _read_parquet(file: str, row: int | None) -> Iterator[tuple[str, int]]:
    """A position is the number of rows before it."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    row = row or 0
    with _open(file) as (_, raw):
        try:
            table = ParquetFile(raw)
            types = {field.name: str(field.type) for field in table.schema_arrow}
            strings = [name for name, dtype in types.items() if "string" in dtype]
            if not strings:
                raise _no_text_column(file, types)
            column = "text" if "text" in strings else strings[0]
            groups = [table.metadata.row_group(index) for index in range(table.num_row_groups)]
            paths = [table.schema.column(index).path for index in range(len(table.schema))]
            for group in groups:
                chunk = group.column(paths.index(column))
                _check_compression(file, chunk.total_uncompressed_size, chunk.total_compressed_size, MAX_ROW_BYTES)
            first_row = 0
            for index, group in enumerate(groups):
                if first_row + group.num_rows <= row:
                    first_row += group.num_rows
                    continue
                for batch in table.iter_batches(batch_size=16, row_groups=[index], columns=[column]):
                    for text in batch.column(0).slice(min(len(batch), max(0, row - first_row))).to_pylist():
                        row += 1
                        if isinstance(text, str) and text:
                            yield text[:MAX_DOCUMENT_CHARACTERS], row
                    first_row += len(batch)
        except (pyarrow.ArrowException, UnicodeDecodeError) as error:
            raise _unreadable(file, error) from error


READERS = {
    ".txt": _read_txt,
    ".jsonl": partial(_read_table, _json_rows),
    ".json": partial(_read_table, _json_rows),
    ".csv": partial(_read_table, _csv_rows),
    ".parquet": _read_parquet,
}


def _library() -> tuple[list[str], list[tuple[str, Path]]]:
    """(topics of the language reference, (name, path) of the library's modules), in the same order on every machine.

    Files that a machine adds to the library's folder, such as a record of how its Python was built, are left out.
    """
    from pydoc_data.topics import topics

    library = Path(sysconfig.get_path("stdlib"))
    packages = [path for path in library.iterdir() if path.name in sys.stdlib_module_names]  # not site-packages: slow
    modules = [path for path in library.glob("*.py") if path.stem in sys.stdlib_module_names]
    modules += [path for package in packages for path in package.rglob("*.py")]
    files = sorted((path.relative_to(library).as_posix(), path) for path in modules)
    return list(topics.values()), [file for file in files if not EXCLUDED_LIBRARY_PARTS & set(file[0].split("/"))]


def _read_builtin(start: int) -> Iterator[tuple[str, int]]:
    """The text that ships with Python: its language reference, then docstring and source of every library module.

    It differs between versions of Python.
    """
    topics, files = _library()
    texts = [*topics, *(path for _, path in files)]
    for position, text in enumerate(texts[start:], start + 1):
        if isinstance(text, Path):
            try:
                text = text.read_text("utf-8")
            except (OSError, UnicodeDecodeError):
                continue
            if len(text) <= 200:
                continue
            text = inspect.cleandoc(text)[:MAX_DOCUMENT_CHARACTERS]
        yield text, position
