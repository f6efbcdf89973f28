"""The Train tab: starts a run in the background, shows its progress, controls it, and opens its checkpoints."""

import html
import json
import shutil
from contextlib import suppress
from functools import partial
from pathlib import Path

import gradio as gr

from deepseek.checkpoints import saving
from deepseek.training import runs
from deepseek.training.config import UPLOADS, TrainConfig, TrainingError
from deepseek.training.metrics import History
from deepseek.ui.components import run_view, train_form
from deepseek.ui.components.shared_outputs import SharedOutputs
from deepseek.ui.components.view import changed, figure
from deepseek.ui.errors import user_error
from deepseek.ui.generation import QUICK_QUEUE
from deepseek.ui.plots import training
from deepseek.ui.server import access_control

EXAMPLE_METRICS = (
    Path(__file__).parents[3] / "assets" / "example-run.jsonl"
)  # every tenth step of a run of preset `quick`
ACTIONS = {"pause": "Pause", "resume": "Resume", "stop": "Stop and save", "delete": "Delete"}
CONFIRM_JS = "(name, ...rest) => [confirm(`Delete run ${name} and its checkpoints?`) ? name : null, ...rest]"
# Asked in the page, at every tick: a timer that the server switches off goes on until a busy server has answered.
POLL_JS = """
const tab = element.closest('[role=tabpanel]'), clock = setInterval(() => {
    if (!element.isConnected) clearInterval(clock);
    else if (tab.checkVisibility() && !document.hidden) trigger('poll');
}, 1000);
"""
CHOOSE_PROBE_JS = """(index, run) => {
    const {max} = document.querySelector('#probe-at input[type=range]');
    return [index < Number(max) ? {run, index} : null];
}"""
# As an answer arrives, not as it is made: by now the user may have moved the slider.
FOLLOW_NEWEST_JS = "(index, chosen, run, shown) => chosen?.run === run ? index : shown?.['newest probe']"
OPEN_JS = "path => { location.search = '?' + new URLSearchParams({checkpoint: path}) }"


def start_run(config: TrainConfig) -> runs.Run:
    """Starts a run. Raises gr.Error after removing the file that was uploaded for it."""
    try:
        return runs.start(config)
    except (ValueError, TrainingError) as error:
        if config.run / UPLOADS == Path(config.data[0]).parent:
            shutil.rmtree(config.run / UPLOADS, ignore_errors=True)
            with suppress(OSError):  # the folder holds more than the upload
                config.run.rmdir()
        raise user_error(error) from error


def control_run(action: str, name: str, secret: str, **changes) -> None:
    """Pauses, resumes (with `changes` of its settings), stops or deletes a run. Raises gr.Error."""
    try:
        run = runs.find(runs.ROOT, name)
        settings = {**run.config, **changes, "root": runs.ROOT, "name": name}
        access_control.check_access(TrainConfig(**settings), secret)
        getattr(runs, action)(runs.ROOT, name, **changes)
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


def build(demo, tab: gr.Tab) -> None:
    """Adds the content of `tab` of the page `demo`. Runs are polled only while the tab is on the screen.

    What depends on whether there are runs stays hidden until the page has asked.
    """
    reader, overlay_reader = (gr.State(run_view.RunReader(), time_to_live=3600) for _ in range(2))
    shown = gr.JSON(visible=False)  # what the panels show: see view.changed
    clock = gr.HTML(js_on_load=POLL_JS, visible="hidden")
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
            "stories. Its loss falls; at first one expert gets nearly three times an even load and another nothing, then "
            "the load evens out.",
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
            overlay = gr.Dropdown([("none", "")], value="", label="overlay", info="curves of another run", **options)
            smoothing = gr.Slider(0, 100, 60, step=1, label="smoothing", info="of the curves, in %", min_width=200)
            options = dict(info="where Resume ends; more steps extend a run", min_width=200)
            last_step = gr.Number(label="last step", precision=0, **options)
        with gr.Row():
            buttons = {action: gr.Button(label, size="sm", min_width=110) for action, label in ACTIONS.items()}
        p = run_view.build()

    lists = [run, overlay, form, no_runs, panels, c["name"], c["init_from"]]
    readers, chosen = [reader, overlay_reader], p.pop("chosen probe")
    choices = [run, overlay, smoothing, p["checkpoint"], chosen, p["film layer"]]
    outputs = [shown, *lists, last_step, *p.values(), *buttons.values()]
    view = SharedOutputs(outputs, **QUICK_QUEUE)
    # gradio's default queue, one by one, for what changes runs or takes time. Progress would cover all panels.
    one_by_one = dict(api_visibility="private", show_progress="hidden")

    def refresh_lists(name):
        """Updates every list of runs, with `name` chosen if it still exists."""
        choices = run_view.run_choices()
        names = [value for _, value in choices]
        return {
            run: gr.update(choices=choices, value=name if name in names else next(iter(names), None)),
            overlay: gr.update(choices=[("none", ""), *choices]),
            no_runs: gr.update(visible=not choices),
            panels: gr.update(visible=bool(choices)),
            c["init_from"]: gr.update(choices=train_form.init_choices()),
        }

    def open_tab(name, new_name):
        """Refreshes the lists; opens the form only if there is no run."""
        names = [value for _, value in run_view.run_choices()]
        new_name = train_form.free_name() if new_name in names else gr.skip()
        return {**refresh_lists(name), form: gr.update(open=not names), c["name"]: new_name}

    def poll(reader, overlay_reader, page_shows, name, overlay_name, smoothing, checkpoint, chosen, layer):
        """Draws what is new of the run, and the lists of runs if another window has started or deleted one."""
        if not page_shows or page_shows.get("run") != name:
            page_shows = {"run": name}
        names = run_view.run_names()
        updates = {shown: page_shows, **(refresh_lists(name) if changed(page_shows, "runs", names) else {})}
        if overlay_name and overlay_name not in names:  # deleted, perhaps in another window
            updates[overlay] = gr.update(choices=[("none", ""), *run_view.run_choices()], value="")
            overlay_name = ""
        try:
            with reader.lock, overlay_reader.lock:
                current, histories = runs.find(runs.ROOT, name), {name: reader.read(name)}
                if overlay_name and overlay_name != name:
                    histories[overlay_name] = overlay_reader.read(overlay_name)
                chosen_index = chosen["index"] if chosen and chosen["run"] == name else None
                drawn = smoothing, checkpoint, chosen_index, layer
                updates |= run_view.redraw(p, page_shows, current, histories, *drawn)
        except runs.RunError:
            return {p["progress"]: "", **updates}
        if changed(page_shows, "state", (current.state, current.steps)):
            allowed = {
                "pause": current.state == "running",
                "resume": current.state == "paused" or (not current.alive and bool(current.config)),
                "stop": current.alive,
                "delete": not current.alive,
            }
            updates |= {button: gr.update(interactive=allowed[action]) for action, button in buttons.items()}
            updates[last_step] = gr.update(value=current.steps, interactive=not current.alive)
            updates[run] = gr.update(choices=run_view.run_choices(), value=name)  # its label shows the state
        return updates

    def redraw_all(reader, overlay_reader, _, *choices):
        return poll(reader, overlay_reader, {}, *choices)  # what came while the tab was hidden had no size

    def start_from_form(secret, *values):
        try:
            config = train_form.parse(dict(zip(c, values)), secret)
        except (ValueError, OSError) as error:
            raise user_error(error) from error
        start_run(config)
        for note in config.notes():
            gr.Info(html.escape(note, quote=False))
        return {**refresh_lists(config.name), form: gr.update(open=False), c["name"]: train_form.free_name()}

    def press(action, name, secret, last_step):
        if name:  # null if the user did not confirm
            changes = {"max_steps": last_step} if action == "resume" and last_step is not None else {}
            control_run(action, name, secret, **changes)
        return refresh_lists(name)

    def redraw_on(event, function=poll, **options):
        answered = view.on(event, lambda turn, *values: function(*values), [*readers, shown, *choices], **options)
        follow = [p["probe index"], chosen, run, shown], p["probe index"]
        answered.then(None, *follow, js=FOLLOW_NEWEST_JS, **QUICK_QUEUE)

    demo.load(open_tab, [run, c["name"]], lists, **QUICK_QUEUE)
    redraw_on(tab.select(open_tab, [run, c["name"]], lists, **QUICK_QUEUE).then, redraw_all)
    redraw_on(clock.poll, trigger_mode="once")
    redraw_on(start.click(start_from_form, [secret, *c.values()], lists, **one_by_one).then, redraw_all)
    for action, button in buttons.items():
        js = CONFIRM_JS if action == "delete" else None
        pressed = button.click(partial(press, action), [run, secret, last_step], lists, js=js, **one_by_one)
        redraw_on(pressed.then)
    for event in (run.input, overlay.input, smoothing.release, p["film layer"].input):
        redraw_on(event)
    moved = p["probe index"].input(None, [p["probe index"], run], chosen, js=CHOOSE_PROBE_JS, **QUICK_QUEUE)
    redraw_on(moved.then, trigger_mode="always_last")
    pinned = gr.Textbox(visible=False)
    opened = p["open"].click(pin_checkpoint, p["checkpoint"], pinned, **one_by_one)
    opened.success(None, pinned, None, js=OPEN_JS, **QUICK_QUEUE)
    archived = p["download"].click(archive_checkpoint, p["checkpoint"], p["file"], **one_by_one)
    archived.then(lambda: gr.update(visible=True), None, p["file"], **QUICK_QUEUE)
