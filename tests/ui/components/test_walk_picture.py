"""The Walk's data: the sampler's stages beside the trace's numbers, and texts and numbers as the picture shows them."""

import json

import pytest

from deepseek import SamplingParams, trace
from deepseek.ui.components.walk_picture import NUM_CANDIDATES, answer_value, picture_value, sampler, shown
from deepseek.ui.generation import generate


@pytest.fixture(scope="module")
def sampled(demo):
    """(trace, generation) of a hostile prompt and its sample."""
    params = SamplingParams(temperature=0.8, top_k=20, seed=1, max_new_tokens=6)
    *_, generation = generate(*demo, "Once </script><b>x</b>\n upon", params)
    return trace(*demo, generation.ids), generation


def test_the_sampler_is_that_of_the_token_that_follows(sampled):
    traced, generation = sampled
    first = len(generation.prompt_ids) - 1
    for index, token in enumerate(generation.tokens):
        drawn = sampler(traced, first + index, generation)
        assert (drawn["token"], drawn["probability"]) == (token.id, pytest.approx(token.sampler_probability))
        assert [stage["name"] for stage in drawn["stages"]] == [stage.name for stage in token.stages]
        assert [stage["num_candidates"] for stage in drawn["stages"]] == [s.num_candidates for s in token.stages]
        assert all(len(stage["says"]) > 20 for stage in drawn["stages"])
        assert len(drawn["candidates"]) <= NUM_CANDIDATES
        for candidate, expected in zip(drawn["candidates"], token.candidates):
            assert candidate["id"] == expected.id
            assert candidate["probabilities"] == pytest.approx(expected.probabilities, rel=1e-6)


def test_what_was_not_sampled_has_no_sampler(sampled, demo):
    traced, generation = sampled
    assert sampler(traced, 0, generation) is None  # a token of the prompt
    assert sampler(traced, len(traced.ids) - 1, generation) is None  # the end
    assert sampler(trace(*demo, "Once upon"), 0, generation) is None and sampler(traced, 5, None) is None


def test_the_value_is_json_without_markup_and_with_visible_texts(sampled):
    traced, generation = sampled
    value = picture_value(traced, 3, generation)
    assert "<" not in value
    data, walk = json.loads(value), traced.walk(3)
    assert data["position"] == data["walk"]["position"] == 3 and data["width"] == 576
    assert "".join(data["tokens"]).removeprefix("<|endoftext|>").startswith("Once </script><b>x</b>↵ upon")
    for row, expected in zip(data["walk"]["layers"], walk["layers"], strict=True):
        assert row["output_norm"] == pytest.approx(expected["output_norm"], rel=1e-6)
        for name, vector in row["latent"].items():
            assert vector["values"] == pytest.approx(expected["latent"][name]["values"], rel=1e-6)
    assert json.loads(picture_value(traced, 999, generation))["position"] == len(traced.ids) - 1


def test_numbers_keep_the_digits_of_float32_and_tokens_show_what_is_invisible():
    value = {"token": "\u202e\n x", "rows": [[0.123456789, 3, True, None]], "layer": 2}
    assert shown(value) == {"token": "U+202E↵ x", "rows": [[0.1234568, 3, True, None]], "layer": 2}
    assert json.loads(answer_value(4, row={"values": [1 / 3]})) == {"ask": 4, "row": {"values": [0.3333333]}}
