"""Documents of one file: .txt, .md, .jsonl, .json and .csv, each also as .xz, .gz or .zst, and .parquet.

A reader is a function (file, position, options) that yields (document, position after it) and raises DataError. Memory does
not grow with the file, however long its lines are; of a .parquet file, one row group is in memory.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from deepseek.data import tables
from deepseek.data.text_lines import DECOMPRESSORS, DataError, ReadOptions, iter_lines

END_OF_TEXT = "<|endoftext|>"  # between documents: a line of a .txt file, a token of a block
MAX_DOCUMENT_CHARACTERS = 1 << 20  # a longer document is split


def iter_file(file: str, position, options: ReadOptions) -> Iterator[tuple[str, object]]:
    """Yields (document, position after it) of a file; a document of more than MAX_DOCUMENT_CHARACTERS comes in pieces.

    The position within a document counts the pieces after the document's own start. Raises DataError.
    """
    start, num_read = (position["start"], position["pieces"]) if isinstance(position, dict) else (position, 0)
    for text, end in file_reader(file)(file, start, options):
        # JSON may hold half a surrogate pair, which is no character and which no tokenizer accepts.
        pieces = _pieces(text.encode("utf-8", "replace").decode())
        for number, piece in enumerate(pieces[num_read:], num_read + 1):
            yield piece, end if number == len(pieces) else {"start": start, "pieces": number}
        start, num_read = end, 0


def _pieces(text: str) -> list[str]:
    """A text split after lines, else words, else anywhere."""
    pieces = []
    while len(text) > MAX_DOCUMENT_CHARACTERS:
        nearby = max(0, MAX_DOCUMENT_CHARACTERS - 1000), MAX_DOCUMENT_CHARACTERS
        end = text.rfind("\n", *nearby) + 1 or text.rfind(" ", *nearby) + 1 or MAX_DOCUMENT_CHARACTERS
        pieces.append(text[:end])
        text = text[end:]
    return [*pieces, text]


def _read_txt(file: str, offset: int | None, options: ReadOptions) -> Iterator[tuple[str, int]]:
    lines, size = [], 0
    for line, end in iter_lines(file, offset or 0, MAX_DOCUMENT_CHARACTERS, options):
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


TABLES = {
    ".jsonl": tables.json_rows,
    ".json": tables.json_rows,
    ".csv": tables.csv_rows,
    ".parquet": tables.parquet_rows,
}
READERS = {".txt": _read_txt, ".md": _read_txt} | {
    name: partial(tables.read_table, rows) for name, rows in TABLES.items()
}


def table_columns(file: str, options: ReadOptions) -> tuple[str, list[str]] | None:
    """(the text column, all columns) of a table, None for another file. Raises DataError."""
    rows = TABLES.get(format_suffix(file))
    return rows and tables.text_column(rows, file, options)


def format_suffix(file: str) -> str:
    """The suffix that names the format."""
    path = Path(file.lower())
    return Path(path.stem).suffix if path.suffix in DECOMPRESSORS else path.suffix


def file_reader(file: str):
    """The reader of a file with this suffix. Raises DataError for an unknown one."""
    if Path(file.lower()).suffix in DECOMPRESSORS and format_suffix(file) == ".parquet":
        raise DataError(f"data {file!r} is compressed twice; unpack it to .parquet, which is compressed inside.")
    if format_suffix(file) not in READERS:
        compressed = ", ".join(DECOMPRESSORS)
        raise DataError(f"data {file!r} must end in {', '.join(READERS)}, and may in {compressed} after that.")
    return READERS[format_suffix(file)]
