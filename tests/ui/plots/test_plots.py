"""Each figure's data, against the records it shows."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small import dense
from transformers import AutoModelForCausalLM

from deepseek import SamplingParams, stream, trace
from deepseek.model.load_balancing import load_shares, tokens_per_expert
from deepseek.ui.plots.attention import attention_map, attention_received, attention_small
from deepseek.ui.plots.layers import cache_bytes, latent_norms, lens_map
from deepseek.ui.plots.routing import (
    MAX_TRANSITIONS,
    ablation_bars,
    balance,
    co_activation,
    divergence_bars,
    expert_load,
    expert_map,
    load_by_text,
    token_path,
    transitions,
    vocabulary_specialization,
)  # fmt: skip
from deepseek.ui.plots.sampling import entropy_and_temperature, funnel, sweep_stats
from deepseek.ui.plots.style import expert_colour, label

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
def traced(model, tokenizer):
    return trace(model, tokenizer, TEXT)


def test_expert_map_shows_the_top_expert(traced):
    heatmap = expert_map(traced.tokens, traced.routing).data[0]
    for row, layer in zip(np.array(heatmap.z), traced.routing):
        assert row.tolist() == layer.indices[:, 0].tolist()
    assert len(set(heatmap.x)) == len(traced.tokens)
    assert heatmap.customdata[0][0].count("expert") == traced.routing[0].indices.shape[1]


def test_expert_load_is_the_fraction_of_the_assignments(traced):
    counts = [tokens_per_expert(layer.indices, layer.num_experts) for layer in traced.routing]
    figure = expert_load([load_shares(count).tolist() for count in counts], [layer.layer for layer in traced.routing])
    for expert, bar in enumerate(figure.data):
        for value, count in zip(bar.y, counts):
            assert value == pytest.approx(int(count[expert]) / int(count.sum()), abs=1e-4)


def test_a_token_path_shows_experts_and_normalised_weights(traced):
    for index in (0, 5, len(traced.tokens) - 1):
        figure = token_path(traced.tokens[index], index, traced.routing)
        for choice, line in enumerate(figure.data):
            assert list(line.x) == [f"layer {layer.layer}" for layer in traced.routing]
            assert list(line.y) == [int(layer.indices[index, choice]) for layer in traced.routing]
            weights = [float(layer.weights[index, choice] / layer.weights[index].sum()) for layer in traced.routing]
            assert list(line.customdata) == pytest.approx(weights, abs=1e-4)
            assert line.text == tuple(f"{weight:.0%}" for weight in weights)
        assert len(figure.data) == 2 and f"token {index + 1}:" in figure.layout.title.text


def test_many_experts_are_drawn_as_a_heatmap():
    load = torch.rand(3, 64).softmax(-1).tolist()
    (few,) = {trace.type for trace in expert_load([row[:16] for row in load], [1, 2, 3]).data}
    (map,) = expert_load(load, [1, 2, 3]).data
    assert few == "bar" and map.type == "heatmap" and map.zmid == 1 / 64
    assert np.abs(np.array(map.z) - np.array(load)).max() < 1e-4


def test_many_experts_can_be_sorted_by_load_and_one_of_them_found():
    load = torch.rand(3, 64).softmax(-1).tolist()
    map, marks = expert_load(load, [1, 2, 3], by_load=True, expert=9).data
    for row, values, experts, place in zip(map.z, load, map.customdata, marks.x):
        assert list(row) == pytest.approx(sorted(values, reverse=True), abs=1e-4)
        assert [values[expert] for expert in experts] == sorted(values, reverse=True) and experts[place] == 9


def test_a_large_model_is_drawn_within_a_screen_or_two():
    """48 layers of 128 experts."""
    routing = [SimpleNamespace(layer=i, num_experts=128, indices=torch.randint(128, (60, 8)), weights=torch.rand(60, 8))
               for i in range(48)]  # fmt: skip
    tokens = [str(index) for index in range(60)]
    path = token_path("a", 3, routing)
    assert path.layout.height < 600 and [line.mode for line in path.data] == ["lines+markers"] + 7 * ["markers"]
    assert expert_map(tokens, routing).layout.height < 900 and not expert_map(tokens, routing).data[0].showscale
    assert len(path.layout.xaxis.tickvals) == 12
    rows = vocabulary_specialization([[("a", expert, 9)] for expert in range(128)], [7, 100]).data[0]
    assert list(rows.y) == ["expert 7", "expert 100"] and list(rows.z) == [[7], [100]]
    ratio = torch.rand(128, 128)
    pairs = co_activation(ratio, [7, 100]).data[0]
    assert list(pairs.x) == ["7", "100"] and pairs.customdata[0][1] == f"{ratio[7, 100]:.2f}"


def test_balance_and_ablation_effects_are_drawn_as_given():
    violations, divergences = balance([2, 3], [0.5, 1.25], [0.01, 0.0]).data
    assert (list(violations.y), list(divergences.y)) == ([0.5, 1.25], [0.01, 0.0])
    bars = ablation_bars([[0.1, -0.2, 0.0], [0.3, 0.0, 0.4]], [2, 3]).data
    assert [list(bar.y) for bar in bars] == [[0.1, 0.3], [-0.2, 0.0], [0.0, 0.4]]
    assert {tuple(bar.x) for bar in bars} == {("layer 2", "layer 3")}


def test_vocabulary_specialization_has_a_row_per_expert():
    map = vocabulary_specialization([[(" a", 3, 4), ("<b>", 1, 9)], []]).data[0]
    assert list(map.text) == [["·a", "&lt;b&gt;"], ["", ""]] and list(map.z) == [[3, 1], [0, 0]]
    assert map.customdata[0] == ["·a: 3 of its 4", "&lt;b&gt;: 1 of its 9"] and map.y == ("expert 0", "expert 1")
    assert list(vocabulary_specialization([[], []]).data[0].z) == [[], []]


def test_co_activation_is_in_powers_of_two():
    nan = float("nan")
    map = co_activation([[nan, 2.0, 0.5], [2.0, nan, 0.0], [0.5, 0.0, nan]]).data[0]
    assert list(map.z) == [[None, 1.0, -1.0], [1.0, None, -2], [-1.0, -2, None]]
    assert map.customdata[0] == ["", "2.00", "0.50"]


def test_transitions_join_the_experts_of_neighbouring_layers(traced):
    counts = [(0, 3, 5, 7), (0, 3, 2, 1), (1, 5, 5, 7)]
    sankey = transitions(counts, [*traced.routing, traced.routing[1]]).data[0]
    ends = zip(sankey.link.source, sankey.link.target, sankey.link.value)
    bands = {(sankey.node.label[source], sankey.node.label[target], tokens) for source, target, tokens in ends}
    assert bands == {("1:3", "2:5", 7), ("1:3", "2:2", 1), ("2:5", "2:5", 7)}
    many = [(0, e, f, 1 + e * 40 + f) for e in range(40) for f in range(40)]
    assert sorted(transitions(many, traced.routing).data[0].link.value) == list(range(1601 - MAX_TRANSITIONS, 1601))


def test_divergence_stands_beside_its_permutation_baseline():
    bars = divergence_bars([1, 2], {"A and B": ([0.2, 0.4], [0.01, 0.02]), "A and C": ([0.1, 0.0], [0.03, 0.04])}).data
    assert {bar.name: list(bar.y) for bar in bars} == {
        "A and B": [0.2, 0.4],
        "A and C": [0.1, 0.0],
        "A and B, permuted": [0.01, 0.02],
        "A and C, permuted": [0.03, 0.04],
    }
    loads = load_by_text({"A": [0.25, 0.75], "B": [1.0, 0.0]}).data
    assert {bar.name: list(bar.y) for bar in loads} == {"A": [0.25, 0.75], "B": [1.0, 0.0]}


def test_attention_is_in_whole_percents(traced):
    weights = traced.attention(1)
    large = np.array(attention_map(traced.tokens, weights[3], "head 3").data[0].z)
    assert np.abs(large - 100 * weights[3].numpy()).max() <= 0.5
    small = attention_small(traced.tokens, weights, [f"head {head}" for head in range(9)])
    assert len(small.data) == len(weights)
    assert all(np.abs(np.array(d.z) - 100 * w.numpy()).max() <= 0.5 for d, w in zip(small.data, weights))


@pytest.mark.parametrize("heads", [9, 32, 128])
def test_small_maps_of_a_long_text_show_the_largest_of_each_square(heads):
    weights = torch.rand(heads, 300, 300)
    figure = attention_small([f" word{i}" for i in range(300)], weights, [str(head) for head in range(heads)], 40)
    square = -(-300 // len(figure.data[0].x))
    assert square > 1 and figure.data[0].x[1] == f"{41 + square} ·word{square}"
    cells = np.array(figure.data[-1].z)
    for row, column in ((0, 0), (1, 2), (len(cells) - 1, 0)):
        block = weights[-1, row * square : (row + 1) * square, column * square : (column + 1) * square]
        assert abs(cells[row, column] - 100 * float(block.max())) <= 0.5


def test_tokens_of_a_range_keep_their_numbers(traced):
    names = attention_map(traced.tokens[2:], traced.attention(0)[0, 2:, 2:], "", 2).data[0].x
    assert [int(name.split()[0]) for name in names] == list(range(3, len(traced.tokens) + 1))


def test_attention_received_is_the_mean(traced):
    weights = traced.attention(2)
    bars = attention_received(traced.tokens, weights.mean((0, 1))).data[0].y
    expected = [sum(float(weights[h, i, j]) for h in range(9) for i in range(len(traced.ids))) for j in (0, 3)]
    assert [bars[0], bars[3]] == pytest.approx([total / 9 / len(traced.ids) for total in expected], abs=1e-4)


def test_cache_figures_show_latents_and_keys_and_values(traced, llama, tokenizer):
    cache = traced.cache()
    latents, full = cache_bytes(cache, 10, 100).data
    assert list(latents.y) == pytest.approx([10 * cache.bytes / 1024, 100 * cache.bytes / 1024], abs=1e-4)
    assert list(full.y) == pytest.approx([10 * cache.uncompressed / 1024, 100 * cache.uncompressed / 1024], abs=1e-4)
    raw, cached = latent_norms(cache).data
    for line, norms in ((raw, cache.raw_norms), (cached, cache.cached_norms)):
        assert list(line.y) == pytest.approx([float(row.mean()) for row in norms])
        assert [y + e for y, e in zip(line.y, line.error_y.array)] == pytest.approx([float(row.max()) for row in norms])
    assert [bar.name for bar in cache_bytes(trace(llama, tokenizer, TEXT).cache(), 10, None).data] == [
        "keys and values"
    ]


def test_a_map_of_512_tokens_is_under_a_megabyte():
    tokens = [f" word{i}" for i in range(512)]
    assert len(expert_map(tokens, [type("R", (), _routing(512))()]).to_json()) < 1e6


def _routing(tokens):
    indices = torch.randint(0, 8, (tokens, 2))
    return dict(layer=1, num_experts=8, indices=indices, weights=torch.full((tokens, 2), 0.5))


@pytest.mark.parametrize("order", ["transformers", "llama.cpp"])
def test_funnel_shows_every_active_sampler_and_marks_the_sampled_token(model, tokenizer, order):
    params = SamplingParams(temperature=0.7, top_k=20, top_p=0.8, repetition_penalty=1.3, seed=1, order=order)
    for token in list(stream(model, tokenizer, TEXT, params))[:5]:
        figure = funnel(token, params).data[0]
        names = [column.split("<br>")[0] for column in figure.x]
        assert names == ["model"] + [stage.name for stage in token.stages if stage.active]
        assert sum("▶" in row for row in figure.y) == 1
        sampled = next(i for i, row in enumerate(figure.y) if "▶" in row)
        assert figure.z[sampled][-1] == pytest.approx(100 * token.sampler_probability)
        notes = [column.split("<br>")[1] for column in figure.x[1:]]
        for note, stage in zip(notes, [stage for stage in token.stages if stage.active]):
            assert note in ("no change", "reshaped") or note == f"{stage.num_candidates:,} left"
            assert (note == "no change") == (not stage.changed)
        moved = [column.split("<br>")[2].split(" %")[0] for column in figure.x[1:] if "no change" not in column]
        assert moved == [f"{100 * stage.moved:.1f}" for stage in token.stages if stage.changed]


def test_the_funnel_names_replaced_and_skipped_samplers(tokenizer):
    """The prompt holds all twelve tokens of the vocabulary, of which none ends a text, so n-gram size 1 would leave none."""
    config, tokenizer = dense()["llama"], copy.deepcopy(tokenizer)
    config.eos_token_id = tokenizer.bos_token = None
    config.vocab_size = 12
    small = AutoModelForCausalLM.from_config(config).eval()
    params = SamplingParams(no_repeat_ngram_size=1, top_k=3, seed=0, max_new_tokens=1)
    (token,) = stream(small, tokenizer, list(range(12)), params)
    (caption,) = [note.text for note in funnel(token, params).layout.annotations]
    assert caption == "skipped, as it would leave no token: n-gram"
    assert len(funnel(token, params).data[0].x) == 2
    params = SamplingParams(mirostat_tau=3, top_k=3, min_p=0.1, seed=0, max_new_tokens=1)
    (token,) = stream(small, tokenizer, list(range(12)), params)
    (caption,) = [note.text for note in funnel(token, params).layout.annotations]
    assert caption == "replaced by mirostat: top-k, min-p"


def test_the_funnel_shows_what_the_samplers_report(model, tokenizer):
    params = SamplingParams(xtc_probability=0.5, adaptive_target=0.3, dry_multiplier=1, seed=1, max_new_tokens=6)
    columns = [funnel(token, params).data[0].x for token in stream(model, tokenizer, TEXT + TEXT, params)]
    reports = {column.split("<br>")[0]: column for column in columns[0]}
    assert "drew 0." in reports["XTC"] and reports["XTC"].endswith(("acts", "rests"))
    assert "target 0.30<br>average 0.30" in reports["adaptive-p"] and "repeats 1" in reports["DRY"]
    (token, *_) = stream(model, tokenizer, TEXT, SamplingParams(mirostat_tau=3, seed=1, max_new_tokens=2))
    assert "mu 6.00 bits" in funnel(token, SamplingParams(mirostat_tau=3)).data[0].x[-1]


def test_entropy_and_temperature_follow_the_text(model, tokenizer):
    tokens = list(stream(model, tokenizer, TEXT, SamplingParams(dynamic_temperature=True, seed=1, max_new_tokens=12)))
    entropy, temperature = entropy_and_temperature(tokens).data
    assert list(entropy.y) == pytest.approx([token.entropy for token in tokens], abs=1e-3)
    assert list(temperature.y) == pytest.approx([token.temperature for token in tokens], abs=1e-3)
    assert len(set(temperature.y)) > 1


@pytest.mark.parametrize("text", HOSTILE)
def test_a_label_holds_no_markup_and_nothing_invisible(text):
    shown = label(text)
    assert "<" not in shown and ">" not in shown
    assert shown.isprintable() and shown


def test_lens_map_marks_the_first_match(traced):
    lens = traced.lens()
    heatmap, marks = lens_map(traced.tokens, lens).data
    assert np.abs(np.array(heatmap.z) - 100 * lens.probabilities.numpy()).max() <= 0.5
    assert [heatmap.y.index(row) for row in marks.y] == lens.first_match_layer


def test_eight_colours_differ():
    assert len(set(map(expert_colour, range(8)))) == 8


def test_the_curves_of_a_sweep():
    stats = [
        {"tokens": 8, "mean_probability": 0.5, "distinct_2_grams": 1.0, "repeated_4_grams": 0.25},
        {"tokens": 4, "mean_probability": 0.25, "distinct_2_grams": 0.5, "repeated_4_grams": 0.0},
    ]
    figure = sweep_stats("top p", [0.5, 1.0], stats)
    curves = {trace.name: (list(trace.x), list(trace.y), trace.yaxis) for trace in figure.data}
    assert curves["mean probability"] == (["0.5", "1"], [0.5, 0.25], "y") and curves["length"][1:] == ([8, 4], "y2")
    assert curves["distinct 2-grams"][1] == [1, 0.5] and curves["repeated 4-grams"][1] == [0.25, 0]
