"""Documents of one file: .txt, .jsonl, .json and .csv, each also as .xz or .gz, and .parquet.

A reader is a function (file, position) that yields (document, position after it) and raises DataError. Memory does not grow
with the file, however long its lines are; of a .parquet file, one row group is in memory.
"""

import codecs
import contextlib
import csv
import gzip
import json
import lzma
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

END_OF_TEXT = "<|endoftext|>"  # between documents: a line of a .txt file, a token of a block
MAX_DOCUMENT_CHARACTERS = 1 << 20  # a longer .txt document is split at the end of a line, a longer row is truncated
MAX_ROW_BYTES = 1 << 24
MAX_COMPRESSION_RATIO = 200  # uncompressed bytes per compressed byte; text compresses less, decompression bombs more
DECOMPRESSORS = {".xz": lzma.open, ".gz": gzip.open}


class DataError(ValueError):
    """A source that cannot be read; the message is one sentence that names the source and the reason."""


@contextlib.contextmanager
def _open(file: str):
    """Gives (decompressed content, raw file); raises DataError for what fails while they are read."""
    remote = "://" in file
    try:
        if remote:
            from huggingface_hub import HfFileSystem  # slow to import
        with (HfFileSystem().open if remote else open)(file, "rb") as raw:
            decompress = DECOMPRESSORS.get(Path(file).suffix.lower())
            yield decompress(raw) if decompress else raw, raw
    except (DataError, MemoryError):
        raise
    except (lzma.LZMAError, EOFError, zlib.error) as error:
        raise DataError(f"data {file!r} is not a whole compressed file: {error}.") from error
    except Exception as error:  # also of the Hub's client and of pyarrow, which have many
        raise DataError(f"data {file!r} cannot be read: {' '.join(str(error).split())}.") from error


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
    try:
        float(cell or 0)
        return True
    except ValueError:
        return False


def _no_text_column(file: str, columns) -> DataError:
    return DataError(f"data {file!r} has no column of text; its columns are {', '.join(map(str, columns)) or 'none'}.")


def _read_parquet(file: str, row: int | None) -> Iterator[tuple[str, int]]:
    """A position is the number of rows before it."""
    from pyarrow.parquet import ParquetFile

    row = row or 0
    with _open(file) as (_, raw):
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


READERS = {
    ".txt": _read_txt,
    ".jsonl": partial(_read_table, _json_rows),
    ".json": partial(_read_table, _json_rows),
    ".csv": partial(_read_table, _csv_rows),
    ".parquet": _read_parquet,
}


def file_reader(file: str):
    """The reader of a file with this suffix. Raises DataError for an unknown one."""
    path = Path(file.lower())
    compressed = path.suffix in DECOMPRESSORS
    suffix = Path(path.stem).suffix if compressed else path.suffix
    if compressed and suffix == ".parquet":
        raise DataError(f"data {file!r} is compressed twice; unpack it to .parquet, which is compressed inside.")
    if suffix not in READERS:
        raise DataError(f"data {file!r} must end in {', '.join(READERS)}, and may in .xz or .gz after that.")
    return READERS[suffix]
