"""The Train tab: starts a run in the background, shows its progress, controls it, and opens its checkpoints."""

import json
import shutil
from contextlib import suppress
from functools import partial
from pathlib import Path

import gradio as gr

from deepseek.checkpoints import saving
from deepseek.training import runs
from deepseek.training.config import TrainConfig, TrainingError
from deepseek.training.metrics import History
from deepseek.ui.components import run_view, train_form
from deepseek.ui.components.view import figure
from deepseek.ui.errors import user_error
from deepseek.ui.generation import UNQUEUED
from deepseek.ui.plots import training
from deepseek.ui.server import access_control

EXAMPLE_METRICS = (
    Path(__file__).parents[3] / "assets" / "example-run.jsonl"
)  # every tenth step of a run of preset `quick`
POLL_INTERVAL_S = 1.0
ACTIONS = {"pause": "Pause", "resume": "Resume", "stop": "Stop and save", "delete": "Delete"}
CONFIRM_JS = "(name, secret) => [confirm(`Delete run ${name} and its checkpoints?`) ? name : null, secret]"
HIDDEN_JS = "(...values) => [...values.slice(0, -1), document.hidden]"
OPEN_JS = "path => { location.search = '?' + new URLSearchParams({checkpoint: path}) }"


def start_run(config: TrainConfig) -> runs.Run:
    """Starts a run. Raises gr.Error after removing the file that was uploaded for it."""
    try:
        return runs.start(config)
    except (ValueError, TrainingError) as error:
        if config.run / access_control.UPLOADS == Path(config.data[0]).parent:
            shutil.rmtree(config.run / access_control.UPLOADS, ignore_errors=True)
            with suppress(OSError):  # the folder holds more than the upload
                config.run.rmdir()
        raise user_error(error) from error


def control_run(action: str, name: str, secret: str) -> None:
    """Pauses, resumes, stops or deletes a run. Raises gr.Error."""
    try:
        run = runs.find(runs.ROOT, name)
        access_control.check_access(TrainConfig(**{**run.config, "root": runs.ROOT, "name": name}), secret)
        getattr(runs, action)(runs.ROOT, name)
    except (ValueError, TypeError, TrainingError) as error:
        raise user_error(error) from error


def pin_checkpoint(path: str) -> str:
    """Pins the checkpoint at `path` until the page has opened it, or its run's newest if `path` was pruned; returns its path.

    Raises gr.Error for a path outside a run, and for a run without checkpoints.
    """
    run = Path(str(path)).parent
    if run not in [other.folder for other in runs.list_runs()]:
        raise user_error(ValueError(f"checkpoint is {path!r:.80}; it must be a run's."))
    for checkpoint in (Path(path), *reversed(saving.list_checkpoints(run))):
        saving.pin(checkpoint)
        if checkpoint.is_dir():
            return str(checkpoint)
    raise user_error(ValueError(f"run {run.name!r} has no checkpoint yet."))


def archive_checkpoint(path: str) -> str:
    """The path of a .zip of the checkpoint at `path`. Raises gr.Error for anything else."""
    if path not in [str(folder) for run in runs.list_runs() for folder in saving.list_checkpoints(run.folder)]:
        raise user_error(ValueError(f"checkpoint is {path!r:.80}; it must be a run's."))
    return str(runs.archive(Path(path)))


def build(demo, tab: gr.Tab, tabs: gr.Tabs) -> None:
    """Adds the content of `tab`, one of `tabs` of the page `demo`. Runs are polled only while the tab is open.

    What depends on whether there are runs stays hidden until the page has asked.
    """
    view, overlay = gr.State(run_view.RunView(), time_to_live=3600), gr.State(run_view.RunView(), time_to_live=3600)
    timer = gr.Timer(POLL_INTERVAL_S, active=False)
    page_hidden = gr.Checkbox(visible=False)  # whether the browser shows another page
    gr.Markdown(
        "Train a small mixture of experts and watch it learn. A run continues in the background: close the page, come "
        "back later, and it is still here."
    )
    with gr.Accordion("Start a run", open=False) as form:
        options = dict(label="owner's secret", info=access_control.NOTE, visible=access_control.is_public())
        secret = gr.Textbox("", type="password", **options)
        c = train_form.build()
        start = gr.Button("Start", variant="primary")
    with gr.Column(visible=False) as no_runs:
        gr.Markdown(
            "No runs yet. The settings above suit a first one: press Start. The example below is such a run on short "
            "stories. Its loss falls; a few experts get nearly every token at first, and the load evens out.",
            elem_id="no-run",
        )
        history = History()
        history.add([json.loads(line) for line in EXAMPLE_METRICS.read_text().splitlines()])
        figure(training.loss_curves({"example": history}, 60), "example-loss")
        figure(training.load_map(history), "example-load")
    with gr.Column(visible=False) as panels:
        with gr.Row():
            options = dict(allow_custom_value=True, min_width=200)
            run = gr.Dropdown([], label="run", info="shown below", **options)
            overlay_name = gr.Dropdown(
                [("none", "")], value="", label="overlay", info="curves of another run", **options
            )
            smoothing = gr.Slider(0, 100, 60, step=1, label="smoothing", info="of the curves, in %", min_width=200)
        with gr.Row():
            buttons = {action: gr.Button(label, size="sm", min_width=110) for action, label in ACTIONS.items()}
        p = run_view.build()

    lists = [run, overlay_name, form, no_runs, panels, c["name"], c["init_from"]]
    shown = [run, *p.values(), *buttons.values()]
    quiet = dict(show_progress="hidden", **UNQUEUED)
    update = dict(inputs=[view, overlay, run, overlay_name, smoothing, p["checkpoint"]], outputs=shown, **quiet)
    queued = dict(api_visibility="private")  # an error reaches the user only through the queue

    def refresh_lists(name):
        """Updates every list of runs, with `name` chosen if it still exists."""
        choices = run_view.run_choices()
        names = [value for _, value in choices]
        return {
            run: gr.update(choices=choices, value=name if name in names else next(iter(names), None)),
            overlay_name: gr.update(choices=[("none", ""), *choices]),
            no_runs: gr.update(visible=not choices),
            panels: gr.update(visible=bool(choices)),
            c["init_from"]: gr.update(choices=train_form.init_choices()),
        }

    def open_tab(name, new_name):
        """Refreshes the lists; opens the form only if there is no run."""
        names = [value for _, value in run_view.run_choices()]
        new_name = train_form.free_name() if new_name in names else gr.skip()
        return {**refresh_lists(name), form: gr.update(open=not names), c["name"]: new_name}

    def poll(view, overlay, name, overlay_name, smoothing, checkpoint):
        """Draws what is new of the run; nothing if there is no run of that name any more."""
        try:
            current = runs.find(runs.ROOT, name)
            updates = run_view.redraw(p, view, overlay, current, overlay_name, smoothing, checkpoint)
        except runs.RunError:
            return {p["progress"]: ""}
        if view.changed("state", (name, current.state, current.checkpoint is None)):
            ended = current.state in ("stopped", "failed", "killed")
            allowed = {
                "pause": current.state == "running",
                "resume": current.state == "paused" or (ended and current.checkpoint is not None),
                "stop": current.alive,
                "delete": not current.alive,
            }
            updates |= {button: gr.update(interactive=allowed[action]) for action, button in buttons.items()}
            updates[run] = gr.update(choices=run_view.run_choices(), value=name)  # its label shows the state
        return updates

    def poll_if_visible(*values):
        *values, is_hidden = values
        return {p["progress"]: gr.skip()} if is_hidden else poll(*values)

    def redraw_all(view, *rest):
        view.drawn.clear()  # the page may have missed an update while it was hidden
        return poll(view, *rest)

    def start_from_form(secret, *values):
        try:
            config = train_form.parse(dict(zip(c, values)), secret)
        except (ValueError, OSError) as error:
            raise user_error(error) from error
        start_run(config)
        return {**refresh_lists(config.name), form: gr.update(open=False), c["name"]: train_form.free_name()}

    def press(action, name, secret):
        if name:  # null if the user did not confirm
            control_run(action, name, secret)
        return refresh_lists(name)

    def on_tab_select(event: gr.EventData):
        return gr.Timer(active=getattr(event, "value", None) == tab.label)

    def show_probe(view, name, index):
        with suppress(runs.RunError, IndexError):  # the run is gone or has no probe yet
            view.read(name)
            newest = len(view.history.probes) - 1
            index = max(0, min(int(index), newest))
            view.probe_index = index if index < newest else None  # a poll under way still draws the newest
            return run_view.draw_probe(p, view.history, index)
        return {}

    demo.load(open_tab, [run, c["name"]], lists, **quiet)
    tabs.select(on_tab_select, None, timer, **quiet)
    tab.select(open_tab, [run, c["name"]], lists, **quiet).then(redraw_all, **update)
    timer.tick(poll_if_visible, **{**update, "inputs": [*update["inputs"], page_hidden]}, js=HIDDEN_JS)
    start.click(start_from_form, [secret, *c.values()], lists, **queued).then(redraw_all, **update)
    for action, button in buttons.items():
        js = CONFIRM_JS if action == "delete" else None
        button.click(partial(press, action), [run, secret], lists, js=js, **queued).then(poll, **update)
    for changed in (run.input, overlay_name.input, smoothing.release):
        changed(poll, **update)
    probe_inputs, probe_outputs = [view, run, p["probe index"]], [p["probe"], p["probe note"]]
    p["probe index"].input(show_probe, probe_inputs, probe_outputs, trigger_mode="always_last", **quiet)
    pinned = gr.Textbox(visible=False)
    opened = p["open"].click(pin_checkpoint, p["checkpoint"], pinned, **queued)
    opened.success(None, pinned, None, js=OPEN_JS, **UNQUEUED)
    archived = p["download"].click(archive_checkpoint, p["checkpoint"], p["file"], **queued)
    archived.then(lambda: gr.update(visible=True), None, p["file"], **UNQUEUED)
