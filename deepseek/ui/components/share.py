"""Keeping and sharing: presets in the reader's browser, a link that restores everything, a file that repeats a text."""

import json
import tempfile
from dataclasses import asdict, fields
from pathlib import Path
from urllib.parse import urlencode

import gradio as gr

from deepseek.inference import generation_record
from deepseek.inference.sampling import SamplingParams
from deepseek.settings.aliases import rename
from deepseek.settings.schema import from_text, holds_several
from deepseek.ui.components.sampler_controls import PRESETS, apply_preset, preset_fields
from deepseek.ui.errors import user_error
from deepseek.ui.generation import UNQUEUED
from deepseek.ui.server import model_registry

MAX_PRESETS = 50


def to_query(prompt: str, params: SamplingParams, forced: dict[int, int], checkpoint: str = "") -> str:
    """The query string of a link: the prompt, every setting that is not neutral, a branch's tokens as place-id, and the
    checkpoint if one is given.
    """
    neutral = SamplingParams()
    changed = {name: value for name, value in asdict(params).items() if value != getattr(neutral, name)}
    if forced:
        changed["forced_tokens"] = [f"{place}-{token}" for place, token in sorted(forced.items())]
    if checkpoint:
        changed["checkpoint"] = checkpoint
    return urlencode({"prompt": prompt, **changed}, doseq=True)


def from_query(query, vocabulary: float) -> tuple[str, SamplingParams, dict[int, int]]:
    """(prompt, settings, forced tokens) of a link's `gr.Request.query_params`. Raises ValueError naming the one that is wrong."""
    given = {name: query.getlist(name) for name in query}
    given, values = rename(given), {}
    for f in fields(SamplingParams):
        if f.name in given:
            texts = [from_text(f, text) for text in given[f.name]]
            values[f.name] = tuple(texts) if holds_several(f) else texts[-1]
    forced = {}
    for pair in given.get("forced_tokens", []):
        place, _, token = pair.partition("-")
        if not (place.isdecimal() and token.isdecimal() and int(token) < vocabulary):
            raise ValueError(
                f"forced_tokens is {pair!r:.40}; it must be a place, a dash and a token's id below {vocabulary}."
            )
        forced[int(place)] = int(token)
    return query.get("prompt", ""), SamplingParams(**values), forced


def export_file(generation) -> str:
    """A JSON file of the generation for download."""
    model, _ = model_registry.get_model(generation.checkpoint)
    folder = Path(tempfile.mkdtemp(prefix="generation-"))
    path = folder / f"generation-seed-{generation.params.seed}.json"
    made = generation_record.make_record(
        model, generation.prompt, generation.params, generation.tokens, generation.forced
    )
    path.write_text(json.dumps(made))
    return str(path)


def checked_presets(saved) -> dict[str, dict]:
    """The presets in what the browser sent; anything else in it is left out."""
    presets = {}
    for name, values in saved.items() if isinstance(saved, dict) else ():
        try:
            presets[str(name)[:40]] = values = rename(values)
            SamplingParams(**values)
        except (TypeError, ValueError):
            continue
    return dict(list(presets.items())[:MAX_PRESETS])


def named(presets: dict, name: str, values: dict) -> dict:
    """`presets` with one more. Raises gr.Error for a name that will not do."""
    name = name.strip() if isinstance(name, str) else ""
    if not 0 < len(name) <= 40:
        raise user_error(ValueError(f"name is {name!r:.60}; it must be 1 to 40 characters."))
    if name in PRESETS:  # it would never be found again
        raise user_error(ValueError(f"name is {name!r}; it must be another than {', '.join(PRESETS)}."))
    if len(presets) >= MAX_PRESETS and name not in presets:
        raise user_error(
            ValueError(f"there are {len(presets)} presets, the most that are kept; save over one of them.")
        )
    return {**presets, name: values}


def build(demo, generation: gr.State, preset: gr.Dropdown, settings: dict, current: str) -> None:
    """Draws and wires presets, link and export, for the reader's `generation` and the sampler's `settings`.

    A link names the checkpoint of its text if that is not the page's own, `current`.
    """
    # Outside the accordion: what is in a closed one is not there until it is opened.
    saved = gr.BrowserState({}, storage_key="deepseek-playground-presets", secret="presets")
    with gr.Accordion("keep and share", open=False):
        with gr.Row():
            name = gr.Textbox(label="keep these settings as a preset", max_length=40, placeholder="its name", scale=3)
            save = gr.Button("Keep", scale=1, min_width=70)
        share = gr.Button("Make a link to this text", size="sm")
        link = gr.Textbox(label="link", interactive=False, buttons=["copy"], visible=False, elem_id="link")
        export = gr.Button("Export as JSON, with every trace", size="sm")
        file = gr.File(
            label="its text again: python -m deepseek.generate --repeat FILE", visible=False, elem_id="export"
        )

    fields = preset_fields(settings)

    def keep(saved, name, *values):
        presets = named(checked_presets(saved), name, dict(zip(fields, values)))
        return presets, gr.update(choices=[*PRESETS, *presets], value=name.strip()), ""

    def listed(saved):
        return gr.update(choices=list({**PRESETS, **checked_presets(saved)}))

    apply_preset(preset, settings, saved, checked_presets)
    kept = [saved, name, *(settings[field] for field in fields)]
    save.click(keep, kept, [saved, preset, name], **UNQUEUED)
    demo.load(listed, saved, preset, **UNQUEUED)

    def query(g):
        checkpoint = "" if g.checkpoint == current else g.checkpoint
        return gr.update(value=to_query(g.prompt, g.params, g.forced, checkpoint), visible=True)

    share.click(query, generation, link, **UNQUEUED).then(
        None, link, link, js="query => location.origin + location.pathname + '?' + query", **UNQUEUED
    )
    export.click(lambda g: gr.update(value=export_file(g), visible=True), generation, file, **UNQUEUED)
