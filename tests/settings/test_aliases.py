"""The table of old names: what it renames, and that it names settings that exist."""

from dataclasses import fields

import pytest

from deepseek import generate
from deepseek.inference.sampling import SamplingParams
from deepseek.settings.aliases import ALIASES, rename
from deepseek.settings.schema import flag, item_type
from deepseek.training import config
from deepseek.training.config import TrainConfig

SETTINGS = {f.name for settings in (SamplingParams, TrainConfig) for f in fields(settings)}
REQUEST = {"interventions", "forced_tokens"}  # arguments of a request that are no settings


def test_old_names_are_renamed_and_present_ones_win():
    values = {"steps": 5, "clip": 0.5, "lr": 1e-3, "max_steps": 9}
    assert rename(values) == {"max_steps": 9, "max_grad_norm": 0.5, "lr": 1e-3}
    assert values["steps"] == 5 and rename({}) == {}


def test_every_alias_leads_to_a_present_name_and_hides_none():
    assert set(ALIASES.values()) <= SETTINGS | REQUEST
    assert not set(ALIASES) & (SETTINGS | REQUEST)


@pytest.mark.parametrize("name", sorted(set(ALIASES) - {"changes", "force"}))
def test_every_old_flag_still_works_and_is_not_listed(name, capsys):
    samples = ALIASES[name] in SamplingParams.__dataclass_fields__
    parse, settings = (generate.parse, SamplingParams) if samples else (config.parse, TrainConfig)
    field = next(f for f in fields(settings) if f.name == ALIASES[name])
    value = {int: "9", float: "0.5", str: "assets/demo"}[item_type(field)]
    value = {"samplers": "llama.cpp", "guided_json": "{}"}.get(name, value)
    old_flag = "--" + name.replace("_", "-")
    assert parse([old_flag, value]) == parse([flag(field), value]) != parse([])
    with pytest.raises(SystemExit):
        parse(["--help"])
    assert f"  {old_flag} " not in capsys.readouterr().out


def test_a_dynamic_temperature_by_its_range():
    """llama.cpp's: the temperature less and plus the range."""
    expected = dict(temperature=0.9, temperature_min=0.4, temperature_max=1.4, dynamic_temperature=True)
    assert rename({"temp": 0.9, "dynatemp_range": 0.5}) == pytest.approx(expected)
    assert rename({"dynatemp_range": 5})["temperature_min"] == 0.01 and rename({"dynatemp_range": 0}) == {}
    _, params = generate.parse(["--dynatemp-range", "0.5", "--temperature", "0.9"])
    assert params == SamplingParams(**expected)
    for bad in (-1, 11, "x", True, [1]):
        with pytest.raises(ValueError, match="dynatemp_range is .*; it must be a number from 0 to 10."):
            rename({"dynatemp_range": bad})
