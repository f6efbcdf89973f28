"""Tables: the rows of .jsonl, .json, .csv and .parquet files, and the text in them.

A function `rows(file, position, options, columns)` yields (row, position after it); of the row only `columns` are needed.
"""

import csv
import itertools
import json
import re
from collections.abc import Iterator

from deepseek.data.columns import choose_text_column, column_parts, is_number, row_text
from deepseek.data.text_lines import (
    DataError,
    NoText,
    ReadOptions,
    check_compression,
    iter_lines,
    line_number,
    note,
    readable,
)

MAX_ROW_BYTES = 1 << 24
SAMPLE_ROWS, SAMPLE_CHARACTERS = 1000, 1 << 20  # of a table's start, by which its text column is chosen
MAX_NAME_CHARACTERS = 100  # of a column of a .csv file; a longer one is text of a file without names
BETWEEN_OBJECTS = re.compile(r"[ \t\r\n,\[\]]*")


def json_rows(file: str, offset: int, options: ReadOptions, columns=None) -> Iterator[tuple[dict, int]]:
    """Objects, one a line or over several lines, or the items of an array: brackets and commas between them are skipped.

    Raises DataError.
    """
    decoder, text, start, failed_size, error = json.JSONDecoder(), "", 0, 0, None
    for piece, piece_end in itertools.chain(iter_lines(file, offset, 1 << 20, options), [("", 0)]):
        text, start = text[start:] + piece, 0
        offset = piece_end - len(text.encode()) if piece else offset
        while not piece or len(text) - start >= 2 * failed_size:  # so that a long row is not parsed once per piece
            begin = BETWEEN_OBJECTS.match(text, start).end()
            offset, start = offset + begin - start, begin
            if start == len(text):
                break
            try:
                row, end = decoder.raw_decode(text, start)
                if not isinstance(row, dict):
                    raise ValueError("not an object")
            except (ValueError, RecursionError) as e:
                failed_size, error = len(text) - start, e
                break  # perhaps the object goes on
            offset, start, failed_size = offset + len(text[start:end].encode()), end, 0
            yield row, offset
        if failed_size > MAX_ROW_BYTES:
            break
    if start < len(text):
        byte = offset + len(text[start : getattr(error, "pos", start)].encode())
        where = f"line {line_number(file, byte, options)} (byte {byte})"
        raise DataError(f"data {file!r} must hold JSON objects; {where}: {getattr(error, 'msg', error)}.") from error


def csv_rows(file: str, offset: int, options: ReadOptions, columns=None) -> Iterator[tuple[dict, int]]:
    """Rows separated by commas, or by what separates the names in the first line. Blank rows are skipped."""
    csv.field_size_limit(MAX_ROW_BYTES)  # the default is 128 KiB, less than a book
    start = end = 0  # of the current row

    def refuse(reason):
        raise DataError(f"data {file!r} has a bad row in line {line_number(file, start, options)}: {reason}.")

    def lines(offset):
        nonlocal end
        for line, line_end in iter_lines(file, offset, MAX_ROW_BYTES, options):
            if line_end - end >= MAX_ROW_BYTES - 4 and not line.endswith("\n"):
                refuse(f"it has more than {MAX_ROW_BYTES >> 20} MiB")
            end = line_end
            yield line

    def records(offset, separator):
        nonlocal start, end
        start = end = offset
        try:
            for record in csv.reader(lines(offset), delimiter=separator, strict=True):
                if "".join(record).strip():
                    yield record
                start = end
        except csv.Error as error:
            refuse(f"{error}; a quote may not be closed")

    first_line = next((line for line in lines(0) if line.strip()), "")
    separator = max(",;\t|", key=first_line.count)
    names = next(records(0, separator), [])
    if any(name and is_number(name) or len(name) > MAX_NAME_CHARACTERS for name in names):  # a row, not names
        names, end = [f"column {number}" for number in range(1, len(names) + 1)], 0
    for record in records(offset or end, separator):
        if any(record[len(names) :]) or len(record) < len(names):
            reason = f"it has {len(record)} fields in place of {len(names)}, separated by {separator!r}"
            refuse(f"{reason}; put a text that holds {separator!r} into double quotes")
        yield dict(zip(names, record)), end


def parquet_rows(file: str, start: int, options: ReadOptions, columns=None) -> Iterator[tuple[dict, int]]:
    """A position is the number of rows before it. Columns that hold no text are left out. Raises DataError."""
    import pyarrow  # slow to import
    from pyarrow.parquet import ParquetFile

    with readable(file, pyarrow.ArrowException, UnicodeDecodeError), open(file, "rb") as raw:
        table = ParquetFile(raw)
        types = {field.name: str(field.type) for field in table.schema_arrow}
        names = [name for name, dtype in types.items() if "string" in dtype and "binary" not in dtype]
        if not names:
            raise _no_text_column(file, types)
        names = [name for name in names if columns is None or name in columns]
        paths = [table.schema.column(index).path + "." for index in range(len(table.schema))]
        leaves = [index for index, path in enumerate(paths) if path.startswith(tuple(f"{name}." for name in names))]
        num_rows = 0
        for index in range(table.num_row_groups):
            group = table.metadata.row_group(index)
            for chunk in map(group.column, leaves):
                check_compression(file, chunk.total_uncompressed_size, chunk.total_compressed_size, MAX_ROW_BYTES)
            num_rows += group.num_rows
            if num_rows <= start:
                continue
            row = num_rows - group.num_rows
            for batch in table.iter_batches(batch_size=16, row_groups=[index], columns=names):
                for values in batch.slice(min(len(batch), max(0, start - row))).to_pylist():
                    start += 1
                    yield values, start
                row += len(batch)


def read_table(rows, file: str, position, options: ReadOptions) -> Iterator[tuple[str, list]]:
    """The text column of `rows`, a table."""
    offset, column = position if isinstance(position, list) else (position or 0, None)
    if column is None:
        column, names = text_column(rows, file, options)
        others = ", ".join(name for name in names if name not in column_parts(column, names))
        if others and not options.text_column:
            note(f"data {file!r}: column {column!r} is read; --text-column may name another: {others}.")
    for row, end in rows(file, offset, options, column.split("+") + [column]):
        try:
            text = row_text(row, column, options.render_chat)
        except ValueError as error:  # of messages that the chat template refuses
            note(f"data {file!r}: a chat is left out: {error}")
            continue
        if text:
            yield text, [end, column]


def text_column(rows, file: str, options: ReadOptions) -> tuple[str, list[str]]:
    """(the text column, all columns) of a table. Raises DataError where there is no such column."""
    sample, num_characters = [], 0
    for row, _ in rows(file, 0, options):
        sample.append(row)
        num_characters += len(str(row))
        if len(sample) == SAMPLE_ROWS or num_characters >= SAMPLE_CHARACTERS:
            break
    if not sample:
        raise NoText(f"data {file!r} holds no rows.")
    names = list(dict.fromkeys(str(name) for row in sample for name in row))
    column = options.text_column or choose_text_column(sample)
    if not column:
        raise _no_text_column(file, names)
    if missing := [name for name in column_parts(column, names) if name not in names]:
        raise DataError(f"data {file!r} has no column {missing[0]!r:.80}; its columns are {', '.join(names)}.")
    return column, names


def _no_text_column(file: str, names) -> NoText:
    return NoText(f"data {file!r} has no column of text; its columns are {', '.join(names)}.")
