"""Sources that are no single file: data sets of the Hub, and one that cannot be reached."""

import time

import pandas
import pytest
from huggingface_hub import constants

from deepseek.data.file_formats import DataError
from deepseek.data.readers import documents, iter_documents


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
