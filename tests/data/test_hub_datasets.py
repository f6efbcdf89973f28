"""Data sets of the Hub."""

import time

import pandas
import pytest
from huggingface_hub import constants

from deepseek.data.hub_datasets import list_files
from deepseek.data.readers import documents, fingerprint, iter_documents
from deepseek.data.text_lines import DataError


@pytest.mark.parametrize("offline", [False, True])
def test_an_unreachable_hub_is_reported_within_seconds_and_the_builtin_text_is_offered(monkeypatch, offline):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    start = time.perf_counter()
    with pytest.raises(DataError, match=r"'nobody-here/no-such-data' cannot be fetched from the Hub \(.*'builtin'"):
        list_files("nobody-here/no-such-data")
    assert time.perf_counter() - start < 10


STORIES = [f"story {i} of a little fox" for i in range(30)]
ROWS = pandas.DataFrame({"id": range(30), "text": STORIES})
WRITERS = {
    "parquet": ROWS.to_parquet,
    "jsonl": lambda path: ROWS.to_json(path, orient="records", lines=True),
    "json": lambda path: ROWS.to_json(path, orient="records"),
    "csv": lambda path: ROWS.to_csv(path, index=False),
    "csv.gz": lambda path: ROWS.to_csv(path, index=False),
    "txt": lambda path: path.write_text("\n<|endoftext|>\n".join(STORIES)),
    "jsonl.xz": lambda path: ROWS.to_json(path, orient="records", lines=True),
}


@pytest.fixture
def hub(local_hub, monkeypatch):
    """A LocalHub with data sets."""
    monkeypatch.setattr("datasets.config.HF_ENDPOINT", local_hub.url)
    (local_hub.root / "datasets").mkdir()
    return local_hub


def write(hub, name, **files):
    """Adds a data set with files of the same stories: {name: suffix}."""
    folder = hub.root / "datasets" / "org" / name
    folder.mkdir(parents=True)
    for file, suffix in files.items():
        WRITERS[suffix](folder / f"{file}.{suffix}")
    return f"org/{name}"


def refusal(source):
    with pytest.raises(DataError) as caught:
        list(documents(source))
    return str(caught.value)


def test_files_of_every_suffix_are_read_and_need_no_network_afterwards(hub, monkeypatch):
    sources = [write(hub, suffix.replace(".", "-"), train=suffix, test=suffix) for suffix in WRITERS]
    first = {source: list(iter_documents(source)) for source in sources}
    assert all([text for text, _ in pairs] == STORIES for pairs in first.values())
    marks = {source: fingerprint(source) for source in sources}
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
    for offline in (False, True):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        for source in sources:
            assert fingerprint(source) == marks[source]
            assert list(iter_documents(source, first[source][9][1])) == first[source][10:]


def test_a_split_can_be_chosen_and_an_only_one_is_read(hub):
    one, two = write(hub, "one", test="txt"), write(hub, "two", test="txt", validation="txt")
    assert list(documents(one)) == list(documents(f"{two}::test")) == STORIES
    assert refusal(two) == f"data {two!r} has no split 'train'; it must be {two}::validation, {two}::test."


def test_the_hubs_refusals_of_data_say_what_to_do(hub, monkeypatch):
    assert "is not on the Hub; check the name" in refusal("org/nothing")
    write(hub, "gated", train="txt")
    hub.behaviour["org/gated"] = "gated"
    assert "log in with `hf auth login` or set HF_TOKEN" in refusal("org/gated")
    for subset in ("en", "de"):
        write(hub, f"many/{subset}", train="jsonl")
    configs = "".join(f"- config_name: {name}\n  data_files: {name}/train.jsonl\n" for name in ("en", "de"))
    (hub.root / "datasets" / "org" / "many" / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    assert refusal("org/many") == "data 'org/many' must name a subset: org/many:en, org/many:de."
    assert list(documents("org/many:de")) == STORIES
    monkeypatch.setattr("datasets.get_dataset_config_names", lambda name: 1 / 0)  # the network is gone meanwhile
    assert "data 'org/many' cannot be fetched from the Hub (" in refusal("org/many")
