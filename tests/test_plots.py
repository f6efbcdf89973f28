"""Each figure's data, against the records it was made from."""

import numpy as np
import pytest
import torch

from deepseek import SamplingParams, stream, trace
from deepseek.balance import expert_counts, load_shares
from deepseek.plots.attention import attention_heads, attention_map
from deepseek.plots.lens import lens_map
from deepseek.plots.routing import expert_load, expert_map
from deepseek.plots.sampling import along_the_text, funnel
from deepseek.plots.style import expert_colour, label

TEXT = "Once upon a time there was a fox."
HOSTILE = [
    "<b>bold</b>",
    "<img src=x onerror=alert(1)>",
    "&lt;",
    "${1+1}",
    "`x`",
    "\u202eevil",
    "a\u200bb",
    "\x00\x1b",
    " \n\t",
    "",
]


@pytest.fixture(scope="module")
def seen(model, tokenizer):
    return trace(model, tokenizer, TEXT)


def test_expert_map_shows_the_first_expert(seen):
    heatmap = expert_map(seen.tokens, seen.routing).data[0]
    for row, layer in zip(np.array(heatmap.z), seen.routing):
        assert row.tolist() == layer.indices[:, 0].tolist()
    assert len(set(heatmap.x)) == len(seen.tokens)
    assert heatmap.customdata[0][0].count("expert") == seen.routing[0].indices.shape[1]


def test_expert_load_is_the_share_of_the_assignments(seen):
    counts = [expert_counts(layer.indices, layer.experts) for layer in seen.routing]
    figure = expert_load([load_shares(count).tolist() for count in counts], [layer.layer for layer in seen.routing])
    for expert, bar in enumerate(figure.data):
        for value, count in zip(bar.y, counts):
            assert value == pytest.approx(int(count[expert]) / int(count.sum()), abs=1e-4)


def test_attention_is_in_whole_percents(seen):
    weights = seen.attention(1)
    large = np.array(attention_map(seen.tokens, weights[3], "head 3").data[0].z)
    assert np.abs(large - 100 * weights[3].numpy()).max() <= 0.5
    small = attention_heads(weights, seen.tokens)
    assert len(small.data) == len(weights)
    assert all(np.abs(np.array(d.z) - 100 * w.numpy()).max() <= 0.5 for d, w in zip(small.data, weights))


def test_a_map_of_512_tokens_is_under_a_megabyte():
    weights = torch.rand(9, 512, 512).softmax(-1)
    tokens = [f" word{i}" for i in range(512)]
    assert len(attention_map(tokens, weights[0], "").to_json()) < 1e6
    assert len(expert_map(tokens, [type("R", (), _routing(512))()]).to_json()) < 1e6


def _routing(tokens):
    indices = torch.randint(0, 8, (tokens, 2))
    return dict(layer=1, experts=8, indices=indices, weights=torch.full((tokens, 2), 0.5))


@pytest.mark.parametrize("order", ["transformers", "llama.cpp"])
def test_funnel_shows_every_active_stage_and_marks_the_draw(model, tokenizer, order):
    params = SamplingParams(temperature=0.7, top_k=20, top_p=0.8, repetition_penalty=1.3, seed=1, order=order)
    for token in list(stream(model, tokenizer, TEXT, params))[:5]:
        figure = funnel(token).data[0]
        names = [column.split("<br>")[0] for column in figure.x]
        assert names == ["model"] + [stage.name for stage in token.stages if stage.active]
        assert sum("▶" in row for row in figure.y) == 1
        drawn = next(i for i, row in enumerate(figure.y) if "▶" in row)
        assert figure.z[drawn][-1] == pytest.approx(100 * token.sampler_probability)
        notes = [column.split("<br>")[1] for column in figure.x[1:]]
        for note, stage in zip(notes, [stage for stage in token.stages if stage.active]):
            assert note in ("no change", "reshaped") or note == f"{stage.survivors:,} left"
            assert (note == "no change") == (not stage.changed)


def test_entropy_and_temperature_follow_the_text(model, tokenizer):
    tokens = list(stream(model, tokenizer, TEXT, SamplingParams(dynamic_temperature=True, seed=1, max_new_tokens=12)))
    entropy, temperature = along_the_text(tokens).data
    assert list(entropy.y) == pytest.approx([token.entropy for token in tokens], abs=1e-3)
    assert list(temperature.y) == pytest.approx([token.temperature for token in tokens], abs=1e-3)
    assert len(set(temperature.y)) > 1


@pytest.mark.parametrize("text", HOSTILE)
def test_labels_hold_no_markup_and_nothing_invisible(text):
    shown = label(text)
    assert "<" not in shown and ">" not in shown
    assert shown.isprintable() and shown


def test_lens_map_marks_where_the_answer_first_leads(seen):
    lens = seen.lens()
    heatmap, marks = lens_map(seen.tokens, lens).data
    assert np.abs(np.array(heatmap.z) - 100 * lens.probabilities.numpy()).max() <= 0.5
    assert [heatmap.y.index(row) for row in marks.y] == lens.first_lead


def test_eight_colours_differ():
    assert len(set(map(expert_colour, range(8)))) == 8
