"""The panels that show a run."""

import json

import gradio as gr

from deepseek.training import runs
from deepseek.ui.components import run_panels, run_view


def test_the_probe_follows_the_newest_until_the_user_chooses_another(tmp_path, monkeypatch):
    """Whatever the slider's value in the page: a poll may be under way while it is moved."""
    monkeypatch.setattr(runs, "ROOT", str(tmp_path))
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"max_steps": 9}')
    with gr.Blocks():
        p = run_panels.build()

    def probe_index(name, num_probes):
        probe = {"tokens": ["a"], "layers": [1], "experts": 2, "indices": [[[0]]], "weights": [[[1.0]]]}
        lines = [json.dumps({"step": step, "probe": probe}) + "\n" for step in range(num_probes)]
        (tmp_path / name / "metrics.jsonl").write_text("".join(lines))
        updates = run_panels.redraw(p, view, run_view.RunView(), runs.find(tmp_path, name), "", 0, None)
        return updates[p["probe index"]]["value"] if p["probe index"] in updates else None

    view = run_view.RunView()
    assert [probe_index("a", 3), probe_index("a", 3), probe_index("a", 4)] == [2, None, 3]
    view.probe_index = 1
    assert [probe_index("a", 4), probe_index("a", 4), probe_index("a", 5)] == [1, None, 1]
    view.probe_index = None
    assert [probe_index("a", 5), probe_index("a", 6)] == [4, 5]
    view.probe_index = 1
    assert probe_index("b", 4) == 3, "in another run it begins at the newest"
