"""Sources that are no single file: the text that ships with Python, and folders."""

import shutil
import sys
import sysconfig
from itertools import islice
from pathlib import Path

import pandas
import pytest

from deepseek.data.readers import documents, fingerprint, iter_documents
from deepseek.data.text_lines import DataError, note


def test_a_folder_is_read_file_by_file(tmp_path, caplog):
    """In the order of the names; what cannot be read and what is hidden is skipped."""
    (tmp_path / "b" / ".git").mkdir(parents=True)
    for shard in range(3):
        rows = pandas.DataFrame({"n": range(100), "text": [f"shard {shard} row {i}" for i in range(100)]})
        rows.to_parquet(tmp_path / "b" / f"train-{shard:05}-of-00003.parquet", row_group_size=30)
    (tmp_path / "a.md").write_text("# First")
    (tmp_path / "a.csv").write_text("text\n")
    (tmp_path / "b" / "size.json").write_text('{"rows": 300}')
    for name in ("photo.jpg", "b/.git/a.txt", ".DS_Store"):
        (tmp_path / name).write_text("none of it")
    note.cache_clear()
    caplog.set_level("INFO", "deepseek")
    found = list(iter_documents(str(tmp_path)))
    assert [text for text, _ in found] == [
        "# First",
        *(f"shard {shard} row {i}" for shard in range(3) for i in range(100)),
    ]
    for told in (
        "6 of 7 files are read, those that end in .txt",
        "a.csv' holds no rows. It is left",
        "size.json' has no col",
    ):
        assert any(told in message for message in caplog.messages)
    for number in (0, 1, 29, 30, 99, 100, 215, 299):
        assert list(iter_documents(str(tmp_path), found[number][1])) == found[number + 1 :]
    before = fingerprint(str(tmp_path))
    (tmp_path / "a.md").write_text("# First?")
    assert fingerprint(str(tmp_path)) != before
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no file that ends in .txt, .md"):
        documents(str(tmp_path / "empty"))


@pytest.mark.parametrize("source", ["missing.txt", "", "a\0b", "x" * 5000, "/dev/null", "name/data set", "../a/b/c"])
def test_a_source_that_is_not_there_is_named(source):
    with pytest.raises(DataError, match="is not there; it must be 'builtin', a file, a folder or a Hub id"):
        documents(source)


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
        sources[name] = list(documents("builtin")), fingerprint("builtin")
    assert sources["clean"] == sources["extended"] and sys.version.split()[0] in sources["clean"][1]
    (tmp_path / "extended" / "json" / "tool.py").unlink()
    assert fingerprint("builtin") != sources["clean"][1], "a library without one of its files is another source"
