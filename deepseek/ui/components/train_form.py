"""The form for a new run: one control per field of TrainConfig, built from the field's declaration."""

import shutil
from dataclasses import asdict, fields
from itertools import chain, count, islice
from pathlib import Path

import gradio as gr

from deepseek.checkpoints import saving
from deepseek.data import file_formats, readers
from deepseek.model.config import PRESETS
from deepseek.settings.schema import from_text, holds_several
from deepseek.training import runs
from deepseek.training.config import PRESET_DEFAULTS, TrainConfig
from deepseek.ui.components.view import setting_control
from deepseek.ui.generation import UNQUEUED
from deepseek.ui.server import access_control
from deepseek.ui.server.model_registry import DEMO

SOURCES = BUILTIN, UPLOAD, HUB = ["built-in text", "uploaded file", "Hub dataset"]
MAX_UPLOAD_BYTES = 2**30
SUFFIXES = [*file_formats.READERS, *file_formats.DECOMPRESSORS]
FIELDS = {field.name: field for field in fields(TrainConfig)}
BASIC = ["max_steps", "batch_size", "max_seq_len", "lr"]  # always shown; the others are behind "all settings"
SPECIAL = ["root", "name", "preset", "init_from", "data", "shard"]  # built by hand, or without a control
FORM_DEFAULTS = {  # by preset, where TrainConfig's defaults would show nothing within minutes on two cores
    "quick": {**PRESET_DEFAULTS["quick"], "save_every": 50},
    "tiny": dict(max_steps=400, batch_size=16, max_seq_len=128, lr=2e-3, warmup_steps=20, bias_update_rate=0.01, save_every=20,
                 eval_every=50, eval_documents=8, sample_every=100),
    "demo": dict(max_steps=2000, batch_size=4, lr=1e-3, save_every=50, eval_documents=16, sample_every=200),
}  # fmt: skip
PRESET_FIELDS = list(FORM_DEFAULTS["tiny"])  # set anew when another preset is chosen


def build() -> dict[str, gr.components.Component]:
    """Adds the controls; returns them by field name, with "source", "file" and "hub" in place of "data"."""
    c = {}
    presets = sorted(reversed(PRESETS), key=lambda name: name != "quick")
    with gr.Row():
        c["name"] = gr.Textbox(free_name(), label="name", info="of the run and its folder", min_width=150)
        info = "of a new model; also sets suitable values below"
        c["preset"] = gr.Dropdown(presets, value=presets[0], label="model size", info=info, min_width=150)
        options = dict(label="initial weights", info="new, or from a checkpoint", min_width=220)
        c["init_from"] = gr.Dropdown(init_choices(), value="", **options)
    with gr.Row():
        c["source"] = gr.Radio(SOURCES, value=BUILTIN, label="training data", scale=2, min_width=300)
        with gr.Column(scale=2, min_width=260):
            label = f"{', '.join(SUFFIXES)}; up to 1 GB"
            c["file"] = gr.File(file_types=SUFFIXES, label=label, visible=False, height=110)
            c["hub"] = gr.Textbox(label="Hub id", placeholder="roneneldan/TinyStories", visible=False)
    defaults = preset_values(presets[0])

    def control(name):
        label = FIELDS[name].metadata.get("label", name.replace("_", " "))
        return setting_control(FIELDS[name], defaults[name], label, min_width=200)

    with gr.Row():
        c |= {name: control(name) for name in BASIC}
    with gr.Accordion("all settings", open=False), gr.Row():
        c |= {name: control(name) for name in FIELDS if name not in BASIC + SPECIAL}

    def choose_source(source):
        return gr.update(visible=source == UPLOAD), gr.update(visible=source == HUB)

    def choose_preset(preset):
        return [preset_values(preset)[name] for name in PRESET_FIELDS]

    c["source"].change(choose_source, c["source"], [c["file"], c["hub"]], **UNQUEUED)
    c["preset"].input(choose_preset, c["preset"], [c[name] for name in PRESET_FIELDS], **UNQUEUED)
    return c


def preset_values(preset: str) -> dict:
    """The form's initial value of every field, by preset."""
    return asdict(TrainConfig(**FORM_DEFAULTS.get(preset, {})))


def free_name() -> str:
    """A name that no run has yet."""
    names = {folder.name for folder in Path(runs.ROOT).glob("*")}
    return next(name for name in chain(["run"], map("run-{}".format, count(2))) if name not in names)


def init_choices() -> list[tuple[str, str]]:
    """(label, value) of the initial weights to choose from: new, the demo, or any checkpoint of a run."""
    paths = [str(path) for run in runs.list_runs() for path in reversed(saving.list_checkpoints(run.folder))]
    return [("new weights", ""), (DEMO, DEMO), *((path, path) for path in paths)]


def parse(values: dict, secret: str) -> TrainConfig:
    """The settings from the controls' values by name; copies an uploaded file into the run's folder.

    Raises ValueError with one sentence.
    """
    settings = {name: value for name, value in values.items() if name in FIELDS}
    for name in filter(lambda name: holds_several(FIELDS[name]), settings):
        lines = map(str.strip, str(settings[name]).splitlines())
        settings[name] = [from_text(FIELDS[name], line) for line in lines if line]
    file, source = None, readers.BUILTIN
    if values["source"] == HUB:
        source = str(values["hub"]).strip()
    elif values["source"] == UPLOAD:
        file = values["file"]
        if not file:
            raise ValueError("no file is uploaded; upload one or choose another source.")
        if (size := Path(file).stat().st_size) > MAX_UPLOAD_BYTES:
            raise ValueError(f"the file has {size / 2**30:.1f} GB; it must have at most 1 GB.")
        source = str(Path(runs.ROOT) / str(values["name"]) / access_control.UPLOADS / Path(file).name)
    config = TrainConfig(**{**settings, "root": runs.ROOT, "data": [source]})
    access_control.check_access(config, secret)
    if file:
        if config.run.exists():
            raise ValueError(f"name is {config.name!r}; a run of that name exists already.")
        try:
            if not list(islice(map(len, readers.documents(file)), 64)):
                raise file_formats.DataError(f"data {file!r} holds no text.")
        except file_formats.DataError as error:
            raise ValueError(str(error).replace(repr(file), repr(Path(file).name))) from error
        Path(source).parent.mkdir(parents=True)
        shutil.copyfile(file, source)
    return config
