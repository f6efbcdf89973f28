"""The form of a new run: its controls, and the way from their values to a TrainConfig."""

from dataclasses import asdict
from pathlib import Path

import gradio as gr
import pytest

from deepseek.training.config import TrainConfig
from deepseek.ui.components import train_form


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    """No run yet: the form looks for runs in the working folder."""
    monkeypatch.chdir(tmp_path)


def form_values(**changes):
    """What the form sends for the default settings."""
    config = asdict(TrainConfig(name="mine"))
    lists = {name: "\n".join(map(str, config[name])) for name in ("mixture_weights", "eval_data")}
    fields = {name: value for name, value in config.items() if name not in ("root", "data")}
    return {**fields, **lists, "source": train_form.BUILTIN, "file": None, "hub": "", **changes}


def test_every_setting_has_a_control():
    """Except `root` and `shard`; "source", "file" and "hub" stand for `data`."""
    with gr.Blocks():
        controls = train_form.build()
    assert set(controls) - set(asdict(TrainConfig())) == {"source", "file", "hub"}
    assert set(asdict(TrainConfig())) - set(controls) == {"root", "data", "shard"}
    expected = TrainConfig(**train_form.FORM_DEFAULTS["quick"])  # the first preset
    for name in (*train_form.PRESET_FIELDS, "precision"):
        assert controls[name].value == getattr(expected, name)


def test_parse_builds_the_settings_and_names_what_is_wrong():
    assert train_form.parse(form_values(), "") == TrainConfig(name="mine")
    config = train_form.parse(form_values(max_steps=7, eval_data="a.txt\n\n b.txt ", mixture_weights="1.0"), "")
    assert (config.max_steps, config.eval_data, config.mixture_weights) == (7, ["a.txt", "b.txt"], [1.0])
    assert train_form.parse(form_values(source=train_form.HUB, hub=" name/data "), "").data == ["name/data"]
    for changes, message in (
        ({"max_steps": None}, "max_steps is None"),
        ({"lr": "x"}, "lr is 'x'"),
        ({"mixture_weights": "x"}, "mixture_weights is 'x'"),
        ({"name": "../up"}, "name is '../up'"),
        ({"source": train_form.UPLOAD}, "no file"),
    ):
        with pytest.raises(ValueError, match=message):
            train_form.parse(form_values(**changes), "")


def test_an_uploaded_file_is_copied_into_the_run(tmp_path, monkeypatch):
    file = tmp_path / "notes.txt"
    file.write_text("some text")
    upload = dict(source=train_form.UPLOAD, file=str(file))
    config = train_form.parse(form_values(**upload), "")
    assert Path(config.data[0]).read_text() == "some text"
    assert Path(config.data[0]).parent == config.run / "data"
    file.write_text("other text")
    config = train_form.parse(form_values(**upload), "")  # the run failed before its first checkpoint: its name is free
    assert Path(config.data[0]).read_text() == "other text"
    (config.run / "notes.txt").touch()
    with pytest.raises(ValueError, match="name is 'mine', but '.*mine' holds 'notes.txt', of no run"):
        train_form.parse(form_values(**upload), "")
    assert Path(config.data[0]).read_text() == "other text"
    with pytest.raises(ValueError, match="name is"):
        train_form.parse(form_values(**upload, **{"name": "../up"}), "")
    assert not (tmp_path / "up").exists()
    monkeypatch.setattr(train_form, "MAX_UPLOAD_BYTES", 5)
    with pytest.raises(ValueError, match="at most 1 GB"):
        train_form.parse(form_values(**upload, **{"name": "other"}), "")


def test_the_columns_of_an_uploaded_table_are_offered_and_the_chosen_one_is_read(tmp_path):
    table, text = tmp_path / "a.csv", tmp_path / "a.txt"
    table.write_text("id,content,title\n1,a fox,A\n")
    text.write_text("a fox")
    assert train_form.table_columns(str(table), "auto") == ("content", ["id", "content", "title"])
    assert train_form.table_columns(str(text), "auto") == ("", [])
    table.write_bytes("id,content\n1,d\xe9j\xe0\n".encode("cp1252"))
    assert train_form.table_columns(str(table), "auto") == ("", []), "Start says why"
    assert train_form.table_columns(str(table), "cp1252") == ("content", ["id", "content"])
    upload = dict(source=train_form.UPLOAD, file=str(table), encoding="cp1252")
    with pytest.raises(ValueError, match="data 'a.csv' has no column 'story'; its columns are id, content"):
        train_form.parse(form_values(**upload, text_column="story"), "")
    with pytest.raises(ValueError, match="data 'a.csv' is not UTF-8 text at byte 14; .* --encoding cp1252 reads it"):
        train_form.parse(form_values(**{**upload, "encoding": "auto"}), "")
    assert train_form.parse(form_values(**upload, text_column=None), "").text_column == ""
