"""The sampler's controls, made from the fields of SamplingParams: sliders and boxes, presets, and back to SamplingParams."""

import random
import re
from contextlib import nullcontext
from dataclasses import fields

import gradio as gr

from deepseek.inference.sampling import SamplingParams
from deepseek.settings.schema import from_text, holds_several
from deepseek.ui.components import named_tokens, order_control, presets
from deepseek.ui.components.view import on_pick, setting_control, text_lines
from deepseek.ui.errors import user_errors
from deepseek.ui.generation import QUICK_QUEUE
from deepseek.ui.server import model_registry

FIELDS = {field.name: field for field in fields(SamplingParams)}
GROUPS = [  # (accordion or None, {setting: label}), the most used on top
    (None, {"temperature": "temperature", "top_p": "top-p", "top_k": "top-k", "min_p": "min-p"}),
    ("dynamic temperature", {
        "dynamic_temperature": "use dynamic temperature", "temperature_min": "min", "temperature_max": "max",
        "temperature_exponent": "exponent",
    }),
    ("truncation", {
        "typical_p": "typical-p", "top_n_sigma": "top-n-sigma", "epsilon_cutoff": "epsilon cut-off",
        "eta_cutoff": "eta cut-off", "xtc_probability": "XTC: probability", "xtc_threshold": "XTC: threshold",
    }),
    ("penalties", {
        "repetition_penalty": "repetition", "presence_penalty": "presence", "frequency_penalty": "frequency",
        "no_repeat_ngram_size": "no-repeat n-gram size", "repetition_scope": "scope of repetition and n-gram",
        "penalty_scope": "scope of presence and frequency",
    }),
    ("DRY, against repeated sequences", {
        "dry_multiplier": "multiplier", "dry_base": "base", "dry_allowed_length": "allowed length",
        "dry_sequence_breakers": "sequence breakers",
    }),
    ("mirostat and adaptive-p", {
        "mirostat_tau": "mirostat: tau", "mirostat_eta": "mirostat: eta", "adaptive_target": "adaptive-p: target",
        "adaptive_decay": "adaptive-p: decay",
    }),
    ("bias and bans", {"logit_bias": "logit bias", "banned_tokens": "banned tokens"}),
    ("order", {"order": "order"}),
    ("constrained output", {"regex": "regular expression", "choice": "choices", "json_schema": "JSON schema"}),
    (None, {"max_new_tokens": "max new tokens", "min_new_tokens": "min new tokens", "stop": "stop strings"}),
]  # fmt: skip
PRESET_FIELDS = [name for _, labels in GROUPS[:-2] for name in labels]  # how to sample, not what or how much
ESCAPES = {"\\": r"\\", "\n": r"\n", "\r": r"\r"}  # of texts in a box that has one per line
SCOPE_LABELS = {"all": "prompt and output", "output": "output only"}


def sampler_controls(
    kept: gr.BrowserState, checkpoint: gr.components.Component, first: str = presets.DEFAULT_PRESET
) -> tuple[gr.Dropdown, dict[str, gr.components.Component]]:
    """Draws the controls; returns the dropdown of presets, and by name the controls of all settings but the seed.

    `checkpoint` holds the path of the model whose tokens logit bias and banned tokens name. The dropdown sets every control of
    PRESET_FIELDS, to a built-in preset or one of `kept`, and shows which of them the
    controls have.
    """
    start, controls = SamplingParams(**presets.PRESETS[first]), {}
    with gr.Row():
        preset = gr.Dropdown([*presets.PRESETS, presets.CUSTOM], value=first, label="preset", scale=3, min_width=120)
        neutral = gr.Button("Neutral", scale=1, min_width=90)
    chain = text_lines(order_control.in_force(start))
    for accordion, labels in GROUPS:
        with gr.Accordion(accordion, open=False) if accordion else nullcontext(), gr.Row():
            for name, label in labels.items():
                field, value = FIELDS[name], getattr(start, name)
                if name == "order":
                    controls[name] = order_control.order_control(start)
                elif choices := field.metadata["choices"]:
                    choices = [(SCOPE_LABELS.get(choice, choice), choice) for choice in choices]
                    controls[name] = gr.Radio(
                        choices, value=value, label=label, info=field.metadata["help"], min_width=240
                    )
                else:
                    controls[name] = setting_control(field, value, label, min_width=240)
            if "logit_bias" in labels:
                named = text_lines("")
    for name, control in controls.items():
        if holds_several(FIELDS[name]):
            control.value = _lines(getattr(start, name))
            control.info += r"; \n is a line end"
    changed = [controls[name] for name in PRESET_FIELDS]

    def choose(kept, name):
        params = presets.settings_of(name, kept)
        return [fit_to(controls[name], getattr(params, name)) if params else gr.skip() for name in PRESET_FIELDS]

    def recognize(kept, name, *values):
        settings = {name: from_control(name, value) for name, value in zip(PRESET_FIELDS, values)}
        return presets.update(kept, presets.name_of(settings, kept, name))

    def describe(path, *values):
        settings = {name: from_control(name, value) for name, value in zip(controls, values)}
        try:
            params = SamplingParams(**settings)
        except ValueError as error:
            return f"⚠ {error}", gr.skip(), gr.skip()
        tokens = ""
        if params.logit_bias or params.banned_tokens:
            model, tokenizer = model_registry.get_model(path)
            tokens = named_tokens.describe(params, tokenizer, model.config.get_text_config().vocab_size)
        return order_control.in_force(params), gr.HTML(active=order_control.active_samplers(params)), tokens

    neutral.click(lambda: ["neutral", *choose({}, "neutral")], None, [preset, *changed], **QUICK_QUEUE)
    fresh = dict(js=presets.READ, **QUICK_QUEUE)
    on_pick(preset, choose, [kept, preset], changed, presets.READ)
    preset.focus(presets.update, kept, preset, **fresh)
    moved = [control.release if isinstance(control, gr.Slider) else control.input for control in changed]
    gr.on(moved, recognize, [kept, preset, *changed], preset, trigger_mode="always_last", **fresh)
    changes, options = (
        [control.change for control in controls.values()],
        dict(trigger_mode="always_last", **QUICK_QUEUE),
    )
    gr.on(changes, describe, [checkpoint, *controls.values()], [chain, controls["order"], named], **options)
    return preset, controls


def fit_to(control: gr.components.Component, value) -> dict:
    """The update that shows `value`, a setting, in its control: a slider that ends before it becomes longer."""
    if isinstance(value, tuple):
        value = _lines(value)
    if isinstance(control, gr.Slider):
        return gr.update(value=value, minimum=min(control.minimum, value), maximum=max(control.maximum, value))
    return gr.update(value=value)


def _lines(texts: tuple[str, ...]) -> str:
    return "\n".join(re.sub(r"[\\\n\r]", lambda match: ESCAPES[match[0]], text) for text in texts)


def seed_box(seed: int, label: str, **options) -> gr.Textbox:
    """The control of a seed; `options` are gradio's. Text, since a browser's numbers end at 2^53 and seeds at 2^63."""
    return gr.Textbox(str(seed), label=label, max_lines=1, **options)


def from_control(name: str, value):
    """The setting that a control's value stands for: of a box with one text per line, these texts."""
    if not (holds_several(FIELDS[name]) and isinstance(value, str)):
        return value
    unescape = {escape: character for character, escape in ESCAPES.items()}
    lines = [line for line in value.split("\n") if line]
    return tuple(re.sub(r"\\[\\nr]", lambda match: unescape[match[0]], line) for line in lines)


@user_errors()
def to_params(names, values, seed: str, locked: bool) -> SamplingParams:
    """Validated settings from the controls' values; the seed is random unless `locked`. Raises gr.Error."""
    settings = {name: from_control(name, value) for name, value in zip(names, values)}
    if locked and not (seed or "").strip():
        raise ValueError("seed is empty; it must be a whole number to be kept.")
    return SamplingParams(**settings, seed=from_text(FIELDS["seed"], seed) if locked else random.randrange(2**31))
