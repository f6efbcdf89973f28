"""The text of a file, line by line from any byte on: decompressed, and in any encoding."""

import codecs
import contextlib
import functools
import gzip
import io
import itertools
import logging
import lzma
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

CHUNK_BYTES = 1 << 20
MAX_COMPRESSION_RATIO = 200  # uncompressed bytes per compressed byte; text compresses less, decompression bombs more
ENCODINGS = [
    "auto",
    "utf-8",
    "utf-16-le",
    "utf-16-be",
    "cp1252",
    "cp1250",
    "cp1251",
    "shift_jis",
    "gb18030",
    "big5",
    "euc_kr",
]
BYTE_ORDER_MARKS = {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


class DataError(ValueError):
    """A source that cannot be read; the message is one sentence that names the source and the reason."""


class NoText(DataError):
    """A table without rows, or without a column of text."""


@dataclass(frozen=True)
class ReadOptions:
    """How files are read: the text column of tables ("": chosen by name), one of ENCODINGS (auto: UTF-8, or by its mark), and
    what makes a text of the messages of a chat (None: lines "role: content").
    """

    text_column: str = ""
    encoding: str = "auto"
    render_chat: Callable[[list[dict]], str] | None = None


@functools.cache
def note(message: str) -> None:
    """Tells the user something once, through the logger "deepseek"."""
    logging.getLogger("deepseek").info(message)


def _open_zst(raw):
    import pyarrow  # slow to import

    return io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd"))


DEFAULT_OPTIONS = ReadOptions()
DECOMPRESSORS = {".xz": lzma.open, ".gz": gzip.open, ".zst": _open_zst}


@contextlib.contextmanager
def readable(file: str, *errors):
    """Raises DataError for what reading a bad file raises: OSError and `errors`."""
    try:
        yield
    except (lzma.LZMAError, EOFError, zlib.error) as error:
        raise DataError(f"data {file!r} is not a whole compressed file: {error}.") from error
    except (OSError, *errors) as error:
        raise DataError(f"data {file!r} cannot be read: {' '.join(str(error).split()).rstrip('.')}.") from error


@contextlib.contextmanager
def _open(file: str, encoding: str):
    """Gives (content, raw file): content is decompressed, and UTF-8 unless it is in no known encoding."""
    with readable(file), open(file, "rb") as raw, contextlib.ExitStack() as stack:
        decompress = DECOMPRESSORS.get(Path(file).suffix.lower())
        content = stack.enter_context(decompress(raw)) if decompress else raw
        if encoding == "auto":
            encoding = BYTE_ORDER_MARKS.get(content.peek(2)[:2], "utf-8")
        if encoding != "utf-8":
            utf8 = stack.enter_context(tempfile.TemporaryFile())
            _convert(file, content, raw, encoding, utf8)
            content = utf8
        yield content, raw


def _convert(file: str, content, raw, encoding: str, utf8) -> None:
    """Writes the text of `content` to the file `utf8`."""
    reader = io.TextIOWrapper(content, encoding, newline="")
    try:
        while text := reader.read(CHUNK_BYTES):
            utf8.write(text.encode())
            if content is not raw:
                check_compression(file, utf8.tell(), raw.tell(), 4 * CHUNK_BYTES)
    except UnicodeError as error:
        raise DataError(f"data {file!r} is not {encoding} text: {error}.") from error
    reader.detach()  # which would close the file
    utf8.seek(0)


def check_compression(file: str, size: int, compressed_size: int, min_size: int) -> None:
    """Refuses a decompression bomb of more than `min_size` bytes."""
    if size > max(min_size, MAX_COMPRESSION_RATIO * compressed_size):
        raise DataError(f"data {file!r} unpacks to {MAX_COMPRESSION_RATIO} times its size and more; text does not.")


def iter_lines(file: str, offset: int, max_bytes: int, options: ReadOptions) -> Iterator[tuple[str, int]]:
    """Yields (line, byte offset after it) from byte `offset` of the UTF-8 text on, a line of more than `max_bytes` in pieces.

    Raises DataError.
    """
    with _open(file, options.encoding) as (content, raw):
        _skip(content, offset)
        partial_character = b""  # at the end of a piece
        while piece := content.readline(max_bytes):
            if Path(file).suffix.lower() in DECOMPRESSORS:
                check_compression(file, offset, raw.tell(), 4 * CHUNK_BYTES)
            line = partial_character + piece
            if (nul := line.find(0)) >= 0:
                raise DataError(f"data {file!r} is not text: byte {offset + nul} is NUL{_encoding_hint(line)}.")
            try:
                text, length = codecs.utf_8_decode(line, "strict", False)
            except UnicodeDecodeError as error:
                reason = f"at byte {offset + error.start}{_encoding_hint(line)}"
                raise DataError(f"data {file!r} is not UTF-8 text {reason}.") from error
            if offset == 0:
                text = text.removeprefix("\ufeff")
            offset, partial_character = offset + length, line[length:]
            yield text, offset
        if partial_character:
            raise DataError(f"data {file!r} is not UTF-8 text at byte {offset}.")


def _skip(content, offset: int) -> None:
    if content.seekable():
        content.seek(offset)
    else:
        while skipped := offset and len(content.read(min(offset, CHUNK_BYTES))):
            offset -= skipped


def _encoding_hint(line: bytes) -> str:
    """Names the encoding that a line that is not UTF-8 is probably in."""
    if 0.3 < line.count(0) / len(line) < 0.7:
        return f"; if it is UTF-16, --encoding utf-16-{'le' if line.find(0) % 2 else 'be'} reads it"
    if not any(byte < 32 and byte not in b"\t\n\r\f\x1a\x1b" for byte in line):
        return "; if it is of Windows (CP1252), --encoding cp1252 reads it"
    return ""


def line_number(file: str, offset: int, options: ReadOptions) -> int:
    """The line, from 1, that holds byte `offset`."""
    before = itertools.takewhile(lambda pair: pair[1] <= offset, iter_lines(file, 0, 1 << 24, options))
    return 1 + sum(line.endswith("\n") for line, _ in before)
