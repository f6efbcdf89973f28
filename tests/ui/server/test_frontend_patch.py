"""The patched script of gradio's page. That the page works with it is what all browser tests show."""

import urllib.request

import pytest

from deepseek.ui.server import frontend_patch


def test_the_app_serves_gradio_s_script_with_the_two_replacements_alone(app_url):
    path, text = frontend_patch.patched_script()
    with urllib.request.urlopen(app_url + path) as answer:
        assert answer.read().decode() == text
        assert answer.headers["content-type"].startswith("text/javascript")
    for old, new in frontend_patch.REPLACEMENTS.items():
        assert text.count(new) == 1
        text = text.replace(new, old)
    assert text == (frontend_patch.FOLDER / path.split("/")[-1]).read_text("utf-8")


def test_a_gradio_that_no_longer_searches_is_refused(tmp_path, monkeypatch):
    (tmp_path / "core-x.js").write_text("function find_node_by_id(){}")
    monkeypatch.setattr(frontend_patch, "FOLDER", tmp_path)
    with pytest.raises(RuntimeError, match="check it first"):
        frontend_patch.patched_script()
