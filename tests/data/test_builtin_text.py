"""The text that ships with Python: the same on every machine, and resumed at any position."""

import shutil
import sys
import sysconfig
from itertools import islice
from pathlib import Path

from deepseek.data.readers import documents, fingerprint, iter_documents


def texts(source):
    return list(documents(source))


def test_the_builtin_source_needs_no_file():
    pairs = list(islice(iter_documents("builtin"), 300))
    found = [text for text, _ in pairs]
    assert len(found) == 300 and all(text.strip() for text in found)
    assert any("statement\n***" in text for text in found) and any("import " in text for text in found)
    assert list(islice(iter_documents("builtin", pairs[249][1]), 50)) == pairs[250:]


def test_files_that_a_machine_adds_to_the_library_are_not_in_the_builtin_source(tmp_path, monkeypatch):
    """Two copies of a part of the library; the second also has files that installers put there."""
    library = Path(sysconfig.get_path("stdlib"))
    for package in ("json", "email"):
        shutil.copytree(library / package, tmp_path / "clean" / package)
    shutil.copytree(tmp_path / "clean", tmp_path / "extended")
    for name in ("_sysconfigdata__linux.py", "sitecustomize.py", "config-3.12/a.py", "site-packages/pip/a.py"):
        file = tmp_path / "extended" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("# not of the library\n" * 99)
    sources = {}
    for name in ("clean", "extended"):
        monkeypatch.setattr("sysconfig.get_path", lambda _, name=name: str(tmp_path / name))
        sources[name] = texts("builtin"), fingerprint("builtin")
    assert sources["clean"] == sources["extended"] and sys.version.split()[0] in sources["clean"][1]
    (tmp_path / "extended" / "json" / "tool.py").unlink()
    assert fingerprint("builtin") != sources["clean"][1], "a library without one of its files is another source"
