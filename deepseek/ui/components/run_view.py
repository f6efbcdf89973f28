"""What the Train tab shows of a run, read from the files it writes: curves, expert load, samples, probes, checkpoints.

Each panel is hidden until it has content, and redrawn only when that changes.
"""

import threading
from pathlib import Path

import gradio as gr

from deepseek.checkpoints import saving
from deepseek.training import runs
from deepseek.training.metrics import DEAD_SHARE, DEAD_WINDOW_STEPS, History, duration
from deepseek.training.router_alarms import COLLAPSED_SHARE, alarm_sentences, router_alarms
from deepseek.ui.components import router_film
from deepseek.ui.components.view import changed, figure
from deepseek.ui.plots import training

SMALL_CURVES = {  # heading by name in metrics.SERIES
    "load_balancing_loss": "load balancing loss",
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "tokens_per_second": "tokens/s",
}
ALARM_RULE = (
    f"An alarm at the top names each expert that is dead (under {DEAD_SHARE:.0%} of an even load over the last "
    f"{DEAD_WINDOW_STEPS} steps) or collapsed (over {COLLAPSED_SHARE:.0%} of the tokens)."
)


class RunReader:
    """What a session has read of a run: only a cache of its metrics file.

    Not a dataclass: gradio turns a dataclass in a State into a dictionary.
    """

    def __init__(self):
        self.name, self.offset, self.history = None, 0, History()
        self.lock = threading.Lock()  # two events of a page may poll at once

    def __deepcopy__(self, memo):  # gradio copies a State's first value for each session
        return RunReader()

    def read(self, name: str) -> History:
        """The history of the run `name`, with what it wrote since the last call."""
        if name != self.name:
            self.name, self.offset, self.history = name, 0, History()
        lines, self.offset = runs.metrics(runs.find(runs.ROOT, name).folder, self.offset)
        if lines and self.history.steps and lines[0]["step"] < self.history.steps[-1]:
            self.history = History()  # a resumed run cut its file: all come again
        self.history.add(lines)
        return self.history


def run_choices() -> list[tuple[str, str]]:
    """(label, name) of every run: the one in progress first, then the newest."""
    ordered = sorted(runs.list_runs(), key=lambda run: not run.alive)
    return [(f"{run.name} · {run.state}", run.name) for run in ordered]


def run_names() -> list[str]:
    """The names of all runs, read from their folders alone."""
    return sorted(file.parent.name for file in Path(runs.ROOT).glob("*/config.json"))


def build() -> dict[str, gr.components.Component]:
    """Adds the panels, all hidden; returns by name the components that `redraw` updates."""
    p = {}
    p["progress"] = gr.HTML("", elem_id="progress")
    p["failure"] = gr.Textbox("", label="what went wrong", visible=False, lines=1, max_lines=6)
    p["alarm"] = gr.Markdown("", visible=False, elem_id="alarm")
    with gr.Column(visible=False) as p["curves"]:
        gr.Markdown("### Loss\nCross-entropy of the next token, in nats: training loss and held-out (validation) loss.")
        p["loss"] = figure(None, "loss")
        with gr.Row():
            for name, heading in SMALL_CURVES.items():
                with gr.Column(min_width=260):
                    gr.Markdown(f"**{heading}**")
                    p[name] = figure(None, name, elem_classes="small-curve")
        gr.Markdown("### Expert load\nOne row per expert: blue is above an even load, orange below.")
        gr.Markdown(ALARM_RULE)
        p["load"] = figure(None, "expert-load-over-steps")
        gr.Markdown("MaxVio: how far a layer's busiest expert is above an even load; 0 is perfectly even.")
        p["violation"] = figure(None, "maxvio")
    p |= router_film.build()
    with gr.Column(visible=False) as p["sample panel"]:
        gr.Markdown("### Samples\nContinuations of a few fixed prompts, the newest first.")
        p["samples"] = gr.Textbox(show_label=False, lines=6, max_lines=16, elem_id="samples")
    with gr.Column(visible=False) as p["checkpoints"]:
        gr.Markdown(
            "### Checkpoints\nThe best by validation loss is kept, and comes first. Open one in all tabs, also while the run "
            "continues, or download it."
        )
        p["checkpoint"] = gr.Dropdown([], label="checkpoint", allow_custom_value=True)
        with gr.Row():
            p["open"] = gr.Button("Open in the Playground", min_width=160)
            p["download"] = gr.Button("Download", min_width=120)
        label = "the checkpoint without its training state"
        p["file"] = gr.File(label=label, visible=False, height=110, elem_id="archive")
    return p


def redraw(
    p: dict,
    shown: dict,
    run: runs.Run,
    histories: dict[str, History],
    smoothing: float,
    checkpoint: str,
    chosen_index: int | None,
    film_layer: int | None = None,
) -> dict:
    """{component: update} for what changed of `run` since the page got what it has `shown`.

    `histories` are by name, the run's first, then one whose curves are drawn over it; `checkpoint` is the path now chosen
    in the dropdown; `chosen_index` is where the user put the slider, or None to follow the newest; `film_layer` is the layer
    whose experts the film shows. The slider's place is left to the page, for which `shown` has the "newest probe".
    """
    history = histories[run.name]
    updates = {p["progress"]: progress(run, history)}
    if changed(shown, "failure", reason := failure(run)):
        updates[p["failure"]] = gr.update(value=reason, visible=bool(reason))
    lengths = [(name, len(h.steps), len(h.validation)) for name, h in histories.items()]
    best_step = run.best and int(run.best.name[5:])
    if changed(shown, "curves", (lengths, smoothing, best_step)):
        alarm = "\n\n".join(f"⚠️ {sentence}" for sentence in alarm_sentences(router_alarms(history)))
        updates[p["alarm"]] = gr.update(value=alarm, visible=bool(alarm))
        updates[p["curves"]] = gr.update(visible=bool(history.steps))
        if history.steps:
            updates |= {p[name]: training.curve(histories, name, smoothing) for name in SMALL_CURVES}
            updates[p["loss"]] = training.loss_curves(histories, smoothing, best_step)
            updates[p["load"]] = training.load_map(history)
            updates[p["violation"]] = training.violation_curves(history, smoothing)
    updates |= router_film.redraw(p, shown, history, chosen_index, film_layer)
    samples = "\n\n".join(
        f"— step {step:,} —\n" + "\n\n".join(sample["text"] for sample in at_step)
        for step, at_step in reversed(history.samples)
    )
    if changed(shown, "samples", samples):
        updates[p["sample panel"]] = gr.update(visible=bool(samples))
        updates[p["samples"]] = samples
    choices = checkpoint_choices(run)
    if changed(shown, "checkpoints", choices):
        paths = [path for _, path in choices]
        follows = checkpoint not in paths or checkpoint == shown.get("offered checkpoint", checkpoint)
        shown["offered checkpoint"] = next(iter(paths), None)
        choice = shown["offered checkpoint"] if follows else checkpoint
        updates[p["checkpoints"]] = gr.update(visible=bool(paths))
        updates[p["checkpoint"]] = gr.update(choices=choices, value=choice)
    return updates


def checkpoint_choices(run: runs.Run) -> list[tuple[str, str]]:
    """(label, path) of the checkpoints of a run: the best one first, marked, then the newest."""
    paths = sorted(reversed(saving.list_checkpoints(run.folder)), key=lambda path: path != run.best)
    return [(f"{path.name} · the best" if path == run.best else path.name, str(path)) for path in paths]


def progress(run: runs.Run, history: History) -> str:
    """HTML: a bar, and a line with state, step, speed and time left."""
    parts = [f"<b>{run.state}</b>", f"step {run.step:,} of {run.steps:,}"]
    if history.steps:
        parts.append(f"{history.tokens:,} tokens")
        if run.state == "running":
            parts.append(f"{history.series['tokens_per_second'][-1]:,.0f} tokens/s")
            parts.append(f"about {duration(history.seconds_left(run.steps))} left")
    elif run.state == "running":
        parts.append("getting ready: loading data, building the model")
    if run.best and (result := saving.validation(run.best)):  # else pruned just now
        parts.append(f"★ best checkpoint: step {int(run.best.name[5:]):,}, validation loss {result['val_loss']:.3f}")
    bar = f'<div class="rail"><div style="width: {run.step / run.steps:.1%}"></div></div>'
    return f"{bar}<div>{' · '.join(parts)}</div>"


def failure(run: runs.Run) -> str:
    """Why a run failed or was killed, or what of it is damaged, and what to do; "" for any other run."""
    if not run.reason:
        return ""
    if not run.config:
        advice = "Mend the file to resume it; its checkpoints open also now."
    elif run.checkpoint:
        advice = f"Its last good checkpoint is {run.checkpoint.name}: resume from there, or open it below."
    else:
        advice = (
            "It has no checkpoint yet: resume it from its beginning, or start one of the same name with other settings."
        )
    verb = {"killed": "was killed", "damaged": "is damaged"}.get(run.state, "failed")
    return f"The run {verb}: {run.reason.rstrip('.')}. {advice}"
