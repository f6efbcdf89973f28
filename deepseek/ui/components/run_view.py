"""What the page shows of a run, read from the files it writes: state, curves, expert load, samples, probes."""

from deepseek.training import runs
from deepseek.training.metrics import DEAD_SHARE, DEAD_WINDOW_STEPS, History, dead_experts, duration


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


def samples(history: History) -> str:
    """All samples as plain text, the newest first."""
    return "\n\n".join(
        f"— step {step:,} —\n" + "\n\n".join(sample["text"] for sample in at_step)
        for step, at_step in reversed(history.samples)
    )
