"""The Train tab: start a run in the background, watch it learn, steer it, and keep what it learned."""

import json
import shutil
from contextlib import suppress
from pathlib import Path

import gradio as gr

from deepseek.checkpoints import saving
from deepseek.training import runs
from deepseek.training.config import TrainConfig, TrainingError
from deepseek.training.metrics import History
from deepseek.ui.components import run_panels, train_form
from deepseek.ui.components.figure import figure
from deepseek.ui.components.run_view import RunView, run_choices
from deepseek.ui.errors import user_error
from deepseek.ui.generation import UNQUEUED
from deepseek.ui.plots import training
from deepseek.ui.server import access_control

EXAMPLE = Path(__file__).parents[3] / "assets" / "example-run.jsonl"
REDRAW = 1.0  # seconds between two looks at the run's files
STEER = {"pause": "Pause", "resume": "Resume", "stop": "Stop and keep", "delete": "Delete"}
SURE = "(name, secret) => [confirm(`Delete run ${name} and its checkpoints?`) ? name : null, secret]"
HIDDEN = "(...values) => [...values.slice(0, -1), document.hidden]"
OPEN = "path => { location.search = '?' + new URLSearchParams({checkpoint: path}) }"


def start_run(config: TrainConfig) -> runs.Run:
    """Starts a run. Raises gr.Error, and then takes back the file that was uploaded for it."""
    try:
        return runs.start(config)
    except (ValueError, TrainingError) as error:
        if config.run / access_control.UPLOADS == Path(config.data[0]).parent:
            shutil.rmtree(config.run / access_control.UPLOADS, ignore_errors=True)
            with suppress(OSError):  # it holds more than the upload
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


def possible(run: runs.Run) -> dict[str, bool]:
    """Which of STEER a run in this state can take."""
    idle = run.state in ("stopped", "failed", "killed")
    return {
        "pause": run.state == "running",
        "resume": run.state == "paused" or (idle and run.checkpoint is not None),
        "stop": run.alive,
        "delete": not run.alive,
    }


def kept(path: str) -> str:
    """The commit at `path`, or the newest of its run where it has been pruned, held until the page has opened it.

    Raises gr.Error for what is no run's.
    """
    run = Path(str(path)).parent
    if run not in [found.folder for found in runs.list_runs()]:
        raise user_error(ValueError(f"checkpoint is {path!r:.80}; it must be a run's."))
    for commit in (Path(path), *reversed(saving.list_checkpoints(run))):
        saving.pin(commit)
        if commit.is_dir():
            return str(commit)
    raise user_error(ValueError(f"run {run.name!r} has no checkpoint yet."))


def archived(path: str) -> str:
    """A .zip of the commit at `path`. Raises gr.Error for anything else."""
    known = [str(commit) for run in runs.list_runs() for commit in saving.list_checkpoints(run.folder)]
    if path not in known:
        raise user_error(ValueError(f"checkpoint is {path!r:.80}; it must be a run's."))
    return str(runs.archive(Path(path)))


def example() -> History:
    """A run of the `quick` preset, every tenth step, that shows a first visitor what there will be to see."""
    history = History()
    history.add([json.loads(line) for line in EXAMPLE.read_text().splitlines()])
    return history


def build(demo, tab: gr.Tab, tabs: gr.Tabs) -> None:
    """Draws the tab inside `tab`, one of `tabs` of the page `demo`. No run is read while another tab is open.

    What depends on whether there are runs is hidden until the page has asked, so that nothing is taken back.
    """
    seen, over = gr.State(RunView(), time_to_live=3600), gr.State(RunView(), time_to_live=3600)
    timer = gr.Timer(REDRAW, active=False)
    hidden = gr.Checkbox(visible=False)  # whether the browser shows another page
    gr.Markdown(
        "Train a small mixture of experts of your own and watch it learn. A run goes on in the background: close the page "
        "and come back, it will be here."
    )
    with gr.Accordion("Start a run", open=False) as form:
        secret = gr.Textbox(
            "", label="owner's secret", info=access_control.NOTE, type="password", visible=access_control.is_public()
        )
        c = train_form.controls()
        go = gr.Button("Start", variant="primary")
    with gr.Column(visible=False) as none:
        gr.Markdown(
            "No run yet. The settings above will do for a first one: press Start. Below is how such a run on short "
            "stories went: the model is less and less surprised by the next token, and its experts, of which a few take "
            "nearly everything at first, come to share the work.",
            elem_id="no-run",
        )
        history = example()
        figure(training.loss_curves({"example": history}, 60), "example-loss")
        figure(training.load_map(history), "example-load")
    with gr.Column(visible=False) as panels:
        with gr.Row():
            run = gr.Dropdown([], label="run", info="that is shown here", allow_custom_value=True, min_width=200)
            other = gr.Dropdown(
                [("none", "")],
                value="",
                label="lay over it",
                info="another run's curves",
                allow_custom_value=True,
                min_width=200,
            )
            smoothing = gr.Slider(
                0, 100, 60, step=1, label="smoothing", info="of the curves, in percent", min_width=200
            )
        buttons = {}
        with gr.Row():
            for action, label in STEER.items():
                buttons[action] = gr.Button(label, size="sm", min_width=110)
        p = run_panels.build()

    lists = [run, other, form, none, panels, c["name"], c["init_from"]]
    shown = [run, *p.values(), *buttons.values()]
    inputs = [seen, over, run, other, smoothing, p["commit"]]
    quiet = dict(show_progress="hidden", **UNQUEUED)
    asked = dict(api_visibility="private")  # in the queue, through which alone a refusal reaches the reader

    def listed(name):
        """The names in the lists anew, with `name` chosen where it is still there."""
        known = run_choices()
        names = [value for _, value in known]
        name = name if name in names else next(iter(names), None)
        return {
            run: gr.update(choices=known, value=name),
            other: gr.update(choices=[("none", ""), *known]),
            none: gr.update(visible=not known),
            panels: gr.update(visible=bool(known)),
            c["init_from"]: gr.update(choices=train_form.starts()),
        }

    def arrive(name, next_name):
        """The lists as the tab is opened; the form lies open only where there is nothing else to see."""
        taken = next_name in [value for _, value in run_choices()]
        next_name = train_form.free_name() if taken else gr.skip()
        return {**listed(name), form: gr.update(open=not run_choices()), c["name"]: next_name}

    def look(seen, over, name, other, smoothing, commit):
        """What is new of the run; nothing where there is none of that name any more."""
        try:
            found = runs.find(runs.ROOT, name)
            new = run_panels.redraw(p, seen, over, found, other, smoothing, commit)
        except runs.RunError:
            return {p["progress"]: ""}
        if seen.news("state", (name, found.state, found.checkpoint is None)):
            can = possible(found)
            new |= {button: gr.update(interactive=can[action]) for action, button in buttons.items()}
            new[run] = gr.update(choices=run_choices(), value=name)  # its label tells the state
        return new

    def glance(*values):
        *values, hidden = values
        return {p["progress"]: gr.skip()} if hidden else look(*values)

    def look_anew(seen, *rest):
        seen.drawn.clear()  # the page may have missed something while it was hidden
        return look(seen, *rest)

    def press_start(secret, *values):
        given = dict(zip(c, values))
        try:
            config = train_form.config(given, secret)
        except (ValueError, OSError) as error:
            raise user_error(error) from error
        start_run(config)
        return {**listed(config.name), form: gr.update(open=False), c["name"]: train_form.free_name()}

    def press(action):
        def handler(name, secret):
            if name:  # not when the reader thought better of it
                control_run(action, name, secret)
            return listed(name)

        return handler

    def opened(event: gr.EventData):
        return gr.Timer(active=getattr(event, "value", None) == tab.label)

    demo.load(arrive, [run, c["name"]], lists, **quiet)
    tabs.select(opened, None, timer, **quiet)
    tab.select(arrive, [run, c["name"]], lists, **quiet).then(look_anew, inputs, shown, **quiet)
    timer.tick(glance, [*inputs, hidden], shown, js=HIDDEN, **quiet)
    go.click(press_start, [secret, *c.values()], lists, **asked).then(look_anew, inputs, shown, **quiet)
    for action, button in buttons.items():
        js = SURE if action == "delete" else None
        button.click(press(action), [run, secret], lists, js=js, **asked).then(look, inputs, shown, **quiet)
    for choice in (run, other):
        choice.input(look, inputs, shown, **quiet)
    smoothing.release(look, inputs, shown, **quiet)

    def back(seen, name, at):
        with suppress(runs.RunError, IndexError):  # the run is gone, or has no probe yet
            seen.read(name)
            newest = len(seen.history.probes) - 1
            place = max(0, min(int(at), newest))
            seen.back = place if place < newest else None  # kept here, for a look under way still draws the newest
            return run_panels.probed(p, seen.history, place)
        return {}

    p["at"].input(back, [seen, run, p["at"]], [p["probe"], p["probe note"]], trigger_mode="always_last", **quiet)
    held = gr.Textbox(visible=False)
    p["open"].click(kept, p["commit"], held, **asked).success(None, held, None, js=OPEN, **UNQUEUED)
    p["download"].click(archived, p["commit"], p["file"], **asked).then(
        lambda: gr.update(visible=True), None, p["file"], **UNQUEUED
    )
