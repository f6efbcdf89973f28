"""The Train tab's own functions, and the endpoints of training on the running app."""

import json
import os
import time
from dataclasses import asdict
from pathlib import Path

import gradio as gr
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from deepseek.training import runs
from deepseek.training.config import TrainConfig
from deepseek.training.metrics import History
from deepseek.ui.components import run_panels, run_view, train_form
from deepseek.ui.server import access_control


@pytest.fixture
def visitor(monkeypatch):
    """A reader of a public Space whose owner has a secret."""
    monkeypatch.setenv("SPACE_ID", "somebody/space")
    monkeypatch.setenv("OWNER_SECRET", "geheim ü")


def small(**changes):
    return TrainConfig(**{"preset": "tiny", "steps": 300, "root": "nowhere", "name": "mine", **changes})


def test_a_visitor_starts_a_small_run_only(visitor):
    access_control.check_access(small(), "")
    access_control.check_access(small(data=["nowhere/mine/data/text.txt"]), "wrong")
    for changes, named in (
        ({"steps": 1201}, "steps is 1201"),
        ({"preset": "demo"}, "preset is 'demo'"),
        ({"batch_size": 64}, "batch_size is 64"),
        ({"init_from": "assets/demo"}, "start_from is"),
        ({"tokenizer": "name/model"}, "tokenizer is"),
        ({"valid": ["/etc/passwd"]}, "valid is"),
        ({"data": ["builtin", "/etc/passwd"]}, "data is '/etc/passwd'"),
        ({"data": ["nowhere/mine/data/../config.json"]}, "data is"),
        ({"data": ["name/dataset"]}, "data is 'name/dataset'"),
    ):
        with pytest.raises(ValueError, match=named):
            access_control.check_access(small(**changes), "wrong")
        access_control.check_access(small(**changes), "geheim ü")


def test_without_a_secret_nobody_is_the_owner_and_at_home_everybody(monkeypatch):
    monkeypatch.setenv("SPACE_ID", "somebody/space")
    monkeypatch.delenv("OWNER_SECRET", raising=False)
    with pytest.raises(ValueError, match="steps"):
        access_control.check_access(small(max_steps=1201), "")
    monkeypatch.delenv("SPACE_ID")
    access_control.check_access(small(max_steps=1201, preset="seed", data=["name/dataset"]), "")


def values(**changes):
    """What the form sends for a config of defaults."""
    config = asdict(TrainConfig())
    lists = {name: "\n".join(map(str, config[name])) for name in ("shares", "valid")}
    form = {name: value for name, value in config.items() if name not in ("root", "data")}
    return {**form, **lists, "name": "mine", "source": train_form.SOURCES[0], "file": None, "hub": "", **changes}


def test_every_setting_has_a_control():
    """But the folder of all runs and the way of splitting one; "source" with "file" and "hub" stands for the data."""
    with gr.Blocks():
        controls = train_form.controls()
    assert set(controls) - set(asdict(TrainConfig())) == {"source", "file", "hub"}
    assert set(asdict(TrainConfig())) - set(controls) == {"root", "data", "shard"}
    suited = TrainConfig(**train_form.FORM_DEFAULTS["quick"])  # the first size
    for name in ("steps", "lr", "warmup", "bias_update_rate", "save_every", "eval_every", "sample_every", "precision"):
        assert controls[name].value == getattr(suited, name)


def test_the_form_becomes_the_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train_form.config(values(), "") == TrainConfig(name="mine")
    made = train_form.config(values(max_steps=7, eval_data="a.txt\n\n b.txt ", mixture_weights="1.0"), "")
    assert (made.max_steps, made.eval_data, made.mixture_weights) == (7, ["a.txt", "b.txt"], [1.0])
    made = train_form.config(values(source=train_form.SOURCES[2], hub=" name/data "), "")
    assert made.data == ["name/data"]
    for changes, named in (
        ({"steps": None}, "steps is None"),
        ({"lr": "x"}, "lr is 'x'"),
        ({"shares": "x"}, "shares is 'x'"),
        ({"name": "../up"}, "name is '../up'"),
        ({"source": train_form.SOURCES[1]}, "no file"),
    ):
        with pytest.raises(ValueError, match=named):
            train_form.config(values(**changes), "")


def test_an_uploaded_file_is_kept_with_its_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "notes.txt"
    file.write_text("some text")
    upload = dict(source=train_form.SOURCES[1], file=str(file))
    made = train_form.config(values(**upload), "")
    assert Path(made.data[0]).read_text() == "some text"
    assert Path(made.data[0]).parent == made.run / "data"
    with pytest.raises(ValueError, match="'mine'"):
        train_form.config(values(**upload), "")
    with pytest.raises(ValueError, match="name is"):
        train_form.config(values(**upload, name="../up"), "")
    assert not (tmp_path / "up").exists()
    monkeypatch.setattr(train_form, "LARGEST", 5)
    with pytest.raises(ValueError, match="1 GB at most"):
        train_form.config(values(**upload, name="other"), "")


def test_what_is_told_of_a_run():
    ended = dict(state="killed", reason="its process was killed or crashed", step=20, steps=80, begun=0.0)
    run = runs.Run(name="r", folder=Path("runs/r"), config={}, checkpoint=Path("runs/r/step-000010"), **ended)
    assert "killed or crashed" in run_view.trouble(run) and "step-000010" in run_view.trouble(run)
    assert "width: 25.0%" in run_view.progress(run, History())
    history = History()
    for step in range(1, 61):
        load = [[0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0.0, 0.0]]
        figures = dict(loss=1.0, load_balancing_loss=0.1, lr=0.1, grad_norm=1.0, tokens_per_second=10.0)
        history.add([{"step": step, **figures, "tokens": 10 * step, "load": load, "max_violation": [0, 1]}])
        assert ("Dead experts** " in run_view.alarm(history)) == (step >= 50)
    assert "layer 2 expert 2, layer 2 expert 3" in run_view.alarm(history)


def test_a_resumed_run_is_read_from_its_beginning(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "ROOT", str(tmp_path))
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "config.json").write_text('{"steps": 9}')
    figures = dict(
        load_balancing_loss=0, lr=0, grad_norm=0, tokens_per_second=1, tokens=1, load=[[1]], max_violation=[0]
    )

    def line(step, loss):
        return json.dumps({"step": step, "loss": loss, **figures}) + "\n"

    file = tmp_path / "r" / "metrics.jsonl"
    seen = run_view.RunView()
    file.write_text(line(1, 5) + line(2, 4) + line(3, 3) + '{"step": 4')
    seen.read("r")
    assert seen.history.series["loss"] == [5, 4, 3]
    file.write_text(line(1, 5) + line(2, 4.5))
    seen.read("r")
    assert seen.history.series["loss"] == [5, 4.5]


def test_the_probe_follows_the_newest_until_the_reader_goes_back(tmp_path, monkeypatch):
    """Whatever the page last told: a look may be under way while the slider is moved."""
    monkeypatch.setattr(runs, "ROOT", str(tmp_path))
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"steps": 9}')
    with gr.Blocks():
        p = run_panels.build()

    def place(name, probes):
        probe = {"tokens": ["a"], "layers": [1], "experts": 2, "indices": [[[0]]], "weights": [[[1.0]]]}
        made = [json.dumps({"step": step, "probe": probe}) + "\n" for step in range(probes)]
        (tmp_path / name / "metrics.jsonl").write_text("".join(made))
        new = run_panels.redraw(p, seen, run_view.RunView(), runs.find(tmp_path, name), "", 0, None)
        return new[p["at"]]["value"] if p["at"] in new else None

    seen = run_view.RunView()
    assert [place("a", 3), place("a", 3), place("a", 4)] == [2, None, 3]
    seen.back = 1
    assert [place("a", 4), place("a", 4), place("a", 5)] == [1, None, 1]
    seen.back = None
    assert [place("a", 5), place("a", 6)] == [4, 5]
    seen.back = 1
    assert place("b", 4) == 3, "in another run it begins at the newest"


def test_endpoints_start_tell_and_stop(training_app):
    url, root = training_app
    client = Client(url, verbose=False)
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    for name in ("/train_start", "/train_status", "/train_stop"):
        assert all(parameter["parameter_has_default"] for parameter in endpoints[name]["parameters"])
        assert endpoints[name]["description"]
    for wrong, named in (
        ({"steps": 0}, "steps is 0"),
        ({"preset": "huge"}, "preset is 'huge'"),
        ({"name": "a/b"}, "a/b"),
    ):
        with pytest.raises(AppError, match=named):
            client.predict(**wrong, api_name="/train_start")
    with pytest.raises(AppError, match="run is 'none'"):
        client.predict(name="none", api_name="/train_status")
    begun = client.predict(
        max_steps=100_000, max_seq_len=32, batch_size=2, lr=1e-3, save_every=10, api_name="/train_start"
    )
    assert begun["state"] == "running" and begun["steps"] == 100_000
    with pytest.raises(AppError, match=begun["name"]):
        client.predict(api_name="/train_start")
    until = time.monotonic() + 120
    while client.predict(api_name="/train_status")["step"] < 12 and time.monotonic() < until:
        time.sleep(1)
    client.predict(api_name="/train_stop")
    while client.predict(api_name="/train_status")["state"] == "running" and time.monotonic() < until:
        time.sleep(0.3)
    status = client.predict(name=begun["name"], api_name="/train_status")
    assert status["state"] == "stopped" and status["metrics"]["step"] == status["step"] >= 12
    assert os.path.basename(status["checkpoint"]) == f"step-{status['step']:06d}"
    assert (root / begun["name"]).is_dir()
