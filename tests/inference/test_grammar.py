"""Constrained output: what is written matches, ends when it is complete, and no pattern keeps the process busy."""

import json
import re
import time

import pytest

from deepseek import SamplingParams, stream
from deepseek.inference.engine import Request, decode_step
from deepseek.inference.generation_record import make_record, parse_record

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 9}, "age": {"type": "integer", "minimum": 1, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def write(model, tokenizer, forced_tokens=None, **settings):
    params = SamplingParams(**{"seed": 1, "max_new_tokens": 60, **settings})
    return list(stream(model, tokenizer, "a fox", params, forced_tokens))


def text(tokens):
    return "".join(token.text for token in tokens)


@pytest.mark.parametrize("seed", range(4))
def test_the_output_matches_and_ends_when_it_is_complete(any_model, tokenizer, seed):
    """At a high temperature, and under settings that would remove the only tokens left."""
    heat = dict(temperature=3.0, seed=seed)
    tokens = write(any_model, tokenizer, regex="[a-f]{3}-[0-9]{2}", banned_tokens=("-",), min_new_tokens=50, **heat)
    assert re.fullmatch("[a-f]{3}-[0-9]{2}", text(tokens)) and tokens[-1].finish_reason == "stop"
    choice = ("yes", "no, never", "nö 🦊")
    assert text(write(any_model, tokenizer, choice=choice, no_repeat_ngram_size=1, **heat)) in choice
    value = json.loads(text(write(any_model, tokenizer, json_schema=SCHEMA, top_k=50, **heat)))
    assert set(value) == {"name", "age"} and len(value["name"]) <= 9 and 1 <= value["age"] <= 99


def test_the_end_token_is_allowed_exactly_when_the_output_is_complete(model, tokenizer):
    request = Request(model, tokenizer, "a", SamplingParams(regex="ab(cd)*", seed=0))
    grammar, end = request.state.grammar, next(iter(request.eos_token_ids))
    for character, complete in (("a", False), ("b", True), ("c", False), ("d", True)):
        (token,) = tokenizer(character, add_special_tokens=False)["input_ids"]
        grammar.accept(token)
        assert grammar.is_complete == complete == (end in grammar.allowed_ids())
    grammar.accept(end)
    with pytest.raises(ValueError, match="regex does not allow token 5 here"):
        Request(model, tokenizer, "a", SamplingParams(regex="0+")).state.grammar.accept(5)


def test_a_model_without_an_end_token_stops_once_nothing_may_follow(model, tokenizer, monkeypatch):
    monkeypatch.setattr(model.generation_config, "eos_token_id", None)
    tokens = write(model, tokenizer, choice=["yes", "no"])
    assert text(tokens) in ("yes", "no") and tokens[-1].finish_reason == "stop"


def test_the_mask_is_a_stage_of_the_trace(demo):
    first = write(*demo, choice=["yes", "you"], temperature=0)[0]
    stage = first.stages[0]
    assert (stage.name, stage.active, stage.changed) == (
        "grammar",
        True,
        True,
    ) and stage.num_candidates == 4  # y ye yo yes
    assert {c.removed_by for c in first.candidates if not c.text.startswith("y")} == {"grammar"}
    assert sum(c.probabilities[0] for c in first.candidates if c.removed_by) <= stage.moved < 1
    assert not write(*demo, max_new_tokens=1)[0].stages[0].active


def test_a_forced_token_must_be_allowed(model, tokenizer):
    (letter,) = tokenizer("z", add_special_tokens=False)["input_ids"]
    assert write(model, tokenizer, {1: letter}, regex="[a-z]{9}")[1].id == letter
    with pytest.raises(ValueError, match=f"regex does not allow token {letter} here"):
        write(model, tokenizer, {1: letter}, regex="[a-f]{4}")


def test_a_constrained_output_is_the_same_in_a_batch_and_from_its_record(model, tokenizer):
    settings = [dict(regex="[a-z ]{5,30}", seed=2), dict(json_schema=SCHEMA, seed=2), dict(seed=2)]
    batch = [SamplingParams(max_new_tokens=12, **each) for each in settings]
    requests = [Request(model, tokenizer, "a fox", params) for params in batch]
    steps = [decode_step(requests) for _ in range(5)]
    for index, params in enumerate(batch):
        alone = [token.id for token, _ in zip(stream(model, tokenizer, "a fox", params), range(5))]
        assert [step[index].id for step in steps] == alone
    record = json.dumps(make_record(model, "a fox", batch[1], [step[1] for step in steps], {}))
    assert SamplingParams(**parse_record(record)["params"]) == batch[1]


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(regex="("), r"^regex is '\('; it must be a regular expression: unclosed group\.$"),
        (dict(regex="(?=a)b"), "look-ahead"),
        (dict(regex=r"(a)\1"), "backreferences are not supported"),
        (dict(regex="a{100000}"), "it repeats something 100,000 times, 1,000 are allowed"),
        (dict(regex="x" * 2001), "regex is .*; it must be text of 0 to 2000 characters"),
        (dict(regex="(" * 900 + ")" * 900), "^regex is .*; it must be a regular expression: "),
        (dict(choice=["a"] * 101), "choice is "),
        (dict(choice=5), "choice is 5; it must be a list"),
        (dict(json_schema="{"), "^json_schema is '{'; it must be a JSON schema: EOF while parsing"),
        (dict(json_schema="[]"), "^json_schema is .*; it must be a JSON schema: "),
        (dict(json_schema="[" * 9000), "^json_schema is .*; it must be a JSON schema: "),
        (dict(json_schema={"type": "fox"}), "Invalid type: fox"),
        (
            dict(json_schema={"$ref": "http://example.com/x"}),
            "json_schema is .*: .*does not fetch resources|not present",
        ),
        (dict(json_schema={"type": "string", "pattern": "("}), "unclosed group"),
        (dict(regex="a", choice=["b"]), "^regex and choice are given; only one of regex, choice, json_schema may be"),
    ],
)
def test_a_wrong_constraint_is_refused_in_one_sentence(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        SamplingParams(**settings)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_a_constraint_is_named_that_no_text_follows_or_that_takes_too_much_work(model, tokenizer):
    with pytest.raises(
        ValueError, match=r"^regex does not allow any token here; it must allow what is to be written\.$"
    ):
        write(model, tokenizer, regex=r"[^\x00-\x{10FFFF}]")
    endless = {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}
    with pytest.raises(ValueError, match="^json_schema takes too much work here; it must be simpler: .*Too many items"):
        write(model, tokenizer, json_schema=endless)


def test_other_programs_names_of_the_constraints():
    from deepseek.settings.aliases import rename

    names = rename({"guided_regex": "a", "guided_choice": ["b"], "guided_json": "{}"})
    assert names == {"regex": "a", "choice": ["b"], "json_schema": "{}"}


HOSTILE = [
    dict(regex="(a|b)*a(a|b){30}"),  # 2^30 states if they are all built
    dict(regex="((a{1,1000}){1,1000}){1,1000}"),
    dict(regex="(.{0,1000}a){0,1000}"),
    dict(regex=r"\p{L}{1,500}[^a]{400}"),
    dict(regex="(a+)+b"),
    dict(regex="|".join(f"{n:04}" for n in range(400))),
    dict(regex=r"[^\x00-\x{10FFFF}]"),  # matches nothing
    dict(choice=["x" * 200 + str(n) for n in range(100) if n < 0] or ["x" * 199 + chr(65 + n) for n in range(50)]),
    dict(json_schema={"$ref": "#"}),
    dict(json_schema={"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}),
    dict(json_schema={"type": "array", "minItems": 10**9, "items": {"type": "integer"}}),
    dict(json_schema={"type": "string", "maxLength": 10**9, "minLength": 10**9}),
    dict(json_schema={"allOf": [{"anyOf": [{"type": "string", "minLength": n}, {"minimum": n}]} for n in range(14)]}),
    dict(json_schema={"enum": [f"word {n}" for n in range(600)]}),
]


@pytest.mark.parametrize("settings", HOSTILE, ids=lambda settings: str(settings)[:40])
def test_a_hostile_constraint_is_followed_or_refused_but_keeps_nobody_waiting(demo, settings):
    start, tokens = time.process_time(), []
    try:
        params = SamplingParams(seed=0, max_new_tokens=20, **settings)
        for _ in range(2):
            tokens = list(stream(*demo, "a", params, record=False))
    except ValueError as error:
        assert str(error).startswith(f"{next(iter(settings))} ") and "\n" not in str(error)
    assert time.process_time() - start < 20, len(tokens)
