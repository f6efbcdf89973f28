"""Text sources: `documents(source)`, and `iter_documents(source, position)`, which resumes at any position.

- a source is "builtin", a file (.txt, .jsonl, .csv, each also as .xz or .gz; .parquet), or a Hub data set, which is
  read file by file in the same way
- "builtin" is the text that ships with Python: its language reference, then docstring and source of every library
  module; it needs no network and differs between versions of Python
- a position is a JSON value; resuming from it parses no earlier document again (.xz and .gz files are decompressed
  from their start, and .parquet files are decoded from the start of the position's row group)
"""

import hashlib
import inspect
import platform
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from deepseek.data.file_formats import DECOMPRESSORS, MAX_DOCUMENT_CHARACTERS, READERS, DataError, file_reader

BUILTIN = "builtin"
EXCLUDED_LIBRARY_PARTS = {"test", "tests", "idle_test", "lib2to3", "site-packages", "__pycache__", "topics.py"}


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
    return _read_files([(file, file_reader(file)) for file in _files(source)], *position or (0, None))


def fingerprint(source: str) -> str:
    """Tells whether a source has changed: of a file, its size and a hash of its two ends; else a hash of names."""
    if source == BUILTIN:
        topics, files = _library_texts()
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
        advice = f"{BUILTIN!r} and files need no network"
        raise DataError(f"data {source!r} cannot be fetched from the Hub ({reason[:300]}); {advice}.") from error
    if "train" not in files:
        raise DataError(f"data {source!r} has no split 'train'; its splits are {', '.join(files)}.")
    return list(files["train"])


def _read_files(files, start: int, file_position) -> Iterator[tuple[str, list]]:
    for index, (file, reader) in enumerate(files[start:], start):
        for text, end in reader(file, file_position):
            yield text, [index, end]
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
