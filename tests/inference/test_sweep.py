"""One setting over a range of values, and where the outputs part."""

from types import SimpleNamespace

import pytest

from deepseek import SamplingParams, stream
from deepseek.inference.sweep import SETTINGS, sample_batch, sweep_params, token_tree


def values(name, ends, **settings):
    return [getattr(params, name) for params in sweep_params(SamplingParams(**settings), name, ends)]


def test_two_values_are_the_ends_of_a_range_and_more_are_taken_as_they_are():
    assert values("temperature", [0.2, 1.6]) == [0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6]
    assert values("top_p", [1, 0.3]) == [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]
    assert values("top_k", [1, 4]) == [1, 2, 3, 4] and values("top_k", [0, 100])[-2:] == [86, 100]
    assert values("temperature", [0, 1.5, 0.5]) == [0, 1.5, 0.5]
    last = 2**63 - 1
    assert values("seed", [last - 7, last]) == list(range(last - 7, last + 1))
    assert all(p.top_k == 5 and p.seed == 3 for p in sweep_params(SamplingParams(top_k=5, seed=3), "min_p", [0, 0.1]))


@pytest.mark.parametrize(
    "name, ends, message",
    [
        ("order", ["a", "b"], "setting is 'order'; it must be one of temperature, "),
        ([], [1, 2], r"setting is \[\]"),
        ("top_p", [0.5], r"values are \[0.5\]; they must be the ends of a range, or 3 to 8 numbers"),
        ("top_p", [0.5] * 9, "values are "),
        ("top_p", "12", "values are '12'"),
        ("seed", [None, 1], "values are "),
        ("top_p", [0.5, 0.5], "the ends of a range must differ"),
        ("top_p", [0.5, 2], "top_p is 2; it must be a number from 0.001 to 1"),
        ("top_k", [0.5, 2], "top_k is 0.5; it must be a whole number"),
        ("temperature", ["hot", "cold"], "temperature is 'hot'; it must be a number"),
        ("temperature_min", [0.5, 2], "temperature_min is .*; it must not be above temperature_max"),
    ],
)
def test_a_wrong_range_is_refused_in_one_sentence(name, ends, message):
    with pytest.raises(ValueError, match=message):
        sweep_params(SamplingParams(), name, ends)


def test_every_number_of_the_settings_can_be_swept():
    assert {"temperature", "top_k", "max_new_tokens", "seed"} <= SETTINGS.keys()
    assert not {"order", "stop", "dynamic_temperature"} & SETTINGS.keys()
    for name, field in SETTINGS.items():
        if name not in ("seed", "temperature_min", "temperature_max", "min_new_tokens"):
            low, high, _ = field.metadata["slider"]
            assert len(values(name, [low, high])) == 8


def test_each_output_of_a_batch_is_that_of_its_settings_alone(model, tokenizer):
    batch = sweep_params(SamplingParams(seed=4, max_new_tokens=6), "temperature", [0, 1.0, 2.0])
    outputs = sample_batch(model, tokenizer, "a fox", batch)
    for params, tokens in zip(batch, outputs):
        assert [t.id for t in tokens] == [t.id for t in stream(model, tokenizer, "a fox", params, record=False)]
    with pytest.raises(ValueError, match="prompt is empty"):
        sample_batch(model, tokenizer, "", batch)


def test_the_tree_parts_where_the_outputs_do():
    outputs = [
        [SimpleNamespace(id=id) for id in ids] for ids in ([1, 2, 3], [1, 2, 4, 5], [1, 2], [1, 2, 4, 6], [1, 2])
    ]
    root = token_tree(outputs)
    assert (root.samples, root.position, [t.id for t in root.tokens]) == ([0, 1, 2, 3, 4], 0, [1, 2])
    three, four, ended = root.children
    assert (three.samples, [t.id for t in three.tokens], three.children) == ([0], [3], [])
    assert (ended.samples, ended.position, ended.tokens) == ([2, 4], 2, [])
    assert (four.samples, four.position, [t.id for t in four.tokens]) == ([1, 3], 2, [4])
    assert [[t.id for t in leaf.tokens] for leaf in four.children] == [[5], [6]]
    assert [leaf.samples for leaf in token_tree(outputs[:1] * 2).children] == []
