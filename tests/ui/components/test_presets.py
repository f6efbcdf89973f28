"""Presets, built-in and kept, those of version 0.1 included."""

import json

import gradio as gr
import pytest
from running import ROOT
from transformers import GenerationConfig

from deepseek import SamplingParams
from deepseek.ui.components import presets


def test_presets_from_the_browser_are_checked():
    good = {"temperature": 0.5}
    saved = {"mine": good, "bad": {"temperature": -1}, "odd": {"__class__": 1}, "none": None}
    assert presets.valid_presets(saved) == {"mine": good}
    assert presets.valid_presets("junk") == {}
    assert list(presets.add_preset({"mine": good}, " new ", good)) == ["mine", "new"]
    for name in ("", " ", "x" * 41, None, "greedy", "custom"):
        with pytest.raises(Exception, match="name is"):
            presets.add_preset({}, name, good)


def test_stock_transformers_samples_from_the_demo_by_the_default_preset():
    settings = GenerationConfig.from_pretrained(ROOT / "assets" / "demo")
    assert settings.do_sample
    preset = presets.PRESETS[presets.DEFAULT_PRESET]
    assert {name: getattr(settings, name) for name in preset} == preset


def test_a_kept_preset_can_be_removed():
    assert presets.remove_preset({"a": {}, "b": {"top_k": 3}}, "a") == {"b": {"top_k": 3}}
    for name in ("greedy", "custom", None):
        with pytest.raises(gr.Error, match="preset is .* must be one of yours: a"):
            presets.remove_preset({"a": {}}, name)


def test_settings_are_recognized_as_a_preset():
    kept = {"mine": dict(temperature=0.3), "twin": dict(temperature=0.3)}
    settings = dict(temperature=0.3, top_k=0, top_p=1.0)
    assert presets.name_of(settings, kept, "stories") == "mine" and presets.name_of(settings, kept, "twin") == "twin"
    assert presets.name_of(settings, {}, "twin") == presets.CUSTOM
    assert presets.name_of(dict(temperature=0.0, top_k=0), {}, "neutral") == "greedy"


def test_presets_of_version_0_1_still_open():
    saved = json.loads((ROOT / "tests/fixtures/v0.1/presets.json").read_text())
    (settings,) = presets.valid_presets(saved).values()
    assert settings["no_repeat_ngram_size"] == 3 and settings["frequency_penalty"] == 0.5
    assert SamplingParams(**settings).top_k == 40
