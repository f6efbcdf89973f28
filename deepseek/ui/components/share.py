"""Saving and sharing: presets in the user's browser, a link that restores everything, a file that repeats a sample."""

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from urllib.parse import urlencode

import gradio as gr

from deepseek.inference import generation_record
from deepseek.inference.sampling import SamplingParams
from deepseek.settings.aliases import rename
from deepseek.settings.schema import from_text, holds_several
from deepseek.ui.components.sampler_controls import FIELDS, PRESET_FIELDS, PRESETS
from deepseek.ui.errors import user_errors
from deepseek.ui.generation import UNQUEUED
from deepseek.ui.server import model_registry

MAX_PRESETS = 50
MAX_NAME_CHARACTERS = 40


def to_query(prompt: str, params: SamplingParams, forced_tokens: dict[int, int], checkpoint: str = "") -> str:
    """A link's query string: prompt, settings that are not neutral, a branch's tokens as position-id, and the checkpoint."""
    neutral = SamplingParams()
    query = {name: value for name, value in asdict(params).items() if value != getattr(neutral, name)}
    if forced_tokens:
        query["forced_tokens"] = [f"{position}-{token}" for position, token in sorted(forced_tokens.items())]
    if checkpoint:
        query["checkpoint"] = checkpoint
    return urlencode({"prompt": prompt, **query}, doseq=True)


def from_query(query, vocab_size: float) -> tuple[str, SamplingParams, dict[int, int]]:
    """(prompt, settings, forced tokens) of a link's `gr.Request.query_params`. Raises ValueError naming the wrong field."""
    texts, settings, forced_tokens = rename({name: query.getlist(name) for name in query}), {}, {}
    for name, field in FIELDS.items():
        if name in texts:
            values = [from_text(field, text) for text in texts[name]]
            settings[name] = tuple(values) if holds_several(field) else values[-1]
    for pair in texts.get("forced_tokens", []):
        position, _, token = pair.partition("-")
        if not (position.isdecimal() and token.isdecimal() and int(token) < vocab_size):
            rule = f"it must be a position, a dash and a token's id below {vocab_size}"
            raise ValueError(f"forced_tokens is {pair!r:.40}; {rule}.")
        forced_tokens[int(position)] = int(token)
    return query.get("prompt", ""), SamplingParams(**settings), forced_tokens


def export_file(generation) -> str:
    """The path of a new JSON file with the generation's record."""
    model, _ = model_registry.get_model(generation.checkpoint)
    path = Path(tempfile.mkdtemp(prefix="generation-")) / f"generation-seed-{generation.params.seed}.json"
    record = generation_record.make_record(
        model, generation.prompt, generation.params, generation.tokens, generation.forced_tokens
    )
    path.write_text(json.dumps(record))
    return str(path)


def valid_presets(saved) -> dict[str, dict]:
    """The valid presets in what the browser sent."""
    presets = {}
    for name, settings in saved.items() if isinstance(saved, dict) else ():
        try:
            settings = rename(settings)
            SamplingParams(**settings)
        except (AttributeError, TypeError, ValueError):
            continue
        presets[str(name)[:MAX_NAME_CHARACTERS]] = settings
    return dict(list(presets.items())[:MAX_PRESETS])


@user_errors()
def add_preset(presets: dict, name: str, settings: dict) -> dict:
    """`presets` with one more. Raises gr.Error for an invalid name."""
    name = name.strip() if isinstance(name, str) else ""
    if not 0 < len(name) <= MAX_NAME_CHARACTERS:
        raise ValueError(f"name is {name!r:.60}; it must be 1 to {MAX_NAME_CHARACTERS} characters.")
    if name in PRESETS:  # the built-in preset would hide it
        raise ValueError(f"name is {name!r}; it must be another than {', '.join(PRESETS)}.")
    if len(presets) >= MAX_PRESETS and name not in presets:
        raise ValueError(f"there are {len(presets)} presets, the most that can be saved; replace one of them.")
    return {**presets, name: settings}


def build(
    demo, generation: gr.State, saved: gr.BrowserState, preset: gr.Dropdown, controls: dict, current: str
) -> None:
    """Draws and wires `saved` presets, link and export, for the user's `generation` and the sampler's `controls`.

    A link names the checkpoint of its sample if that is not the page's own, `current`.
    """
    with gr.Accordion("save and share", open=False):
        with gr.Row():
            label = "save these settings as a preset"
            name = gr.Textbox(label=label, max_length=MAX_NAME_CHARACTERS, placeholder="its name", scale=3)
            save = gr.Button("Save", scale=1, min_width=70)
        share = gr.Button("Make a link to this text", size="sm")
        link = gr.Textbox(label="link", interactive=False, buttons=["copy"], visible=False, elem_id="link")
        export = gr.Button("Export as JSON, with every trace", size="sm")
        label = "to repeat it: python -m deepseek.generate --repeat FILE"
        file = gr.File(label=label, visible=False, elem_id="export")

    def save_preset(saved, name, *values):
        presets = add_preset(valid_presets(saved), name, dict(zip(PRESET_FIELDS, values)))
        return presets, gr.update(choices=[*PRESETS, *presets], value=name.strip()), ""

    def list_presets(saved):
        return gr.update(choices=list({**PRESETS, **valid_presets(saved)}))

    def make_query(g):
        checkpoint = "" if g.checkpoint == current else g.checkpoint
        return gr.update(value=to_query(g.prompt, g.params, g.forced_tokens, checkpoint), visible=True)

    inputs = [saved, name, *(controls[name] for name in PRESET_FIELDS)]
    save.click(save_preset, inputs, [saved, preset, name], **UNQUEUED)
    demo.load(list_presets, saved, preset, **UNQUEUED)
    share.click(make_query, generation, link, **UNQUEUED).then(
        None, link, link, js="query => location.origin + location.pathname + '?' + query", **UNQUEUED
    )
    export.click(lambda g: gr.update(value=export_file(g), visible=True), generation, file, **UNQUEUED)
