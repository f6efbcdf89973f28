"""The figures and the report of the Compare tab."""

import json

import gradio as gr
import pytest

from deepseek import SamplingParams, load, stream
from deepseek.ui.components.shared_outputs import Turns
from deepseek.ui.generation import generate, interleave
from deepseek.ui.tabs import compare


def test_a_report_lists_what_differed_and_the_figures_of_both_sides(demo, checkpoint):
    """Two settings and two checkpoints at once."""
    a, b = SamplingParams(seed=3, max_new_tokens=9), SamplingParams(seed=3, max_new_tokens=9, top_k=4)
    other = load(checkpoint)
    *_, (one, two) = interleave([generate(*demo, "Once upon", a), generate(*other, "Once upon", b)])
    for generation, opened, params in ((one, demo, a), (two, other, b)):
        assert [t.id for t in generation.tokens] == [t.id for t in stream(*opened, "Once upon", params)]
    rows = {name: values for name, *values in compare.report(one, two, ("assets/demo", checkpoint))}
    assert list(rows)[:3] == ["checkpoint", "top k", "first different token"]
    assert rows["checkpoint"] == ["assets/demo", checkpoint] and rows["top k"] == ["0", "4"]
    place = next(i for i, (s, t) in enumerate(zip(one.tokens, two.tokens), 1) if s.id != t.id)
    assert rows["first different token"] == [str(place)] * 2
    for column, generation in enumerate((one, two)):
        mean = sum(token.probability for token in generation.tokens) / len(generation.tokens)
        assert float(rows["mean probability"][column]) == pytest.approx(mean, abs=5e-4)
    assert {"tokens per second", "distinct 2-grams", "repeated 4-grams"} <= set(rows)


def test_the_table_after_a_stop_is_that_of_the_samples_shown(demo):
    with gr.Blocks() as page:
        compare.build(*demo, "Once upon a time", gr.State("assets/demo"), gr.BrowserState({}))
    run = next(listener for listener in page.fns.values() if listener.name == "run")
    turns = Turns()
    answers = run.fn(turns, 1.0, *(block.value for block in run.inputs[2:]))
    first = next(answers)
    assert first[2] == [], "the last pair's table is gone at once"
    turns.stop(2.0)
    *_, (strip_a, strip_b, table), _ = answers
    tokens = next(values for name, *values in table if name == "tokens")
    assert [int(value) for value in tokens] == [strip.count('"i": ') for strip in (strip_a, strip_b)]
    assert int(tokens[0]) < 48


def test_both_sides_answer_a_users_message_where_there_is_a_chat_template(chat_checkpoint):
    model, tokenizer = load(chat_checkpoint)
    with gr.Blocks() as blocks:
        compare.build(model, tokenizer, "Who?", gr.State(chat_checkpoint), gr.BrowserState({}))
    click = next(
        each for each in blocks.fns.values() if each.fn and each.fn.__qualname__.startswith("build.<locals>.run")
    )
    prompt, is_chat, system, *rest = [block.value for block in click.inputs[2:]]
    assert (prompt, is_chat, system or "") == ("Who?", True, "")
    whole = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"
    for chat, text in ((True, whole), (False, "Who?")):
        *_, shown, _ = click.fn(Turns(), 1.0, prompt, chat, "Be brief.", *rest)
        assert [json.loads(strip.splitlines()[0])["prompt"] for strip in shown[:2]] == [text] * 2
