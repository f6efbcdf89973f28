"""What the page reads from a run's files, the sentences it shows, and the panels it redraws."""

import dataclasses
import json
from pathlib import Path

import gradio as gr

from deepseek.checkpoints import saving
from deepseek.training import runs
from deepseek.training.metrics import History
from deepseek.ui.components import run_view


def metrics(step, loss=1.0, load=((1,),), max_violation=(0,)):
    """One line of metrics.jsonl."""
    values = dict(load_balancing_loss=0.1, lr=0.1, grad_norm=1.0, tokens_per_second=10.0, tokens=10 * step)
    return {"step": step, "loss": loss, "load": load, "max_violation": max_violation, **values}


def test_progress_and_failure():
    killed = dict(state="killed", reason="its process was killed or crashed", step=20, steps=80, started_at=0.0)
    checkpoints = dict(checkpoint=Path("runs/r/step-000010"), best=None)
    run = runs.Run(name="r", folder=Path("runs/r"), config={"seed": 0}, **checkpoints, **killed)
    assert "killed or crashed" in run_view.failure(run) and "step-000010" in run_view.failure(run)
    damaged = dataclasses.replace(run, state="damaged", reason="its config.json is gone.", checkpoint=None)
    expected = (
        "The run is damaged: its config.json is gone. It has no checkpoint yet: resume it from its beginning, or "
    )
    assert run_view.failure(damaged).startswith(expected)
    assert run_view.failure(dataclasses.replace(damaged, config={})).endswith(
        "gone. Mend the file to resume it; its checkpoints open also now."
    )
    assert "width: 25.0%" in run_view.progress(run, History())


def test_a_resumed_run_is_read_again_from_its_first_step(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "ROOT", str(tmp_path))
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "config.json").write_text('{"steps": 9}')  # as version 0.1 wrote it
    file = tmp_path / "r" / "metrics.jsonl"

    def losses(lines, tail=""):
        file.write_text("".join(json.dumps(metrics(*line)) + "\n" for line in lines) + tail)
        return reader.read("r").series["loss"]

    reader = run_view.RunReader()
    assert losses([(1, 5), (2, 4), (3, 3)], '{"step": 4') == [5, 4, 3]
    assert losses([(1, 5), (2, 4.5)]) == [5, 4.5]
    assert losses([(1, 5)]) == [5] and losses([(1, 5), (2, 4), (3, 3)]) == [5, 4, 3]
    assert losses([(2, 4.5), (3, 3.5)]) == [4.5, 3.5], "the run found its file lost when it resumed"


def with_probes(count):
    probe = {"tokens": ["a"], "layers": [1], "experts": 2, "indices": [[[0]]], "weights": [[[1.0]]]}
    history = History()
    history.add([{"step": step, "probe": probe} for step in range(count)])
    return history


class Page:
    """What a page holds of a run's panels; its polls' answers are applied in any order."""

    def __init__(self, run):
        with gr.Blocks():
            self.p = run_view.build()
        self.run, self.shown, self.note = run, {}, None

    def poll(self, count, chosen=None):
        shown = dict(self.shown)
        histories = {self.run.name: with_probes(count)}
        return run_view.redraw(self.p, shown, self.run, histories, 0, None, chosen), shown

    def apply(self, answer):
        updates, self.shown = answer
        assert "value" not in updates.get(self.p["probe index"], {}), "the page puts the slider where the user has it"
        self.note = updates.get(self.p["probe note"], self.note)


def test_the_probe_follows_the_newest_until_the_user_chooses_another(tmp_path):
    state = dict(state="running", reason="", step=9, steps=9, started_at=0.0, config={}, checkpoint=None, best=None)
    page = Page(runs.Run(name="a", folder=tmp_path, **state))
    for count in (3, 3, 4):
        page.apply(page.poll(count))
        assert (page.shown["newest probe"], page.note) == (count - 1, f"Checkpoint {count - 1}: step {count - 1}")
    updates, _ = page.poll(4)
    assert list(updates) == [page.p["progress"]], "nothing is drawn twice"
    under_way = page.poll(5)
    page.apply(page.poll(4, chosen=1))
    assert page.note == "Checkpoint 1: step 1"
    page.apply(under_way)  # overtaken; the next poll mends it
    assert page.note == "Checkpoint 4: step 4"
    for count in (5, 5, 6):
        page.apply(page.poll(count, chosen=1))
        assert page.note == "Checkpoint 1: step 1"
    page.apply(page.poll(6))
    assert page.shown["newest probe"] == 5


def test_an_alarm_shows_while_an_expert_is_dead(tmp_path):
    state = dict(state="running", reason="", step=9, steps=9, started_at=0.0, config={}, checkpoint=None, best=None)
    page, history = Page(runs.Run(name="a", folder=tmp_path, **state)), History()
    for step in range(1, 131):
        load = [0.25, 0.25, 0.25, 0.25] if step > 70 else [0.5, 0.5, 0.0, 0.0]
        history.add([metrics(step, load=[[0.25] * 4, load], max_violation=[0, 1])])
        if step in (49, 60, 130):
            updates = run_view.redraw(page.p, page.shown, page.run, {"a": history}, 0, None, None)
            alarm = updates[page.p["alarm"]]
            assert alarm["visible"] == (step == 60)
            named = (
                "Dead experts in layer 2: expert 2 (since step 1), expert 3 (since step 1). The router"
                in alarm["value"]
            )
            assert named == (step == 60)


def test_the_best_checkpoint_is_offered_first_and_marked(tmp_path):
    write = lambda folder: (folder / "weights").touch()  # noqa: E731
    for step, loss in ((10, 3.25), (20, 3.5), (30, None)):
        saving.save_checkpoint(tmp_path / "a", step, write, 9, loss and {"val_loss": loss, "texts": "t"})
    (tmp_path / "a" / "config.json").write_text("{}")
    run = runs.find(tmp_path, "a")
    choices = run_view.checkpoint_choices(run)
    assert [label for label, _ in choices] == ["step-000010 · the best", "step-000030", "step-000020"]
    assert [Path(path).name for _, path in choices] == ["step-000010", "step-000030", "step-000020"]
    assert "★ best checkpoint: step 10, validation loss 3.250" in run_view.progress(run, History())
    page = Page(run)
    updates = run_view.redraw(page.p, page.shown, run, {"a": History()}, 0, None, None)
    assert updates[page.p["checkpoint"]]["value"] == str(tmp_path / "a" / "step-000010")
