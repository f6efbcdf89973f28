"""The tab What experts do: what a section draws, how it stops, and what it refuses."""

import json

import gradio as gr
import pytest

from deepseek.ui.components.expert_sections import SECTIONS
from deepseek.ui.components.kinds import check_kinds, named_kinds, stopped_in_time
from deepseek.ui.components.traces import EXAMPLE_TEXTS
from deepseek.ui.tabs import what_experts_do
from deepseek.ui.tabs.what_experts_do import Stopped, draw_section

TEXTS = {"foxes": "Once upon a time a fox ran over the hill. " * 5, "numbers": "12 34 56 78 " * 14}


def no_step(fraction, what):
    pass


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.name)
def test_a_section_draws_a_layer_and_a_dense_model_says_that_it_has_no_experts(section, model, llama, tokenizer):
    lines, overview, *figures, table = draw_section(section, model, tokenizer, TEXTS, 1, no_step)
    assert "chance" in lines and overview.data and len(figures) == len(section.headings) and all(figures)
    assert json.loads(table)["rows"]
    lines, *drawn = draw_section(section, llama, tokenizer, TEXTS, None, no_step)
    assert "has no experts" in lines and len(drawn) == 2 + len(section.headings) and not any(drawn)


def test_work_ends_when_it_is_stopped_and_is_measured_anew_then(model, tokenizer):
    texts, steps = {"a": "another fox " * 20}, []

    def stop(fraction, what):
        steps.append(what)
        if what == "comparing with chance":
            raise Stopped

    for _ in range(2):
        with pytest.raises(Stopped):
            draw_section(SECTIONS[0], model, tokenizer, texts, 1, stop)
    assert steps == ["reading the texts", "comparing with chance", "comparing with chance"], "the trace is kept"
    assert draw_section(SECTIONS[0], model, tokenizer, texts, 1, no_step)[1].data


def test_kinds_of_text_are_checked():
    assert named_kinds(["a", "b", "a"], ["x", " ", ""]) == {"a": "x"} and check_kinds({}) == EXAMPLE_TEXTS
    for names, texts, refusal in (
        (["a", "a"], ["x", "y"], "two kinds of text are named 'a'"),
        (["a"], [" "], "no text is filled in"),
        (["a"], [5], "text 'a' of texts is 5"),
        ([None], ["x"], "the name of a kind of texts is None"),
        (["x" * 25], ["x"], "it must have 1 to 24 characters"),
        (["a"], ["x" * 20_001], "text 'a' of texts has 20,001 characters"),
    ):
        with pytest.raises(gr.Error, match=refusal):
            named_kinds(names, texts)


def test_work_past_the_deadline_is_refused(monkeypatch):
    step = stopped_in_time(no_step)
    step(0.5, what="reading")
    monkeypatch.setattr("deepseek.ui.components.kinds.DEADLINE_S", -1)
    with pytest.raises(ValueError, match="^texts took over -1 seconds to measure"):
        step(0.6, what="reading")


def test_an_uploaded_file_names_its_kind(tmp_path):
    file = tmp_path / "a fairy tale with a rather long name.txt"
    file.write_text("Once upon a time")
    name, text = what_experts_do._open_file(str(file))
    assert name == "a fairy tale with a rather long name"[:24] and text == "Once upon a time"
