"""The panels of the Train tab that show a run: each is drawn once there is something for it, and again when it is new."""

from pathlib import Path

import gradio as gr

from deepseek.checkpoints import saving
from deepseek.training import runs
from deepseek.ui.components.figure import figure
from deepseek.ui.components.run_view import RunView, alarm, progress, samples, trouble
from deepseek.ui.plots import training

SMALL = {  # heading of each small curve, by its name in history.SERIES
    "load_balancing_loss": "load balancing loss",
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "tokens_per_second": "tokens a second",
}


def build() -> dict[str, gr.components.Component]:
    """Draws them, all hidden; returns by name the parts that `redraw` changes."""
    p = {}
    p["progress"] = gr.HTML("", elem_id="progress")
    p["trouble"] = gr.Textbox("", label="what went wrong", visible=False, lines=1, max_lines=6)
    with gr.Column(visible=False) as p["curves"]:
        gr.Markdown("### How wrong it is\nSurprise at the next token: of the text it learns from and of text held out.")
        p["loss"] = figure(None, "loss", elem_id="loss")
        with gr.Row():
            for name, heading in SMALL.items():
                with gr.Column(min_width=260):
                    gr.Markdown(f"**{heading}**")
                    p[name] = figure(None, name, elem_classes="small-curve")
        gr.Markdown(
            "### How evenly the experts are used\nEach row is an expert: blue gets more tokens than an even share, orange fewer."
        )
        p["alarm"] = gr.Markdown("")
        p["load"] = figure(None, "expert-load-over-steps")
        gr.Markdown("MaxVio: how far a layer's busiest expert is above an even share; 0 is perfectly even.")
        p["violation"] = figure(None, "maxvio", elem_id="maxvio")
    with gr.Column(visible=False) as p["probes"]:
        gr.Markdown(
            "### How the experts settle\nThe same sentence, routed anew at every checkpoint: who gets which token first? "
            "Move the slider back to the start."
        )
        p["at"] = gr.Slider(0, 1, 0, step=1, label="checkpoint", elem_id="probe-at")
        p["probe note"] = gr.Markdown("")
        p["probe"] = figure(None, "probe", elem_classes="wide", elem_id="probe")
        gr.Markdown("Share of tokens that changed an expert since the checkpoint before, over all layers.")
        p["settling"] = figure(None, "settling", elem_id="settling")
    with gr.Column(visible=False) as p["writes"]:
        gr.Markdown("### What it writes\nIts own continuations of a few fixed beginnings, the newest first.")
        p["samples"] = gr.Textbox(show_label=False, lines=6, max_lines=16, elem_id="samples")
    with gr.Column(visible=False) as p["commits"]:
        gr.Markdown("### Checkpoints\nOpen one in all tabs of this page, also while the run goes on, or download it.")
        p["commit"] = gr.Dropdown([], label="checkpoint", allow_custom_value=True, elem_id="commit")
        with gr.Row():
            p["open"] = gr.Button("Open in the Playground", min_width=160)
            p["download"] = gr.Button("Download", min_width=120)
        p["file"] = gr.File(
            label="the checkpoint without its training state", visible=False, height=110, elem_id="archive"
        )
    return p


def redraw(p: dict, seen: RunView, over: RunView, run: runs.Run, other: str, smoothing: float, commit: str) -> dict:
    """{part: value} for what is new of `run` since `seen` was drawn last; `other` names a run to lay over it or is empty."""
    seen.read(run.name)
    history = seen.history
    histories = {run.name: history}
    if other and other != run.name:
        over.read(other)
        histories[other] = over.history
    new = {p["progress"]: progress(run, history)}
    if seen.news("trouble", trouble(run)):
        new[p["trouble"]] = gr.update(value=trouble(run), visible=bool(run.reason))
    lengths = [(name, len(h.steps), len(h.validation)) for name, h in histories.items()]
    if seen.news("curves", (lengths, smoothing)):
        new |= _curves(p, histories, smoothing) if history.steps else {p["curves"]: gr.update(visible=False)}
    newest = len(history.probes) - 1
    if seen.news("probes", (run.name, newest, seen.back)):
        new |= _probes(p, history, newest if seen.back is None else min(seen.back, newest))
    if seen.news("samples", samples(history)):
        new |= {p["writes"]: gr.update(visible=bool(history.samples)), p["samples"]: samples(history)}
    paths = [str(path) for path in reversed(saving.list_checkpoints(run.folder))]
    known = seen.drawn.get("commits") or [commit]
    if seen.news("commits", paths):
        chosen = commit if commit in paths and commit != known[0] else next(iter(paths), None)
        named = [(Path(path).name, path) for path in paths]
        new |= {p["commits"]: gr.update(visible=bool(paths)), p["commit"]: gr.update(choices=named, value=chosen)}
    return new


def _curves(p, histories, smoothing) -> dict:
    history = next(iter(histories.values()))
    return {
        p["curves"]: gr.update(visible=True),
        p["loss"]: training.loss_curves(histories, smoothing),
        **{p[name]: training.curve(histories, name, smoothing) for name in SMALL},
        p["alarm"]: alarm(history),
        p["load"]: training.load_map(history),
        p["violation"]: training.violation_curves(history, smoothing),
    }


def _probes(p, history, at: int) -> dict:
    if len(history.probes) < 2:
        return {p["probes"]: gr.update(visible=False)}
    return {
        p["probes"]: gr.update(visible=True),
        p["at"]: gr.update(maximum=len(history.probes) - 1, value=at),
        p["settling"]: training.routing_change_bars(history),
        **probed(p, history, at),
    }


def probed(p: dict, history, at: int) -> dict:
    """{part: value} for the probe at place `at` of history.probes."""
    step, probe = history.probes[at]
    return {p["probe note"]: f"Checkpoint {at}: step {step:,}", p["probe"]: training.probe_map(probe)}
