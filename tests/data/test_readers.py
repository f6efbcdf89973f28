"""Sources that are no single file: the text that ships with Python, and data sets of the Hub."""

import shutil
import sys
import sysconfig
import time
from itertools import islice
from pathlib import Path

import pandas
import pytest
from huggingface_hub import constants

from deepseek.data.file_formats import DataError
from deepseek.data.readers import documents, fingerprint, iter_documents


@pytest.mark.parametrize("subset", ["", ":default"])
def test_a_hub_data_set_is_read_file_by_file(tmp_path, monkeypatch, subset):
    """A local folder with the same files, which the same builder resolves."""
    folder = tmp_path / "somebody" / "stories" / "data"
    folder.mkdir(parents=True)
    for shard in range(3):
        rows = pandas.DataFrame({"n": range(100), "text": [f"shard {shard} row {i}" for i in range(100)]})
        rows.to_parquet(folder / f"train-{shard:05}-of-00003.parquet", row_group_size=30)
    monkeypatch.chdir(tmp_path)
    found = list(iter_documents("somebody/stories" + subset))
    assert [text for text, _ in found] == [f"shard {shard} row {i}" for shard in range(3) for i in range(100)]
    for number in (0, 29, 30, 99, 100, 215, 299):
        assert list(iter_documents("somebody/stories" + subset, found[number][1])) == found[number + 1 :]


@pytest.mark.parametrize("offline", [False, True])
def test_an_unreachable_hub_is_reported_within_seconds_and_the_builtin_text_is_offered(monkeypatch, offline):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    start = time.perf_counter()
    with pytest.raises(DataError, match=r"'nobody-here/no-such-data' cannot be fetched from the Hub \(.*'builtin'"):
        documents("nobody-here/no-such-data")
    assert time.perf_counter() - start < 10


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
