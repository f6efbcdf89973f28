"""The Train tab: start a run in the background, watch it learn, steer it, and keep what it learned."""

import shutil
from contextlib import suppress
from pathlib import Path

import gradio as gr

from deepseek import checkpoint, runs
from deepseek.train import TrainConfig, TrainingError
from deepseek.ui import permit, run_panels, settings
from deepseek.ui.controls import QUIET, refusal
from deepseek.ui.watch import Watch, choices

REDRAW = 1.0  # seconds between two looks at the run's files
STEER = {"pause": "Pause", "resume": "Resume", "stop": "Stop and keep", "delete": "Delete"}
SURE = "(name, secret) => [confirm(`Delete run ${name} and its checkpoints?`) ? name : null, secret]"
OPEN = "path => { location.search = '?' + new URLSearchParams({checkpoint: path}) }"


def begin(config: TrainConfig) -> runs.Run:
    """Starts a run. Raises gr.Error, and then takes back the file that was uploaded for it."""
    try:
        return runs.start(config)
    except (ValueError, TrainingError) as error:
        if config.run / permit.UPLOADS == Path(config.data[0]).parent:
            shutil.rmtree(config.run / permit.UPLOADS, ignore_errors=True)
            with suppress(OSError):  # it holds more than the upload
                config.run.rmdir()
        raise refusal(error) from error


def steer(action: str, name: str, secret: str) -> None:
    """Pauses, resumes, stops or deletes a run. Raises gr.Error."""
    try:
        run = runs.find(runs.ROOT, name)
        permit.check(TrainConfig(**{**run.config, "root": runs.ROOT, "name": name}), secret)
        getattr(runs, action)(runs.ROOT, name)
    except (ValueError, TypeError, TrainingError) as error:
        raise refusal(error) from error


def possible(run: runs.Run) -> dict[str, bool]:
    """Which of STEER a run in this state can take."""
    idle = run.state in ("stopped", "failed", "killed")
    return {
        "pause": run.state == "running",
        "resume": run.state == "paused" or (idle and run.checkpoint is not None),
        "stop": run.alive,
        "delete": not run.alive,
    }


def archived(path: str) -> str:
    """A .zip of the commit at `path`. Raises gr.Error for anything else."""
    known = [str(commit) for run in runs.list_runs() for commit in checkpoint.commits(run.folder)]
    if path not in known:
        raise refusal(ValueError(f"checkpoint is {path!r:.80}; it must be a run's."))
    return str(runs.archive(Path(path)))


def build(tab: gr.Tab, tabs: gr.Tabs) -> None:
    """Draws the tab inside `tab`, one of `tabs`. Nothing is read while another tab is open."""
    seen, over = gr.State(Watch(), time_to_live=3600), gr.State(Watch(), time_to_live=3600)
    timer = gr.Timer(REDRAW, active=False)
    gr.Markdown(
        "Train a small mixture of experts of your own and watch it learn. A run goes on in the background: close the page "
        "and come back, it will be here."
    )
    with gr.Accordion("Start a run", open=True) as form:
        secret = gr.Textbox("", label="owner's secret", info=permit.NOTE, type="password", visible=permit.public())
        c = settings.controls()
        go = gr.Button("Start", variant="primary")
    none = gr.Markdown("No run yet. The settings above will do for a first one: press Start.", elem_id="no-run")
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

    lists = [run, other, form, none, panels, c["name"], c["start_from"]]
    shown = [run, *p.values(), *buttons.values()]
    inputs = [seen, over, run, other, smoothing, p["at"], p["commit"]]
    quiet = dict(show_progress="hidden", **QUIET)
    asked = dict(api_visibility="private")  # in the queue, through which alone a refusal reaches the reader

    def listed(name):
        """The names in the lists anew, with `name` chosen where it is still there."""
        known = choices()
        names = [value for _, value in known]
        name = name if name in names else next(iter(names), None)
        return {
            run: gr.update(choices=known, value=name),
            other: gr.update(choices=[("none", ""), *known]),
            none: gr.update(visible=not known),
            panels: gr.update(visible=bool(known)),
            c["start_from"]: gr.update(choices=settings.starts()),
        }

    def arrive(name, next_name):
        """The lists as the tab is opened; the form lies open only where there is nothing else to see."""
        taken = next_name in [value for _, value in choices()]
        next_name = settings.free_name() if taken else gr.skip()
        return {**listed(name), form: gr.update(open=not choices()), c["name"]: next_name}

    def look(seen, over, name, other, smoothing, at, commit):
        """What is new of the run; nothing where there is none of that name any more."""
        try:
            found = runs.find(runs.ROOT, name)
            new = run_panels.redraw(p, seen, over, found, other, smoothing, at, commit)
        except runs.RunError:
            return {p["progress"]: ""}
        if seen.news("state", (name, found.state, found.checkpoint is None)):
            can = possible(found)
            new |= {button: gr.update(interactive=can[action]) for action, button in buttons.items()}
            new[run] = gr.update(choices=choices(), value=name)  # its label tells the state
        return new

    def look_anew(seen, *rest):
        seen.drawn.clear()  # the page may have missed something while it was hidden
        return look(seen, *rest)

    def press_start(secret, *values):
        given = dict(zip(c, values))
        try:
            config = settings.config(given, secret)
        except (ValueError, OSError) as error:
            raise refusal(error) from error
        begin(config)
        return {**listed(config.name), form: gr.update(open=False), c["name"]: settings.free_name()}

    def press(action):
        def handler(name, secret):
            if name:  # not when the reader thought better of it
                steer(action, name, secret)
            return listed(name)

        return handler

    def opened(event: gr.SelectData):
        return gr.Timer(active=event.value == tab.label)

    tabs.select(opened, None, timer, **quiet)
    tab.select(arrive, [run, c["name"]], lists, **quiet).then(look_anew, inputs, shown, **quiet)
    timer.tick(look, inputs, shown, **quiet)
    go.click(press_start, [secret, *c.values()], lists, **asked).then(look_anew, inputs, shown, **quiet)
    for action, button in buttons.items():
        js = SURE if action == "delete" else None
        button.click(press(action), [run, secret], lists, js=js, **asked).then(look, inputs, shown, **quiet)
    for choice in (run, other):
        choice.input(look, inputs, shown, **quiet)
    smoothing.release(look, inputs, shown, **quiet)

    def back(seen, name, at):
        seen.read(name)
        return run_panels.probed(p, seen.history, max(0, min(int(at), len(seen.history.probes) - 1)))

    p["at"].input(back, [seen, run, p["at"]], [p["probe"], p["probe note"]], trigger_mode="always_last", **quiet)
    p["open"].click(None, p["commit"], None, js=OPEN, **QUIET)
    p["download"].click(archived, p["commit"], p["file"], **asked).then(
        lambda: gr.update(visible=True), None, p["file"], **QUIET
    )
