"""What the page reads from a run's files, the sentences it shows, and the panels it redraws."""

import json
from pathlib import Path

import gradio as gr

from deepseek.training import runs
from deepseek.training.metrics import History
from deepseek.ui.components import run_view


def metrics(step, loss=1.0, load=((1,),), max_violation=(0,)):
    """One line of metrics.jsonl."""
    values = dict(load_balancing_loss=0.1, lr=0.1, grad_norm=1.0, tokens_per_second=10.0, tokens=10 * step)
    return {"step": step, "loss": loss, "load": load, "max_violation": max_violation, **values}


def test_progress_failure_and_dead_experts():
    killed = dict(state="killed", reason="its process was killed or crashed", step=20, steps=80, started_at=0.0)
    run = runs.Run(name="r", folder=Path("runs/r"), config={}, checkpoint=Path("runs/r/step-000010"), **killed)
    assert "killed or crashed" in run_view.failure(run) and "step-000010" in run_view.failure(run)
    assert "width: 25.0%" in run_view.progress(run, History())
    history = History()
    for step in range(1, 61):
        history.add([metrics(step, load=[[0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0.0, 0.0]], max_violation=[0, 1])])
        assert ("Dead experts** " in run_view.dead_expert_alert(history)) == (step >= 50)
    assert "layer 2 expert 2, layer 2 expert 3" in run_view.dead_expert_alert(history)


def test_a_resumed_run_is_read_again_from_its_first_step(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "ROOT", str(tmp_path))
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "config.json").write_text('{"steps": 9}')  # as version 0.1 wrote it
    file = tmp_path / "r" / "metrics.jsonl"

    def losses(lines, tail=""):
        file.write_text("".join(json.dumps(metrics(*line)) + "\n" for line in lines) + tail)
        view.read("r")
        return view.history.series["loss"]

    view = run_view.RunView()
    assert losses([(1, 5), (2, 4), (3, 3)], '{"step": 4') == [5, 4, 3]
    assert losses([(1, 5), (2, 4.5)]) == [5, 4.5]


def test_the_probe_follows_the_newest_until_the_user_chooses_another(tmp_path, monkeypatch):
    """Whatever the slider's value in the page: a poll may be under way while it is moved."""
    monkeypatch.setattr(runs, "ROOT", str(tmp_path))
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"max_steps": 9}')
    with gr.Blocks():
        p = run_view.build()

    def probe_index(name, num_probes):
        probe = {"tokens": ["a"], "layers": [1], "experts": 2, "indices": [[[0]]], "weights": [[[1.0]]]}
        lines = [json.dumps({"step": step, "probe": probe}) + "\n" for step in range(num_probes)]
        (tmp_path / name / "metrics.jsonl").write_text("".join(lines))
        updates = run_view.redraw(p, view, run_view.RunView(), runs.find(tmp_path, name), "", 0, None)
        return updates[p["probe index"]]["value"] if p["probe index"] in updates else None

    view = run_view.RunView()
    assert [probe_index("a", 3), probe_index("a", 3), probe_index("a", 4)] == [2, None, 3]
    view.probe_index = 1
    assert [probe_index("a", 4), probe_index("a", 4), probe_index("a", 5)] == [1, None, 1]
    view.probe_index = None
    assert [probe_index("a", 5), probe_index("a", 6)] == [4, 5]
    view.probe_index = 1
    assert probe_index("b", 4) == 3, "in another run it begins at the newest"
