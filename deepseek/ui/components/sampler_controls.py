"""The sampler's controls, made from the fields of SamplingParams: sliders and boxes, presets, and back to SamplingParams."""

import random
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import fields

import gradio as gr

from deepseek.inference.sampling import SAMPLER_ORDERS, SamplingParams
from deepseek.ui.components.view import setting_control
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
PRESET_FIELDS = [name for _, labels in GROUPS[:-1] for name in labels]  # how to sample, not where to end
SCOPE_LABELS = {"all": "prompt and output", "output": "output only"}


def sampler_controls(
    first: str = DEFAULT_PRESET,
    saved: gr.BrowserState | None = None,
    parse_saved: Callable[[object], dict] = lambda saved: {},
) -> tuple[gr.Dropdown, dict[str, gr.components.Component]]:
    """Draws the controls; returns the dropdown of presets, and by name the controls of all settings but the seed.

    The dropdown sets every control of PRESET_FIELDS, to one of PRESETS or of `parse_saved(saved)`.
    """
    start, controls = SamplingParams(**PRESETS[first]), {}
    with gr.Row():
        preset = gr.Dropdown(list(PRESETS), value=first, label="preset", scale=3, min_width=120)
        neutral = gr.Button("Neutral", scale=1, min_width=90)
    for accordion, labels in GROUPS:
        with gr.Accordion(accordion, open=False) if accordion else nullcontext():
            for name, label in labels.items():
                field, value = FIELDS[name], getattr(start, name)
                if choices := field.metadata["choices"]:
                    choices = [(SCOPE_LABELS.get(choice, choice), choice) for choice in choices]
                    controls[name] = gr.Radio(choices, value=value, label=label, info=field.metadata["help"])
                else:
                    controls[name] = setting_control(field, value, label)
    order, changed = controls["order"], [controls[name] for name in PRESET_FIELDS]

    def choose(name, saved=None):
        params = SamplingParams(**{**parse_saved(saved), **PRESETS}.get(name, {}))
        return [getattr(params, name) for name in PRESET_FIELDS]

    order_info = {name: " → ".join(stages) for name, stages in SAMPLER_ORDERS.items()}
    order.info = order_info[start.order]
    order.change(lambda order: gr.update(info=order_info[order]), order, order, **UNQUEUED)
    neutral.click(lambda: ["neutral", *choose("neutral")], None, [preset, *changed], **UNQUEUED)
    preset.input(choose, [preset, saved] if saved else [preset], changed, **UNQUEUED)
    return preset, controls


@user_errors()
def to_params(names, values, seed, locked: bool) -> SamplingParams:
    """Validated settings from the controls' values; the seed is random unless `locked`. Raises gr.Error."""
    settings = dict(zip(names, values))
    if isinstance(settings.get("stop"), str):
        settings["stop"] = tuple(line for line in settings["stop"].split("\n") if line)
    if locked and seed is None:
        raise ValueError("seed is empty; it must be a whole number to be kept.")
    return SamplingParams(**settings, seed=seed if locked else random.randrange(2**31))
