"""One declaration of a setting: its check, its conversion, its flag and its help."""

import argparse
from dataclasses import dataclass, fields

import pytest

from deepseek.settings.schema import add_arguments, allowed_values, flag, from_text, setting, validate


@dataclass
class Settings:
    rate: float = setting(0.5, "a rate in %", low=0, high=1)
    max_steps: int = setting(10, "a count", low=1)
    seed: int | None = setting(None, "random if not given", low=0, high=9)
    shard: bool = setting(False, "a switch")
    name: str = setting("run", "a name", low=1, high=5)
    order: str = setting("a", "a choice", choices=("a", "b"))
    data: list[str] = setting(["x"], "files")
    weights: list[float] = setting([], "weights", low=0)
    stop: tuple[str, ...] = setting((), "strings", 1, 3, max_items=2)


FIELDS = {f.name: f for f in fields(Settings)}


def test_defaults_are_valid_and_lists_are_not_shared():
    validate(settings := Settings())
    assert settings == Settings()
    settings.data.append("y")
    assert Settings().data == ["x"]


@pytest.mark.parametrize(
    "name, value, converted",
    [
        ("rate", 1, 1.0),
        ("max_steps", 3.0, 3),
        ("max_steps", 10**30, 10**30),
        ("seed", None, None),
        ("seed", 9, 9),
        ("data", ("p", "q"), ["p", "q"]),
        ("weights", [1, 0.5], [1.0, 0.5]),
        ("stop", "one", ("one",)),
        ("stop", ["a", "b"], ("a", "b")),
    ],
)
def test_values_are_converted_to_the_fields_type(name, value, converted):
    settings = Settings(**{name: value})
    validate(settings)
    result = getattr(settings, name)
    assert result == converted and type(result) is type(converted)
    assert not isinstance(result, list) or [type(item) for item in result] == [type(item) for item in converted]


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("rate", 1.5, "rate is 1.5; it must be a number from 0 to 1."),
        ("rate", float("nan"), "rate is nan; it must be a number from 0 to 1."),
        ("rate", True, "rate is True; it must be a number from 0 to 1."),
        ("rate", None, "rate is None; it must be a number from 0 to 1."),
        ("max_steps", 0, "max_steps is 0; it must be a whole number from 1 to infinity."),
        ("max_steps", 2.5, "max_steps is 2.5; it must be a whole number from 1 to infinity."),
        ("shard", 1, "shard is 1; it must be true or false."),
        ("name", "", "name is ''; it must be text of 1 to 5 characters."),
        ("name", 5, "name is 5; it must be text of 1 to 5 characters."),
        ("order", "c", "order is 'c'; it must be one of a, b."),
        ("data", "x", "data is 'x'; it must be a list."),
        ("data", [1], "data is 1; it must be text."),
        ("weights", [1, -1], "weights is -1; it must be a number from 0 to infinity."),
        ("stop", ["a", "b", "c"], "stop is ['a', 'b', 'c']; it must be at most 2 texts of 1 to 3 characters."),
        ("stop", ["a", ""], "stop is ['a', '']; it must be at most 2 texts of 1 to 3 characters."),
    ],
)
def test_a_bad_value_is_refused_in_one_sentence(name, value, message):
    with pytest.raises(ValueError) as caught:
        validate(Settings(**{name: value}))
    assert str(caught.value) == message and allowed_values(FIELDS[name]) in message.replace("a list", "text")


def test_an_integer_too_large_for_a_float_is_refused():
    with pytest.raises(ValueError, match="weights is 1000"):
        validate(Settings(weights=[10**400]))


def test_long_values_are_cut():
    with pytest.raises(ValueError) as caught:
        validate(Settings(name="x" * 99))
    assert str(caught.value) == f"name is '{'x' * 56}...; it must be text of 1 to 5 characters."


@pytest.mark.parametrize(
    "name, text, value",
    [("rate", "0.25", 0.25), ("seed", "7", 7), ("shard", "True", True), ("max_steps", "many", "many")],
)
def test_from_text(name, text, value):
    assert from_text(FIELDS[name], text) == value


def test_every_field_has_a_flag_and_its_help(capsys):
    parser = argparse.ArgumentParser()
    add_arguments(parser, Settings)
    assert Settings(**vars(parser.parse_args([]))) == Settings(stop=[])
    words = "--rate 0.1 --max-steps 3 --seed 4 --shard --name me --order b --data p q --weights 1 2 --stop a --stop b"
    expected = Settings(0.1, 3, 4, True, "me", "b", ["p", "q"], [1.0, 2.0], ["a", "b"])
    assert Settings(**vars(parser.parse_args(words.split()))) == expected
    text = parser.format_help()
    assert all(flag(f) in text and f.metadata["help"] in text for f in FIELDS.values())
    assert "a rate in % (0.5)" in text and "--order a|b" in text
