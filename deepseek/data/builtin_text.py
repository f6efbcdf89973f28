"""The text that ships with Python, a source that needs no network."""

import inspect
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from deepseek.data.file_formats import MAX_DOCUMENT_CHARACTERS

EXCLUDED_LIBRARY_PARTS = {"test", "tests", "idle_test", "lib2to3", "site-packages", "__pycache__", "topics.py"}


def library_texts() -> tuple[list[str], list[tuple[str, Path]]]:
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


def read_builtin(start: int) -> Iterator[tuple[str, int]]:
    """The text that ships with Python: its language reference, then docstring and source of every library module.

    It differs between versions of Python.
    """
    topics, files = library_texts()
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
