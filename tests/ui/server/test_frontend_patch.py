"""The patched scripts of gradio's page. That the page works with them is what all browser tests show."""

import urllib.request

import pytest

from deepseek.ui.server import frontend_patch


def test_the_app_serves_gradio_s_scripts_with_the_replacements_alone(app_url):
    scripts = frontend_patch.patched_scripts()
    assert len(scripts) == 4
    replacements = {new: old for each in frontend_patch.REPLACEMENTS.values() for old, new in each.items()}
    for path, text in scripts.items():
        with urllib.request.urlopen(app_url + path) as answer:
            assert answer.read().decode() == text
            assert answer.headers["content-type"].startswith("text/javascript")
        for new, old in replacements.items():
            text = text.replace(new, old)
        assert text == (frontend_patch.FOLDER / path.split("/")[-1]).read_text("utf-8") != scripts[path]


def test_a_gradio_without_these_texts_is_refused(tmp_path, monkeypatch):
    (tmp_path / "core-x.js").write_text("function find_node_by_id(){}")
    monkeypatch.setattr(frontend_patch, "FOLDER", tmp_path)
    with pytest.raises(RuntimeError, match="check it"):
        frontend_patch.patched_scripts()
