"""Text sources: `documents(source)`, and `iter_documents(source, position)`, which resumes at any position.

- a source is "builtin", a file of one of the `file_formats`, a folder of such files, or a data set of the Hub
- "builtin" is the text that ships with Python: its language reference, then docstring and source of every library
  module; it needs no network and differs between versions of Python
- a position is a JSON value; resuming from it parses no earlier document again (compressed files are decompressed
  from their start, and .parquet files are decoded from the start of the position's row group)
"""

import hashlib
import inspect
import os
import platform
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from deepseek.data import hub_datasets
from deepseek.data.file_formats import MAX_DOCUMENT_CHARACTERS, READERS, file_reader, format_suffix, iter_file
from deepseek.data.text_lines import DECOMPRESSORS, DEFAULT_OPTIONS, DataError, NoText, ReadOptions, note

BUILTIN = "builtin"
EXCLUDED_LIBRARY_PARTS = {"test", "tests", "idle_test", "lib2to3", "site-packages", "__pycache__", "topics.py"}


def documents(source: str, options: ReadOptions = DEFAULT_OPTIONS) -> Iterator[str]:
    """The documents of a source, in order. `source` is "builtin", the path of a file or a folder, or a Hub id.

    A .txt file is split at lines that hold only <|endoftext|>. Of a table (.jsonl, .json, .csv, .parquet) one column is
    read, see `columns`. A Hub id is name/dataset, name/dataset:subset or name/dataset:subset:split. Raises DataError.
    """
    return (text for text, _ in iter_documents(source, options=options))


def iter_documents(source: str, position=None, options: ReadOptions = DEFAULT_OPTIONS) -> Iterator[tuple[str, object]]:
    """Yields (document, position after it) from `position` on, or from the start if it is None. Raises DataError."""
    if source == BUILTIN:
        return _read_builtin(position or 0)
    files = source_files(source)
    for file in files:
        file_reader(file)  # before the first is read
    return _read_files(files, *position or (0, None), options)


def fingerprint(source: str) -> str:
    """Tells whether a source has changed: of a file, its size and a hash of its two ends; else a hash of names.

    Raises DataError.
    """
    if source == BUILTIN:
        topics, files = _library_texts()
        names = [(name, path.stat().st_size) for name, path in files]
        python = f"Python {platform.python_version()}"
        return f"{len(topics) + len(files)} texts of {python}, sha256 of their names {_short_sha256(names)}"
    files = source_files(source)
    if files != [source]:
        if os.path.isdir(source):
            names = [(os.path.relpath(file, source), os.path.getsize(file)) for file in files]
        else:
            names = [re.sub("@[0-9a-f]{40}", "", file) for file in files]  # without the revision
        return f"{len(names)} files, sha256 of their names {_short_sha256(names)}"
    try:
        with open(source, "rb") as file:
            size, ends = file.seek(0, 2), hashlib.sha256()
            for offset in (0, max(0, size - 65536)):
                file.seek(offset)
                ends.update(file.read(65536))
    except OSError as error:
        raise DataError(f"data {source!r} cannot be read: {error.strerror}.") from error
    return f"{size:,} bytes, sha256 of its ends {ends.hexdigest()[:12]}"


def _short_sha256(names: list) -> str:
    return hashlib.sha256(str(names).encode()).hexdigest()[:12]


def source_files(source: str) -> list[str]:
    """The files of a source other than "builtin": paths, or addresses of files of the Hub. Raises DataError."""
    if os.path.isfile(source):
        return [source]
    if os.path.isdir(source):
        return _folder_files(source)
    if re.fullmatch(hub_datasets.ID, source) and Path(source).suffix not in (*DECOMPRESSORS, *READERS):
        return hub_datasets.list_files(source)
    allowed = f"{BUILTIN!r}, a file, a folder or a Hub id such as name/dataset"
    raise DataError(f"data {source!r:.300} is not there; it must be {allowed}.")


def _folder_files(folder: str) -> list[str]:
    """The files in a folder and its subfolders that can be read; hidden ones and others are skipped."""
    paths = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
    paths = [path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    files = [str(path) for path in paths if format_suffix(path.name) in READERS]
    if not files:
        raise DataError(f"data {folder!r} holds no file that ends in {', '.join(READERS)}.")
    if len(files) < len(paths):
        note(f"data {folder!r}: {len(files)} of {len(paths)} files are read, those that end in {', '.join(READERS)}.")
    return files


def _read_files(files: list[str], start: int, file_position, options: ReadOptions) -> Iterator[tuple[str, list]]:
    for index, file in enumerate(files[start:], start):
        try:
            for text, end in iter_file(hub_datasets.download(file), file_position, options):
                yield text, [index, end]
        except NoText as error:
            if len(files) == 1:
                raise
            note(f"{error} It is left out.")
        file_position = None


def _library_texts() -> tuple[list[str], list[tuple[str, Path]]]:
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
    topics, files = _library_texts()
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
