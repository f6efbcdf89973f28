"""The sections of What experts do: what they draw and say, of our model and of families with other routers."""

import numpy as np
import pytest
import torch
from families import VOCABULARY, tiny_model
from routed import at_random, by_token, routed
from small import families
from transformers import AutoModelForCausalLM

from deepseek.interpret import geometry, specialization
from deepseek.interpret.corpus import RoutedLayer, trace_corpus
from deepseek.ui.components import sections
from deepseek.ui.components.expert_sections import SECTIONS

TEXTS = {"foxes": "Once upon a time a fox ran over the hill. " * 5, "numbers": "12 34 56 78 " * 14}
BY_NAME = {section.name: section for section in SECTIONS}


@pytest.fixture(scope="module")
def corpus(model, tokenizer):
    return trace_corpus(model, tokenizer, TEXTS)


def assert_drawn(corpus):
    """Every section has its numbers of every layer, its figures and a table of any layer; rows are as wide as their headers."""
    for section in SECTIONS:
        numbers = sections.measured(section, corpus)
        assert numbers.layers == corpus.layers and sections.overview(section, numbers).data
        assert len(sections.summary(section, numbers)) == len(numbers.series)
        assert all(len(each.observed) == len(corpus.layers) for each in numbers.series.values())
        assert len(sections.number_rows(section, numbers)) == len(numbers.series) * len(corpus.layers)
        for index in range(len(corpus.layers)):
            detail = section.detail(corpus, index)
            assert len(detail.figures) == len(section.headings)
            assert all(len(row) == len(detail.headers) for row in detail.rows)


def test_the_line_is_what_was_measured_and_the_band_is_chance(corpus):
    section = BY_NAME["Kinds of text"]
    numbers = sections.measured(section, corpus)
    figure = sections.overview(section, numbers)
    found = [specialization.domain_specialization(layer, corpus.kind_T, 2) for layer in corpus.routing]
    for kind, name in enumerate(TEXTS):
        lines = {line.name: list(line.y) for line in figure.data if line.name.startswith(name)}
        assert lines[name] == pytest.approx([float(each.observed[kind]) for each in found], abs=1e-5)
        assert lines[f"{name}, chance"] == pytest.approx([float(each.chance[kind]) for each in found], abs=1e-5)
        edges = [float(each.chance[kind] + 3 * each.spread[kind]) for each in found]
        assert lines[f"{name}, chance + 3 SD"] == pytest.approx(edges, abs=1e-5)
    for row, (place, each) in zip(sections.number_rows(section, numbers), zip(corpus.layers, found)):
        assert row[:3] == ["foxes", str(place), f"{float(each.observed[0]):.1%}"]
        assert row[-1] == {1: "above chance", 0: "no better than chance", -1: "below chance"}[int(each.side[0])]


def test_repetition_has_a_panel_for_each_of_its_two_questions(corpus):
    section = BY_NAME["Repetition"]
    numbers = sections.measured(section, corpus)
    figure = sections.overview(section, numbers)
    lines = [line for line in figure.data if line.meta]
    assert [(line.meta, line.name, line.yaxis, line.showlegend) for line in lines] == [
        ("foxes, first choice", "foxes", "y", True),
        ("numbers, first choice", "numbers", "y", True),
        ("foxes, any choice", "foxes", "y2", False),
        ("numbers, any choice", "numbers", "y2", False),
    ]
    for line in lines:
        assert list(line.y) == pytest.approx(numbers.series[line.meta].observed.tolist(), abs=1e-5)
    assert [each.text for each in figure.layout.annotations] == ["first choice", "any choice"]


def test_a_section_is_measured_once_and_says_how_far_it_is(model, tokenizer):
    corpus, done = trace_corpus(model, tokenizer, TEXTS), []
    for section in SECTIONS:
        numbers = sections.measured(section, corpus, done.append)
        assert sections.measured(section, corpus, None) is numbers
    assert all(0 <= fraction < 1 for fraction in done) and len(done) >= 2 * len(SECTIONS)


def test_a_random_router_is_said_to_be_no_better_than_chance_and_one_by_token_to_be_above(model, tokenizer):
    def lines(choose):
        with routed(model, choose):
            corpus = trace_corpus(model, tokenizer, TEXTS)
        return [line for section in SECTIONS for line in sections.summary(section, sections.measured(section, corpus))]

    random = lines(at_random())
    assert len(random) == 12 and sum(not line.endswith("no better than chance") for line in random) <= 1  # 23 figures
    perfect = lines(by_token)
    assert perfect[0].startswith("token read: 100.0% ± 0.0% over 2 layers") and perfect[0].endswith("in 2 of 2 layers")


def test_the_map_of_shares_shows_only_what_is_not_chance(corpus):
    figure = BY_NAME["Partners"].detail(corpus, 0).figures[0]
    shares = specialization.co_activation(corpus.routing[0])
    (cells,) = figure.data
    for i, row in enumerate(cells.z):
        for j, value in enumerate(row):
            if shares.observed[i, j].isnan():
                assert value is None
            elif shares.side[i, j] == 0:
                assert value == 0 and cells.customdata[i][j].endswith("no better than chance")
            else:
                ratio = np.log2(max(float(shares.observed[i, j] / shares.chance[i, j]), 1e-9))
                assert value == pytest.approx(np.clip(ratio, -2, 2), abs=1e-3)


def test_the_map_and_the_pairs_of_hidden_states(corpus):
    scatter, flat = BY_NAME["Geometry"].detail(corpus, 1).figures
    indices = corpus.routing[1].indices[corpus.sample_S]
    similarity = geometry.cosine_similarity(corpus.dots[1])
    bins = geometry.overlap_by_similarity(similarity, indices)
    assert list(scatter.data[1].y) == pytest.approx([each.overlap for each in bins], abs=1e-4)
    assert np.ptp(scatter.data[2].y) < np.ptp(scatter.data[1].y), "shuffled routing hardly depends on similarity"
    points = geometry.principal_map(corpus.dots[1]).points
    for group in flat.data[: len(flat.data) // 2]:
        expert = int(group.name.split()[1])
        assert list(group.x) == pytest.approx(points[indices[:, 0] == expert, 0].tolist(), abs=1e-3)


@pytest.mark.parametrize("name", families())
def test_every_section_draws_any_mixture(name, tokenizer):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(families()[name]).eval()
    assert_drawn(trace_corpus(model, tokenizer, TEXTS))


@pytest.mark.parametrize("name", ["jetmoe", "llama4_text", "zaya", "deepseek_v4", "gemma4_text", "longcat_flash"])
def test_every_section_draws_unusual_routers(name, tokenizer):
    assert len(tokenizer) <= VOCABULARY
    assert_drawn(trace_corpus(tiny_model(name), tokenizer, TEXTS))


def test_many_experts_stay_readable(corpus):
    """Of 128 experts the figures draw the most telling; the tables have all of them."""
    generator = torch.Generator().manual_seed(0)
    many = trace_corpus_of(
        corpus, [torch.rand(len(corpus.ids_T), 128, generator=generator).topk(8).indices for _ in range(2)]
    )
    assert_drawn(many)
    vocabulary = BY_NAME["Vocabulary"].detail(many, 0)
    assert len(vocabulary.figures[0].data[0].y) == 32 and len(vocabulary.rows) == 128
    assert len(BY_NAME["Partners"].detail(many, 0).figures[1].data[0].y) == 32
    assert len(BY_NAME["Kinds of text"].detail(many, 0).rows) == 128


def trace_corpus_of(corpus, indices):
    """A corpus like another, with other routing."""
    values = {name: value for name, value in vars(corpus).items() if name != "measured"}
    return type(corpus)(
        **values | {"routing": [RoutedLayer(number, 128, each) for number, each in enumerate(indices, 1)]}
    )
