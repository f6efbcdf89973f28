"""The panels of the Train tab that show a run. Each is hidden until it has content, and redrawn only when that changes."""

from pathlib import Path

import gradio as gr

from deepseek.checkpoints import saving
from deepseek.training import runs
from deepseek.training.metrics import History
from deepseek.ui.components.figure import figure
from deepseek.ui.components.run_view import RunView, dead_expert_alert, failure, progress, samples
from deepseek.ui.plots import training

SMALL_CURVES = {  # heading by name in metrics.SERIES
    "load_balancing_loss": "load balancing loss",
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "tokens_per_second": "tokens/s",
}


def build() -> dict[str, gr.components.Component]:
    """Adds the panels, all hidden; returns by name the components that `redraw` updates."""
    p = {}
    p["progress"] = gr.HTML("", elem_id="progress")
    p["failure"] = gr.Textbox("", label="what went wrong", visible=False, lines=1, max_lines=6)
    with gr.Column(visible=False) as p["curves"]:
        gr.Markdown("### Loss\nCross-entropy of the next token, in nats: training loss and held-out (validation) loss.")
        p["loss"] = figure(None, "loss", elem_id="loss")
        with gr.Row():
            for name, heading in SMALL_CURVES.items():
                with gr.Column(min_width=260):
                    gr.Markdown(f"**{heading}**")
                    p[name] = figure(None, name, elem_classes="small-curve")
        gr.Markdown("### Expert load\nOne row per expert: blue is above an even load, orange below.")
        p["dead experts"] = gr.Markdown("")
        p["load"] = figure(None, "expert-load-over-steps")
        gr.Markdown("MaxVio: how far a layer's busiest expert is above an even load; 0 is perfectly even.")
        p["violation"] = figure(None, "maxvio", elem_id="maxvio")
    with gr.Column(visible=False) as p["probes"]:
        gr.Markdown(
            "### Routing over training\nThe same text, routed again at every checkpoint. Move the slider back to see "
            "which expert got each token earlier."
        )
        p["probe index"] = gr.Slider(0, 1, 0, step=1, label="checkpoint", elem_id="probe-at")
        p["probe note"] = gr.Markdown("")
        p["probe"] = figure(None, "probe", elem_classes="wide", elem_id="probe")
        gr.Markdown(
            "Routing change between checkpoints: the fraction of tokens with a different expert, over all layers."
        )
        p["routing change"] = figure(None, "routing-change", elem_id="routing-change")
    with gr.Column(visible=False) as p["sample panel"]:
        gr.Markdown("### Samples\nContinuations of a few fixed prompts, the newest first.")
        p["samples"] = gr.Textbox(show_label=False, lines=6, max_lines=16, elem_id="samples")
    with gr.Column(visible=False) as p["checkpoints"]:
        gr.Markdown("### Checkpoints\nOpen one in all tabs, also while the run continues, or download it.")
        p["checkpoint"] = gr.Dropdown([], label="checkpoint", allow_custom_value=True)
        with gr.Row():
            p["open"] = gr.Button("Open in the Playground", min_width=160)
            p["download"] = gr.Button("Download", min_width=120)
        p["file"] = gr.File(
            label="the checkpoint without its training state", visible=False, height=110, elem_id="archive"
        )
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
    if view.changed("failure", failure(run)):
        updates[p["failure"]] = gr.update(value=failure(run), visible=bool(run.reason))
    lengths = [(name, len(h.steps), len(h.validation)) for name, h in histories.items()]
    if view.changed("curves", (lengths, smoothing)):
        updates[p["curves"]] = gr.update(visible=bool(history.steps))
        if history.steps:
            updates |= _curves(p, histories, smoothing)
    newest = len(history.probes) - 1
    if view.changed("probes", (run.name, newest, view.probe_index)):
        updates[p["probes"]] = gr.update(visible=newest > 0)
        if newest > 0:
            index = newest if view.probe_index is None else min(view.probe_index, newest)
            updates[p["probe index"]] = gr.update(maximum=newest, value=index)
            updates[p["routing change"]] = training.routing_change_bars(history)
            updates |= draw_probe(p, history, index)
    if view.changed("samples", samples(history)):
        updates[p["sample panel"]] = gr.update(visible=bool(history.samples))
        updates[p["samples"]] = samples(history)
    paths = [str(path) for path in reversed(saving.list_checkpoints(run.folder))]
    before = view.drawn.get("checkpoints") or [checkpoint]
    if view.changed("checkpoints", paths):
        choice = checkpoint if checkpoint in paths and checkpoint != before[0] else next(iter(paths), None)
        updates[p["checkpoints"]] = gr.update(visible=bool(paths))
        updates[p["checkpoint"]] = gr.update(choices=[(Path(path).name, path) for path in paths], value=choice)
    return updates


def _curves(p: dict, histories: dict[str, History], smoothing: float) -> dict:
    history = next(iter(histories.values()))
    return {
        p["loss"]: training.loss_curves(histories, smoothing),
        **{p[name]: training.curve(histories, name, smoothing) for name in SMALL_CURVES},
        p["dead experts"]: dead_expert_alert(history),
        p["load"]: training.load_map(history),
        p["violation"]: training.violation_curves(history, smoothing),
    }


def draw_probe(p: dict, history: History, index: int) -> dict:
    """{component: update} for the probe history.probes[index]."""
    step, probe = history.probes[index]
    return {p["probe note"]: f"Checkpoint {index}: step {step:,}", p["probe"]: training.probe_map(probe)}
