"""The settings of a new run: a control for each field of TrainConfig, made from what the field says of itself."""

import shutil
from dataclasses import asdict, fields
from itertools import chain, count, islice
from pathlib import Path

import gradio as gr

from deepseek.checkpoints import saving
from deepseek.data.readers import BUILTIN, DataError, documents
from deepseek.model.config import PRESETS
from deepseek.settings.schema import holds_several
from deepseek.training import runs
from deepseek.training.config import PRESET_DEFAULTS, TrainConfig
from deepseek.ui.generation import UNQUEUED
from deepseek.ui.server import access_control
from deepseek.ui.server.model_registry import DEMO

SOURCES = ["the built-in text", "a file of yours", "a data set of the Hub"]
LARGEST = 2**30  # bytes of an uploaded file
FILES = [".txt", ".jsonl", ".csv", ".parquet", ".xz", ".gz"]
FIELDS = {field.name: field for field in fields(TrainConfig)}
SHOWN = ["max_steps", "batch_size", "max_seq_len", "lr"]
# Fields with a control of their own below, or with none.
OWN = ["root", "name", "preset", "init_from", "data", "shard"]
FORM_DEFAULTS = {  # by size, where it is not the default: what shows something within minutes on two cores
    "quick": {**PRESET_DEFAULTS["quick"], "save_every": 50},
    "tiny": dict(max_steps=400, batch_size=16, max_seq_len=128, lr=2e-3, warmup_steps=20, bias_update_rate=0.01, save_every=20,
                 eval_every=50, eval_documents=8, sample_every=100),
    "demo": dict(max_steps=2000, batch_size=4, lr=1e-3, save_every=50, eval_documents=16, sample_every=200),
}  # fmt: skip
SUITING = list(FORM_DEFAULTS["tiny"])


def controls() -> dict[str, gr.components.Component]:
    """Draws all the controls; returns them by name: those of OWN less root, "source", "file", "hub", then the fields."""
    c = {}
    with gr.Row():
        c["name"] = gr.Textbox(free_name(), label="name", info="of the run, and of its folder", min_width=150)
        sizes = sorted(reversed(PRESETS), key=lambda name: name != "quick")
        info = "of a new model; sets what suits it below"
        c["preset"] = gr.Dropdown(sizes, value=sizes[0], label="size", info=info, min_width=150)
        c["init_from"] = gr.Dropdown(
            starts(), value="", label="start from", min_width=220, info="or go on from weights"
        )
    with gr.Row():
        c["source"] = gr.Radio(SOURCES, value=SOURCES[0], label="text to learn from", scale=2, min_width=300)
        with gr.Column(scale=2, min_width=260):
            file = gr.File(file_types=FILES, label=f"{', '.join(FILES)}; 1 GB at most", visible=False, height=110)
            hub = gr.Textbox(label="id on the Hub", placeholder="roneneldan/TinyStories", visible=False)
    c |= {"file": file, "hub": hub}
    suited = asdict(TrainConfig(**FORM_DEFAULTS.get(sizes[0], {})))
    with gr.Row():
        for name in SHOWN:
            c[name] = control(FIELDS[name], suited[name])
    with gr.Accordion("all settings", open=False), gr.Row():
        for name in [name for name in FIELDS if name not in SHOWN + OWN]:
            c[name] = control(FIELDS[name], suited[name])

    def choose(source):
        return gr.update(visible=source == SOURCES[1]), gr.update(visible=source == SOURCES[2])

    def suit(size):
        values = asdict(TrainConfig(**FORM_DEFAULTS.get(size, {})))
        return [values[name] for name in SUITING]

    c["source"].change(choose, c["source"], [file, hub], **UNQUEUED)
    c["preset"].input(suit, c["preset"], [c[name] for name in SUITING], **UNQUEUED)
    return c


def control(field, default) -> gr.components.Component:
    """The control of one field of TrainConfig, with `default` in it."""
    label = "learning rate (lr)" if field.name == "lr" else field.name.replace("_", " ")
    options = dict(label=label, info=field.metadata["help"], min_width=200)
    if field.metadata["choices"]:
        return gr.Dropdown(field.metadata["choices"], value=default, **options)
    if isinstance(default, bool):
        return gr.Checkbox(default, **options)
    if isinstance(default, list):
        options["info"] += "; one a line"
        return gr.Textbox("\n".join(map(str, default)), lines=1, max_lines=4, **options)
    if isinstance(default, str):
        return gr.Textbox(default, max_lines=2, **options)
    return gr.Number(default, precision=0 if isinstance(default, int) else None, **options)


def free_name() -> str:
    """A name that no run has yet."""
    taken = {folder.name for folder in Path(runs.ROOT).glob("*")}
    return next(name for name in chain(["run"], map("run-{}".format, count(2))) if name not in taken)


def starts() -> list[tuple[str, str]]:
    """(label, path) of what a run can start from: nothing, the demo, or any commit."""
    commits = [str(commit) for run in runs.list_runs() for commit in reversed(saving.list_checkpoints(run.folder))]
    return [("new weights", ""), (DEMO, DEMO), *((path, path) for path in commits)]


def config(values: dict, secret: str) -> TrainConfig:
    """The checked settings from the controls' values by name; an uploaded file is copied into the run's folder.

    Raises ValueError with one sentence.
    """
    given = {name: lines(name, value) if is_list(name) else value for name, value in values.items() if name in FIELDS}
    given |= dict(root=runs.ROOT, data=[BUILTIN])
    file = values["file"] if values["source"] == SOURCES[1] else None
    if values["source"] == SOURCES[1]:
        if not file:
            raise ValueError("there is no file yet; upload one, or choose another source.")
        if (size := Path(file).stat().st_size) > LARGEST:
            raise ValueError(f"the file has {size / 2**30:.1f} GB; it must have 1 GB at most.")
        given["data"] = [str(Path(runs.ROOT) / str(values["name"]) / access_control.UPLOADS / Path(file).name)]
    elif values["source"] == SOURCES[2]:
        given["data"] = [str(values["hub"]).strip()]
    made = TrainConfig(**given)
    access_control.check_access(made, secret)
    if file:
        if made.run.exists():
            raise ValueError(f"name is {made.name!r}; there is a run of that name already.")
        readable(file)
        Path(made.data[0]).parent.mkdir(parents=True)
        shutil.copyfile(file, made.data[0])
    return made


def readable(file: str) -> None:
    """Raises ValueError with one sentence for an upload whose beginning is not text."""
    try:
        if not list(islice(map(len, documents(file)), 64)):
            raise DataError(f"data {file!r} holds no text.")
    except DataError as error:
        raise ValueError(str(error).replace(repr(file), repr(Path(file).name))) from error


def is_list(name: str) -> bool:
    """Whether a field of TrainConfig holds several values, which its control has one a line."""
    return holds_several(FIELDS[name])


def lines(name: str, text: str) -> list:
    """The values of a control with one a line."""
    found = [line.strip() for line in str(text).splitlines() if line.strip()]
    return [number(line) for line in found] if name == "mixture_weights" else found


def number(text: str) -> float | str:
    """A number where the text is one; TrainConfig says what is wrong with it otherwise."""
    try:
        return float(text)
    except ValueError:
        return text
