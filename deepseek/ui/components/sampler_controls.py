"""The sampler's controls, made from the fields of SamplingParams: sliders and boxes, presets, and back to SamplingParams."""

import random
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import fields

import gradio as gr

from deepseek.inference.sampling import SAMPLER_ORDERS, SamplingParams
from deepseek.settings.schema import holds_several
from deepseek.ui.errors import user_errors
from deepseek.ui.generation import UNQUEUED

PRESETS = {
    "neutral": {},
    # Of the settings whose samples repeat themselves no more than real stories do, the one with the likeliest: docs/log.md.
    "stories": dict(temperature=0.7, top_p=0.9, top_k=40, repetition_penalty=1.1),
    "greedy": dict(temperature=0.0),
    "card, calm": dict(
        temperature=0.7, top_p=0.9, top_k=40, repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.5
    ),
    "card, wild": dict(
        temperature=1.65, top_p=0.95, top_k=50, repetition_penalty=1.5, presence_penalty=0.5, frequency_penalty=0.5
    ),
}
DEFAULT_PRESET = "stories"
FIELDS = {field.name: field for field in fields(SamplingParams)}
GROUPS = [  # (accordion or None, {setting: label}), from top to bottom
    (None, {"temperature": "temperature"}),
    ("dynamic temperature", {
        "dynamic_temperature": "use dynamic temperature", "temperature_min": "min", "temperature_max": "max",
        "temperature_exponent": "exponent",
    }),
    (None, {"top_k": "top-k", "top_p": "top-p", "min_p": "min-p"}),
    ("penalties", {
        "repetition_penalty": "repetition", "presence_penalty": "presence", "frequency_penalty": "frequency",
        "no_repeat_ngram_size": "no-repeat n-gram size",
    }),
    ("order and scope", {
        "order": "order", "repetition_scope": "scope of repetition and n-gram",
        "penalty_scope": "scope of presence and frequency",
    }),
    (None, {"stop": "stop strings", "max_new_tokens": "max new tokens"}),
]  # fmt: skip
SCOPE_LABELS = {"all": "prompt and output", "output": "output only"}


def _control(name: str, label: str, value) -> gr.components.Component:
    """The control of one setting, with `value` in it."""
    metadata = FIELDS[name].metadata
    options = dict(value=value, label=label, info=metadata["help"])
    if metadata.get("slider"):
        low, high, step = metadata["slider"]
        return gr.Slider(low, high, step=step, **options)
    if holds_several(FIELDS[name]):
        return gr.Textbox(lines=1, max_lines=4, **{**options, "value": "", "info": f"{metadata['help']}; one per line"})
    if metadata["choices"]:
        return gr.Radio([(SCOPE_LABELS.get(choice, choice), choice) for choice in metadata["choices"]], **options)
    return gr.Checkbox(**options)


def sampler_controls(first: str = DEFAULT_PRESET) -> tuple[gr.Dropdown, dict[str, gr.components.Component]]:
    """Draws the controls; returns the dropdown of presets, and by name the controls of all settings but the seed."""
    start, controls = SamplingParams(**PRESETS[first]), {}
    with gr.Row():
        preset = gr.Dropdown(list(PRESETS), value=first, label="preset", scale=3, min_width=120)
        neutral = gr.Button("Neutral", scale=1, min_width=90)
    for accordion, labels in GROUPS:
        with gr.Accordion(accordion, open=False) if accordion else nullcontext():
            for name, label in labels.items():
                controls[name] = _control(name, label, getattr(start, name))

    def order_text(order):
        return " → ".join(SAMPLER_ORDERS[order])

    order, names, reset = controls["order"], preset_fields(controls), SamplingParams()
    order.info = order_text(start.order)
    order.change(lambda order: gr.update(info=order_text(order)), order, order, **UNQUEUED)
    values = ["neutral", *(gr.update(value=getattr(reset, name)) for name in names)]
    neutral.click(lambda: values, None, [preset, *(controls[name] for name in names)], **UNQUEUED)
    return preset, controls


def apply_preset(
    preset: gr.Dropdown,
    controls: dict,
    saved: gr.BrowserState | None = None,
    parse_saved: Callable[[object], dict] = lambda saved: {},
) -> None:
    """Has the dropdown set every control but the length, to one of PRESETS or of `parse_saved(saved)`."""
    names = preset_fields(controls)

    def choose(name, saved=None):
        params = SamplingParams(**{**parse_saved(saved), **PRESETS}.get(name, {}))
        return [getattr(params, name) for name in names]

    inputs = [preset] if saved is None else [preset, saved]
    preset.input(choose, inputs, [controls[name] for name in names], **UNQUEUED)


def preset_fields(controls: dict) -> list[str]:
    """The settings of a preset: how to sample, not where to end."""
    return [name for name in controls if name not in ("max_new_tokens", "stop")]


@user_errors()
def to_params(names, values, seed, locked: bool) -> SamplingParams:
    """Validated settings from the controls' values; the seed is random unless `locked`. Raises gr.Error."""
    settings = dict(zip(names, values))
    if isinstance(settings.get("stop"), str):
        settings["stop"] = tuple(line for line in settings["stop"].split("\n") if line)
    if locked and seed is None:
        raise ValueError("seed is empty; it must be a whole number to be kept.")
    return SamplingParams(**settings, seed=seed if locked else random.randrange(2**31))
