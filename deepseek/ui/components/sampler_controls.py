"""The sampler's controls: one slider or box a setting, presets over them, and the way from their values to SamplingParams."""

import random

import gradio as gr

from deepseek.inference.sampling import SAMPLER_ORDERS, SCOPES, SamplingParams
from deepseek.ui.errors import user_error
from deepseek.ui.generation import UNQUEUED

PRESETS = {
    "neutral": {},
    # Of the settings whose texts repeat themselves no more than real stories do, those of the likeliest texts: docs/log.md.
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
SCOPE_CHOICES = [("prompt and output", "all"), ("output only", "output")]
assert [value for _, value in SCOPE_CHOICES] == list(SCOPES)


def sampler_controls(first: str = DEFAULT_PRESET) -> tuple[gr.Dropdown, dict[str, gr.components.Component]]:
    """Draws the controls; returns the presets' dropdown, and the others by the name of their setting, less the seed."""
    start = SamplingParams(**PRESETS[first])

    def slider(name, low, high, step, text, info):
        return gr.Slider(low, high, value=getattr(start, name), step=step, label=text, info=info)

    with gr.Row():
        preset = gr.Dropdown(list(PRESETS), value=first, label="preset", scale=3, min_width=120)
        neutral = gr.Button("Neutral", scale=1, min_width=90)
    c = {}
    c["temperature"] = slider(
        "temperature", 0, 2, 0.05, "temperature", "above 1 bolder, below 1 safer; 0 always takes the most likely token"
    )
    with gr.Accordion("dynamic temperature", open=False):
        c["dynamic_temperature"] = gr.Checkbox(
            value=start.dynamic_temperature,
            label="in place of the fixed one",
            info="cold where the model is sure, hot where it is not: min + (max − min) · (entropy / ln N)^exponent",
        )
        c["temperature_min"] = slider("temperature_min", 0.05, 2, 0.05, "min", "at entropy 0")
        c["temperature_max"] = slider(
            "temperature_max", 0.05, 3, 0.05, "max", "when all N candidates are equally likely"
        )
        c["temperature_exponent"] = slider(
            "temperature_exponent", 0.1, 4, 0.1, "exponent", "above 1: stays cold longer"
        )
    c["top_k"] = slider("top_k", 0, 200, 1, "top-k", "keeps the k most likely; 0 is off")
    c["top_p"] = slider("top_p", 0.05, 1, 0.01, "top-p", "keeps the most likely that together reach p; 1 is off")
    c["min_p"] = slider(
        "min_p", 0, 0.5, 0.01, "min-p", "keeps those at least this times as likely as the first; 0 is off"
    )
    with gr.Accordion("penalties", open=False):
        c["repetition_penalty"] = slider(
            "repetition_penalty",
            1,
            2,
            0.05,
            "repetition",
            "makes every token already seen less likely; 1 is off",
        )
        c["presence_penalty"] = slider(
            "presence_penalty", -2, 2, 0.1, "presence", "taken off the score of a token seen, once"
        )
        c["frequency_penalty"] = slider(
            "frequency_penalty", -2, 2, 0.1, "frequency", "taken off for each time it was seen"
        )
        c["no_repeat_ngram_size"] = slider(
            "no_repeat_ngram_size", 0, 10, 1, "no repeated n-gram", "bars n tokens in a row twice; 0 is off"
        )
    with gr.Accordion("order and scope", open=False):
        c["order"] = gr.Radio(
            list(SAMPLER_ORDERS), value=start.order, label="order", info=" → ".join(SAMPLER_ORDERS[start.order])
        )
        c["repetition_scope"] = gr.Radio(
            SCOPE_CHOICES, value=start.repetition_scope, label="repetition and n-gram look at"
        )
        c["penalty_scope"] = gr.Radio(SCOPE_CHOICES, value=start.penalty_scope, label="presence and frequency look at")
    c["stop"] = gr.Textbox(
        "", label="stop strings", info="one a line; the text ends once it holds one", lines=1, max_lines=4
    )
    c["max_new_tokens"] = slider("max_new_tokens", 1, 400, 1, "new tokens", "at most")

    c["order"].change(
        lambda order: gr.update(info=" → ".join(SAMPLER_ORDERS[order])),
        c["order"],
        c["order"],
        **UNQUEUED,
    )
    fields, start = preset_fields(c), SamplingParams()
    values = [gr.update(value=getattr(start, field)) for field in fields]
    neutral.click(lambda: ["neutral", *values], None, [preset, *(c[field] for field in fields)], **UNQUEUED)
    return preset, c


def apply_preset(
    preset: gr.Dropdown, settings: dict, saved: gr.BrowserState | None = None, known=lambda saved: {}
) -> None:
    """Wires the dropdown: choosing a preset, one of PRESETS or of `known(saved)`, sets every slider but the length."""
    fields = preset_fields(settings)

    def choose(name, saved=None):
        values = SamplingParams(**{**known(saved), **PRESETS}.get(name, {}))
        return [getattr(values, field) for field in fields]

    inputs = [preset] if saved is None else [preset, saved]
    preset.input(choose, inputs, [settings[field] for field in fields], **UNQUEUED)


def preset_fields(settings: dict) -> list[str]:
    """The settings that a preset holds: how to draw, not where to end."""
    return [name for name in settings if name not in ("max_new_tokens", "stop")]


def to_params(names, values, seed, locked: bool) -> SamplingParams:
    """Checked settings from the controls' values; an unlocked seed is drawn anew. Raises gr.Error."""
    settings = dict(zip(names, values))
    if isinstance(settings.get("stop"), str):
        settings["stop"] = tuple(line for line in settings["stop"].split("\n") if line)
    try:
        if locked and seed is None:  # two sides would draw two
            raise ValueError("seed is empty; it must be a whole number to be kept.")
        return SamplingParams(**settings, seed=seed if locked else random.randrange(2**31))
    except ValueError as error:
        raise user_error(error) from error
