"""What the Train tab shows of a run, read from the files it writes: curves, expert load, samples, probes, checkpoints.

Each panel is hidden until it has content, and redrawn only when that changes.
"""

from pathlib import Path

import gradio as gr

from deepseek.checkpoints import saving
from deepseek.training import runs
from deepseek.training.metrics import DEAD_SHARE, DEAD_WINDOW_STEPS, History, dead_experts, duration
from deepseek.ui.components.view import figure
from deepseek.ui.plots import training

SMALL_CURVES = {  # heading by name in metrics.SERIES
    "load_balancing_loss": "load balancing loss",
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "tokens_per_second": "tokens/s",
}


class RunView:
    """What a session has read and drawn of a run: only a cache of what is on disk.

    Not a dataclass: gradio turns a dataclass in a State into a dictionary.
    """

    def __init__(self):
        self.name, self.offset, self.history = None, 0, History()
        self.probe_index = None  # index of the probe that the user chose; None follows the newest
        self.drawn = {}  # panel -> what it shows, so that nothing is drawn twice

    def changed(self, panel: str, content) -> bool:
        """Whether `panel` does not show `content` yet; from now on it does."""
        before, self.drawn[panel] = self.drawn.get(panel), content
        return before != content

    def read(self, name: str) -> None:
        """Reads what the run `name` wrote since the last call, or everything of another run."""
        if name != self.name:
            self.name, self.offset, self.history, self.probe_index = name, 0, History(), None
        lines, self.offset = runs.metrics(runs.find(runs.ROOT, name).folder, self.offset)
        if lines and self.history.steps and lines[0]["step"] <= 1:  # a resumed run cut its file: all lines come again
            self.history = History()
        self.history.add(lines)


def run_choices() -> list[tuple[str, str]]:
    """(label, name) of every run: the one in progress first, then the newest."""
    ordered = sorted(runs.list_runs(), key=lambda run: not run.alive)
    return [(f"{run.name} · {run.state}", run.name) for run in ordered]


def build() -> dict[str, gr.components.Component]:
    """Adds the panels, all hidden; returns by name the components that `redraw` updates."""
    p = {}
    p["progress"] = gr.HTML("", elem_id="progress")
    p["failure"] = gr.Textbox("", label="what went wrong", visible=False, lines=1, max_lines=6)
    with gr.Column(visible=False) as p["curves"]:
        gr.Markdown("### Loss\nCross-entropy of the next token, in nats: training loss and held-out (validation) loss.")
        p["loss"] = figure(None, "loss")
        with gr.Row():
            for name, heading in SMALL_CURVES.items():
                with gr.Column(min_width=260):
                    gr.Markdown(f"**{heading}**")
                    p[name] = figure(None, name, elem_classes="small-curve")
        gr.Markdown("### Expert load\nOne row per expert: blue is above an even load, orange below.")
        p["dead experts"] = gr.Markdown("")
        p["load"] = figure(None, "expert-load-over-steps")
        gr.Markdown("MaxVio: how far a layer's busiest expert is above an even load; 0 is perfectly even.")
        p["violation"] = figure(None, "maxvio")
    with gr.Column(visible=False) as p["probes"]:
        gr.Markdown(
            "### Routing over training\nThe same text, routed again at every checkpoint. Move the slider back to see "
            "which expert got each token earlier."
        )
        p["probe index"] = gr.Slider(0, 1, 0, step=1, label="checkpoint", elem_id="probe-at")
        p["probe note"] = gr.Markdown("")
        p["probe"] = figure(None, "probe", elem_classes="wide")
        gr.Markdown("Routing change between checkpoints: fraction of tokens with a different expert, over all layers.")
        p["routing change"] = figure(None, "routing-change")
    with gr.Column(visible=False) as p["sample panel"]:
        gr.Markdown("### Samples\nContinuations of a few fixed prompts, the newest first.")
        p["samples"] = gr.Textbox(show_label=False, lines=6, max_lines=16, elem_id="samples")
    with gr.Column(visible=False) as p["checkpoints"]:
        gr.Markdown("### Checkpoints\nOpen one in all tabs, also while the run continues, or download it.")
        p["checkpoint"] = gr.Dropdown([], label="checkpoint", allow_custom_value=True)
        with gr.Row():
            p["open"] = gr.Button("Open in the Playground", min_width=160)
            p["download"] = gr.Button("Download", min_width=120)
        label = "the checkpoint without its training state"
        p["file"] = gr.File(label=label, visible=False, height=110, elem_id="archive")
    return p


def redraw(
    p: dict, view: RunView, overlay: RunView, run: runs.Run, overlay_name: str, smoothing: float, checkpoint: str
) -> dict:
    """{component: update} for what changed of `run` since `view` was drawn.

    `overlay_name` is a run whose curves are drawn over it, or empty; `checkpoint` is the path now chosen in the dropdown.
    """
    view.read(run.name)
    history = view.history
    histories = {run.name: history}
    if overlay_name and overlay_name != run.name:
        overlay.read(overlay_name)
        histories[overlay_name] = overlay.history
    updates = {p["progress"]: progress(run, history)}
    if view.changed("failure", reason := failure(run)):
        updates[p["failure"]] = gr.update(value=reason, visible=bool(reason))
    lengths = [(name, len(h.steps), len(h.validation)) for name, h in histories.items()]
    if view.changed("curves", (lengths, smoothing)):
        updates[p["curves"]] = gr.update(visible=bool(history.steps))
        if history.steps:
            updates |= {p[name]: training.curve(histories, name, smoothing) for name in SMALL_CURVES}
            updates[p["loss"]] = training.loss_curves(histories, smoothing)
            updates[p["dead experts"]] = dead_expert_alert(history)
            updates[p["load"]] = training.load_map(history)
            updates[p["violation"]] = training.violation_curves(history, smoothing)
    newest = len(history.probes) - 1
    if view.changed("probes", (run.name, newest, view.probe_index)):
        updates[p["probes"]] = gr.update(visible=newest > 0)
        if newest > 0:
            index = newest if view.probe_index is None else min(view.probe_index, newest)
            updates[p["probe index"]] = gr.update(maximum=newest, value=index)
            updates[p["routing change"]] = training.routing_change_bars(history)
            updates |= draw_probe(p, history, index)
    samples = "\n\n".join(
        f"— step {step:,} —\n" + "\n\n".join(sample["text"] for sample in at_step)
        for step, at_step in reversed(history.samples)
    )
    if view.changed("samples", samples):
        updates[p["sample panel"]] = gr.update(visible=bool(samples))
        updates[p["samples"]] = samples
    paths = [str(path) for path in reversed(saving.list_checkpoints(run.folder))]
    before = view.drawn.get("checkpoints") or [checkpoint]
    if view.changed("checkpoints", paths):
        choice = checkpoint if checkpoint in paths and checkpoint != before[0] else next(iter(paths), None)
        updates[p["checkpoints"]] = gr.update(visible=bool(paths))
        updates[p["checkpoint"]] = gr.update(choices=[(Path(path).name, path) for path in paths], value=choice)
    return updates


def draw_probe(p: dict, history: History, index: int) -> dict:
    """{component: update} for the probe history.probes[index]."""
    step, probe = history.probes[index]
    return {p["probe note"]: f"Checkpoint {index}: step {step:,}", p["probe"]: training.probe_map(probe)}


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
    bar = f'<div class="rail"><div style="width: {run.step / run.steps:.1%}"></div></div>'
    return f"{bar}<div>{' · '.join(parts)}</div>"


def failure(run: runs.Run) -> str:
    """Why a run failed or was killed, and the checkpoint it left; "" for any other run."""
    if not run.reason:
        return ""
    advice = (
        f"Its last good checkpoint is {run.checkpoint.name}: resume from there, or open it below."
        if run.checkpoint
        else "It has no checkpoint yet; delete it and start again."
    )
    return f"The run {'was killed' if run.state == 'killed' else 'failed'}: {run.reason.rstrip('.')}. {advice}"


def dead_expert_alert(history: History) -> str:
    """Markdown: which experts are dead, and what to do about it."""
    dead = dead_experts(history.load)
    rule = f"under {DEAD_SHARE:.0%} of an even load over the last {DEAD_WINDOW_STEPS} steps"
    if len(history.steps) < DEAD_WINDOW_STEPS:
        return f"Dead experts ({rule}): checked from step {DEAD_WINDOW_STEPS} on."
    if not dead:
        return f"No dead experts ({rule})."
    names = ", ".join(f"layer {history.first_layer + layer} expert {expert}" for layer, expert in dead)
    return f"⚠️ **Dead experts** ({rule}): {names}. A larger balance weight or bias update rate brings them back."
