"""The form for a new run: one control per field of TrainConfig, built from the field's declaration."""

import shutil
from contextlib import suppress
from dataclasses import asdict, fields
from itertools import chain, count, islice
from pathlib import Path

import gradio as gr

from deepseek.checkpoints import saving
from deepseek.data import file_formats, readers
from deepseek.data.text_lines import ReadOptions
from deepseek.model.config import PRESETS
from deepseek.settings.schema import from_text, holds_several
from deepseek.training import runs
from deepseek.training.config import PRESET_DEFAULTS, UPLOADS, TrainConfig, TrainingError
from deepseek.training.resource_check import resume_point
from deepseek.ui.components.view import on_pick, setting_control
from deepseek.ui.generation import QUICK_QUEUE
from deepseek.ui.server import access_control
from deepseek.ui.server.model_registry import DEMO

SOURCES = BUILTIN, UPLOAD, HUB = ["built-in text", "uploaded file", "Hub dataset"]
MAX_UPLOAD_BYTES = 2**30
SUFFIXES = [*file_formats.READERS, *file_formats.DECOMPRESSORS]
FIELDS = {field.name: field for field in fields(TrainConfig)}
BASIC = ["max_steps", "batch_size", "max_seq_len", "lr"]  # always shown; the others are behind "all settings"
SPECIAL = ["root", "name", "preset", "init_from", "data", "text_column", "shard"]  # built by hand, or without a control
FORM_DEFAULTS = {  # by preset, where TrainConfig's defaults would show nothing within minutes on two cores
    "quick": {**PRESET_DEFAULTS["quick"], "save_every": 50},
    "tiny": dict(max_steps=400, batch_size=16, max_seq_len=128, lr=2e-3, warmup_steps=20, bias_update_rate=0.01, save_every=20,
                 eval_every=50, eval_documents=8, sample_every=100),
    "demo": dict(max_steps=2000, batch_size=4, lr=1e-3, save_every=50, eval_documents=16, sample_every=200),
}  # fmt: skip
PRESET_FIELDS = sorted({name for values in FORM_DEFAULTS.values() for name in values})  # set anew with another preset


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
            label = f"{', '.join(file_formats.READERS)}; up to 1 GB"
            c["file"] = gr.File(file_types=SUFFIXES, label=label, visible=False, height=110)
            c["hub"] = gr.Textbox(label="Hub id", placeholder="roneneldan/TinyStories", visible=False)
            options = dict(label="text column", info="of a table; several as title+body", allow_custom_value=True)
            c["text_column"] = gr.Dropdown([], value="", **options, visible=False)
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

    def offer_columns(source, file, encoding):
        """Of an uploaded table its columns, with the one that is read by default."""
        column, names = table_columns(file, encoding) if source == UPLOAD and file else ("", [])
        return gr.update(choices=names, value=column, visible=source == HUB or bool(names))

    def choose_preset(preset):
        return [preset_values(preset)[name] for name in PRESET_FIELDS]

    c["source"].change(choose_source, c["source"], [c["file"], c["hub"]], **QUICK_QUEUE)
    read, events = [c["source"], c["file"], c["encoding"]], [c["source"].change, c["file"].change, c["encoding"].input]
    gr.on(events, offer_columns, read, c["text_column"], trigger_mode="always_last", **QUICK_QUEUE)
    on_pick(c["preset"], choose_preset, [c["preset"]], [c[name] for name in PRESET_FIELDS])
    return c


def table_columns(file: str, encoding: str) -> tuple[str, list[str]]:
    """(text column, all columns) of an uploaded table; ("", []) of another file, and of one that Start will refuse."""
    with suppress(file_formats.DataError):
        return file_formats.table_columns(file, ReadOptions(encoding=encoding)) or ("", [])
    return "", []


def preset_values(preset: str) -> dict:
    """The form's initial value of every field, by preset."""
    return asdict(TrainConfig(**FORM_DEFAULTS.get(preset, {})))


def free_name() -> str:
    """A name that no run has yet."""
    names = {folder.name for folder in Path(runs.ROOT).glob("*")}
    return next(name for name in chain(["run"], map("run-{}".format, count(2))) if name not in names)


def init_choices() -> list[tuple[str, str]]:
    """(label, value) of the initial weights to choose from: new, the demo, or any checkpoint of a run, its best one first."""
    checkpoints = []
    for run in runs.list_runs():
        for path in sorted(reversed(saving.list_checkpoints(run.folder)), key=lambda path: path != run.best):
            checkpoints.append((f"{path} · best" if path == run.best else str(path), str(path)))
    return [("new weights", ""), (DEMO, DEMO), *checkpoints]


def parse(values: dict, secret: str) -> TrainConfig:
    """The settings from the controls' values by name; copies an uploaded file into the run's folder.

    Raises ValueError with one sentence.
    """
    settings = {name: value for name, value in values.items() if name in FIELDS}
    for name in filter(lambda name: holds_several(FIELDS[name]), settings):
        lines = map(str.strip, str(settings[name]).splitlines())
        settings[name] = [from_text(FIELDS[name], line) for line in lines if line]
    settings["text_column"] = settings["text_column"] or ""  # None: cleared
    file, source = None, readers.BUILTIN
    if values["source"] == HUB:
        source = str(values["hub"]).strip()
    elif values["source"] == UPLOAD:
        file = values["file"]
        if not file:
            raise ValueError("no file is uploaded; upload one or choose another source.")
        if (size := Path(file).stat().st_size) > MAX_UPLOAD_BYTES:
            raise ValueError(f"the file has {size / 2**30:.1f} GB; it must have at most 1 GB.")
        source = str(Path(runs.ROOT) / str(values["name"]) / UPLOADS / Path(file).name)
    config = TrainConfig(**{**settings, "root": runs.ROOT, "data": [source]})
    access_control.check_access(config, secret)
    if file:
        try:
            resume_point(config, resume=False)
            if not list(islice(map(len, readers.documents(file, config.read_options)), 64)):
                raise file_formats.DataError(f"data {file!r} holds no text.")
        except (file_formats.DataError, TrainingError) as error:
            raise ValueError(str(error).replace(repr(file), repr(Path(file).name))) from error
        Path(source).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, source)
    return config
