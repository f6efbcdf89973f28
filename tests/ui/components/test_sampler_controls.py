"""The sampler's controls and presets."""

import gradio as gr
import pytest

from deepseek import SamplingParams
from deepseek.ui.components import presets, sampler_controls


def test_every_preset_is_valid():
    for preset in presets.PRESETS.values():
        SamplingParams(**preset)
    card = SamplingParams(**presets.PRESETS["card, calm"])
    assert (card.top_p, card.top_k, card.repetition_penalty) == (0.9, 40, 1.3)


def test_an_empty_seed_is_refused_where_it_is_to_be_kept():
    """Two sides would each draw their own."""
    with pytest.raises(gr.Error, match="^'?seed is empty; it must be"):
        sampler_controls.to_params([], [], None, locked=True)
    assert sampler_controls.to_params([], [], None, locked=False).seed is not None


def test_every_setting_but_the_seed_has_a_control_that_takes_its_default():
    with gr.Blocks():
        _, controls = sampler_controls.sampler_controls(gr.BrowserState({}), gr.State("assets/demo"), "neutral")
    assert set(controls) == set(SamplingParams.__dataclass_fields__) - {"seed"}
    values = [control.value for control in controls.values()]
    params = sampler_controls.to_params(controls, values, "5", locked=True)
    assert params == SamplingParams(seed=5)
    for name, control in controls.items():
        if isinstance(control, gr.Slider):
            limits = SamplingParams.__dataclass_fields__[name].metadata
            assert limits["low"] <= control.minimum <= control.value <= control.maximum <= limits["high"]


def test_controls_hold_every_setting_exactly():
    """What a slider or a browser's number could not: a link may have it."""
    params = SamplingParams(stop=("\n", "a\\n", " b\r\n"), temperature=7.25, max_new_tokens=100_000, seed=2**63 - 1)
    with gr.Blocks():
        _, controls = sampler_controls.sampler_controls(gr.BrowserState({}), gr.State("assets/demo"))
    updates = {name: sampler_controls.fit_to(control, getattr(params, name)) for name, control in controls.items()}
    for name in ("temperature", "max_new_tokens", "top_p"):
        assert updates[name]["minimum"] <= updates[name]["value"] <= updates[name]["maximum"]
    values = [update["value"] for update in updates.values()]
    assert sampler_controls.to_params(controls, values, str(params.seed), locked=True) == params
    with pytest.raises(gr.Error, match="seed is '1.5'; it must be a whole number from 0 to"):
        sampler_controls.to_params([], [], "1.5", locked=True)
