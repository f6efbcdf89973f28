"""The panels about experts on every kind of model, and the functions behind them."""

import math
import re

import gradio as gr
import pytest
import torch
from test_trace import families
from transformers import AutoModelForCausalLM

from deepseek import SamplingParams, trace
from deepseek.interpret import routing_stats
from deepseek.interpret.interventions import Intervention
from deepseek.ui.tabs import compare_domains, experts, intervene, long_text

TEXT = "Once upon a time a fox ran over the hill."
PARAMS = SamplingParams(seed=3, max_new_tokens=12)


@pytest.fixture(params=["mixtral", "olmoe", "qwen3", "deepseek_v2", "deepseek_v3", "gpt_oss"])
def mixture(request):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(families()[request.param]).eval()


def test_every_panel_draws_any_mixture(mixture, tokenizer):
    seen = trace(mixture, tokenizer, TEXT)
    _, *figures, note, reading = experts.draw(seen)
    chosen, many = seen.routing[0].indices.shape[1], seen.routing[0].experts
    assert all(figures) and f"each sent to {chosen} of {many} experts" in note and reading.tokens == seen.tokens
    long = long_text.read_long_text(mixture, tokenizer, TEXT * 6)
    note, favourites, pairs, flow = long_text.draw(long, seen.routing[-1].layer)
    assert len(favourites.data[0].y) == len(pairs.data[0].y) == many and len(flow.data[0].link.value) > 1
    summary, bars, heading, loads = compare_domains.draw(
        {"A": long, "B": long_text.read_long_text(mixture, tokenizer, "déjà vu " * 30)}
    )
    assert "**A and B: 0." in summary and bars.data and heading.startswith("### Layer ") and len(loads.data) == 2
    *_, (figure, note) = intervene.measured(mixture, tokenizer, TEXT, seen.routing[-1].layer)
    assert len(figure.data) == many and note.startswith("Needed most")
    *_, (plain, changed) = intervene.beside(mixture, tokenizer, TEXT, PARAMS, Intervention(1, "force"))
    assert len(plain.tokens) == len(changed.tokens) == 12
    for token in changed.tokens[:-1]:
        assert token.experts and all(1 in dict(to) for to in token.experts.values())
    expert, layer = intervene.choices(mixture)
    assert len(expert["choices"]) == many and len(layer["choices"]) == 1 + len(seen.routing)


def test_every_panel_says_that_a_dense_model_has_no_experts(llama, tokenizer):
    _, *figures, note, _ = experts.draw(trace(llama, tokenizer, TEXT))
    assert figures == [None] * 4 and "has no experts" in note
    reading = long_text.read_long_text(llama, tokenizer, TEXT)
    note, *figures = long_text.draw(reading, None)
    assert figures == [None] * 3 and "has no experts" in note
    summary, *drawn = compare_domains.draw({"A": reading, "B": reading})
    assert "has no experts" in summary and not any(drawn)
    [(figure, note)] = intervene.measured(llama, tokenizer, TEXT, intervene.EVERY)
    assert figure is None and "has no experts" in note
    with pytest.raises(gr.Error, match="has no experts"):
        list(intervene.beside(llama, tokenizer, TEXT, PARAMS, Intervention(0, "off")))


def test_the_summary_is_the_mean_over_the_layers(model, tokenizer):
    texts = {"A": "a fox ran over the hill " * 5, "B": "12 34 56 78 " * 10, "C": TEXT * 3}
    readings = {name: long_text.read_long_text(model, tokenizer, text) for name, text in texts.items()}
    summary, bars, heading, loads = compare_domains.draw(readings)

    def shares(name, layer):
        chosen = readings[name].routing[layer].indices.flatten().tolist()
        return [chosen.count(expert) / len(chosen) for expert in range(8)]

    def bits(p, q):
        middle = [(a + b) / 2 for a, b in zip(p, q)]
        return sum(sum(x * math.log2(x / m) for x, m in zip(side, middle) if x) for side in (p, q)) / 2

    for one, other in ("AB", "AC", "BC"):
        found = [bits(shares(one, layer), shares(other, layer)) for layer in range(2)]
        assert f"**{one} and {other}: {sum(found) / 2:.3f} bits**" in summary
        bar = next(bar for bar in bars.data if bar.name == f"{one} and {other}")
        assert list(bar.y) == pytest.approx(found, abs=1e-4)
    place = int(heading.split("Layer ")[1].split(",")[0]) - 1
    for bar in loads.data:
        assert list(bar.y) == pytest.approx(shares(bar.name, place), abs=1e-4)


def test_both_texts_mark_where_they_part(model, tokenizer):
    *_, (plain, changed) = intervene.beside(model, tokenizer, TEXT, PARAMS, Intervention(2, "force"))
    ids = [[token.id for token in side.tokens] for side in (plain, changed)]
    place = next(i for i, (one, other) in enumerate(zip(*ids)) if one != other)
    for side in (plain, changed):
        assert f'{{"mark": {place}}}' in side.strip
    assert intervene.verdict(plain, changed).startswith(f"They part at token {place + 1}; ")
    assert intervene.verdict(plain, plain).startswith("The same text, all 12")


@pytest.mark.parametrize(
    "work, refusal",
    [
        (lambda *model: long_text.read_long_text(*model, "a" * 20_001), "text has 20,001 characters"),
        (lambda *model: long_text.read_long_text(*model, ""), "text is empty"),
        (lambda *model: long_text.read_long_text(*model, 5), "text is 5; it must be text"),
        (lambda *model: list(intervene.measured(*model, 5, intervene.EVERY)), "text is 5; it must be text"),
        (lambda *model: list(intervene.measured(*model, TEXT, 77)), "layer is 77; it must be one that has experts"),
        (
            lambda *model: list(intervene.measured(*model, TEXT * 40, 1)),
            "text has .* tokens; the model reads 256 at most",
        ),
        (lambda *model: list(intervene.beside(*model, "", PARAMS, Intervention(0, "off"))), "prompt is empty"),
        (
            lambda *model: list(intervene.beside(*model, TEXT, PARAMS, Intervention(None, "off"))),
            "expert is None; it must",
        ),
        (
            lambda *model: list(intervene.beside(*model, TEXT, PARAMS, Intervention(0, "dim"))),
            "action is 'dim'; it must",
        ),
    ],
)
def test_refusals_are_one_sentence(model, tokenizer, work, refusal):
    with pytest.raises(gr.Error) as caught:
        work(model, tokenizer)
    assert re.match(refusal, caught.value.message)


def test_an_uploaded_file_is_text_of_a_bounded_length(tmp_path):
    file = tmp_path / "text"
    file.write_bytes("\ufeffdéjà vu".encode())
    assert long_text.opened(file) == "déjà vu"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(gr.Error, match="not text in UTF-8"):
        long_text.opened(file)
    file.write_text("a" * (routing_stats.MAX_CHARACTERS + 1))
    with pytest.raises(gr.Error, match="more than 20,000 characters"):
        long_text.opened(file)
    file.write_text("a" * routing_stats.MAX_CHARACTERS)
    assert len(long_text.opened(file)) == routing_stats.MAX_CHARACTERS
