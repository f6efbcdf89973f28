"""What the page shows of a run, from the files it leaves: state, curves, expert load, samples, the probe."""

from deepseek.training import runs
from deepseek.training.metrics import DEAD_SHARE, DEAD_WINDOW_STEPS, History, dead_experts, duration


class RunView:
    """What one reader's page has read of a run. Only a cache: whatever it holds is on the disk.

    Not a dataclass: gradio would turn a dataclass in a State into a dictionary.
    """

    def __init__(self):
        self.name, self.offset, self.history = None, 0, History()
        self.back = None  # the place of the probe that the reader went back to; None follows the newest
        self.drawn = {}  # panel -> what it shows, so that nothing is drawn twice

    def news(self, panel: str, shown) -> bool:
        """Whether `panel` does not show `shown` yet; from now on it does."""
        known, self.drawn[panel] = self.drawn.get(panel), shown
        return known != shown

    def read(self, name: str) -> None:
        """Takes up what the run `name` wrote since the last time, or all of another run."""
        if name != self.name:
            self.name, self.offset, self.history, self.back = name, 0, History(), None
        lines, self.offset = runs.metrics(runs.find(runs.ROOT, name).folder, self.offset)
        if lines and self.history.steps and lines[0]["step"] <= 1:  # a resumed run cut its file: all lines came again
            self.history = History()
        self.history.add(lines)


def run_choices() -> list[tuple[str, str]]:
    """(label, name) of every run, the one in progress first, then the newest."""
    known = sorted(runs.list_runs(), key=lambda run: not run.alive)
    return [(f"{run.name} · {run.state}", run.name) for run in known]


def progress(run: runs.Run, history: History) -> str:
    """HTML: a bar, and a line with the state, the step, the speed and the time left."""
    parts = [f"<b>{run.state}</b>", f"step {run.step:,} of {run.steps:,}"]
    if history.steps:
        parts.append(f"{history.tokens:,} tokens read")
        if run.state == "running":
            parts.append(f"{history.series['tokens_per_second'][-1]:,.0f} tokens/s")
            parts.append(f"about {duration(history.seconds_left(run.steps))} left")
    elif run.state == "running":
        parts.append("getting ready: reading text, making the model")
    done = f'<div class="rail"><div style="width: {run.step / run.steps:.1%}"></div></div>'
    return f"{done}<div>{' · '.join(parts)}</div>"


def trouble(run: runs.Run) -> str:
    """Why a run ended before its time and what is left of it, "" for one that did not."""
    if not run.reason:
        return ""
    kept = (
        f"Its last good checkpoint is {run.checkpoint.name}: resume from there, or open it below."
        if run.checkpoint
        else "It had not committed a checkpoint yet; delete it and start anew."
    )
    return f"The run {'was killed' if run.state == 'killed' else 'failed'}: {run.reason.rstrip('.')}. {kept}"


def alarm(history: History) -> str:
    """Markdown: which experts are dead, and what that means."""
    dead = dead_experts(history.load)
    rule = f"under {DEAD_SHARE:.0%} of an even share over the last {DEAD_WINDOW_STEPS} steps"
    if len(history.steps) < DEAD_WINDOW_STEPS:
        return f"Dead experts ({rule}): judged from step {DEAD_WINDOW_STEPS} on."
    if not dead:
        return f"No dead experts (none got {rule})."
    names = ", ".join(f"layer {history.first_layer + layer} expert {expert}" for layer, expert in dead)
    return f"⚠️ **Dead experts** ({rule}): {names}. A larger balance weight or bias rate brings them back."


def samples(history: History) -> str:
    """All samples as plain text, the newest first."""
    return "\n\n".join(
        f"— step {step:,} —\n" + "\n\n".join(sample["text"] for sample in made)
        for step, made in reversed(history.samples)
    )
