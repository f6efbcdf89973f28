"""What a run wrote into metrics.jsonl, as columns, and what can be read off them."""

from dataclasses import dataclass, field

import numpy as np

SERIES = ["loss", "load_balancing_loss", "lr", "grad_norm", "tokens_per_second"]
DEAD_WINDOW_STEPS = 50  # steps over which an expert is judged
SPEED_WINDOW_STEPS = (
    500  # steps whose mean pace tells the time left: enough to hold their validations, samples and commits
)
DEAD_SHARE = 0.01  # of an even share


@dataclass
class History:
    """The columns of a metrics.jsonl; grows by `add`."""

    steps: list[int] = field(default_factory=list)
    series: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in SERIES})
    tokens: int = 0
    load: list[np.ndarray] = field(default_factory=list)  # a step: (layers, experts) float32 shares
    max_violation: list[list[float]] = field(default_factory=list)  # a step: one a layer
    validation: list[tuple[int, float]] = field(default_factory=list)  # (step, nats a token)
    samples: list[tuple[int, list[dict]]] = field(default_factory=list)  # (step, [{"prompt", "text"}])
    probes: list[tuple[int, dict]] = field(default_factory=list)  # (step, {"tokens", "layers", "indices", "weights"})

    def add(self, lines: list[dict]) -> None:
        """Takes up further lines of the file, in their order."""
        for line in lines:
            step = line["step"]
            if "loss" in line:
                self.steps.append(step)
                for name, values in self.series.items():
                    value = line[name]  # null where it was not finite
                    values.append(float("nan") if value is None else value)
                self.load.append(np.array(line["load"], np.float32))
                self.max_violation.append(line["max_violation"])
                self.tokens = line["tokens"]
            if "val_loss" in line:
                self.validation.append((step, line["val_loss"]))
            if "samples" in line:
                self.samples.append((step, line["samples"]))
            if "probe" in line:
                self.probes.append((step, line["probe"]))

    @property
    def first_layer(self) -> int:
        """Index of the first layer of experts: a probe tells it, and else there is one dense layer before it."""
        return self.probes[0][1]["layers"][0] if self.probes else 1

    def seconds_left(self, last: int) -> float | None:
        """Time until step `last` at the pace of the last PACE steps, None before the first step."""
        if not self.steps:
            return None
        speeds = self.series["tokens_per_second"][-SPEED_WINDOW_STEPS:]
        return seconds_left(last - self.steps[-1], self.tokens / self.steps[-1], speeds)


def seconds_left(steps: int, tokens: float, speeds) -> float:
    """Time that `steps` steps of `tokens` tokens take at the mean pace of steps that made `speeds` tokens a second.

    The slowest of them is left out: the run may have been paused in it.
    """
    times = np.sort(1 / np.array(speeds))
    return float(steps * tokens * times[: max(1, len(times) - 1)].mean())


def duration(seconds: float) -> str:
    """A length of time in its two largest units."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def smooth(values, smoothing: float) -> np.ndarray:
    """Exponential moving average, without bias towards the first value; `smoothing` in percent.

    0 leaves the values as they are, 90 averages over about 10 of them, 100 over all so far.
    A value that is not finite is passed over.
    """
    keep, total, weight, averages = smoothing / 100, 0.0, 0.0, []
    for value in values:
        if np.isfinite(value):
            total, weight = keep * total + value, keep * weight + 1
        averages.append(total / weight if weight else np.nan)
    return np.array(averages)


def downsample_indices(count: int, most: int) -> np.ndarray:
    """At most `most` of the places 0 to count - 1, evenly spread, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def dead_experts(load, window: int = DEAD_WINDOW_STEPS) -> list[tuple[int, int]]:
    """(row of `load`'s layers, expert) of each that got under DEAD of an even share over the last `window` steps.

    `load` is (steps, layers, experts), shares; with fewer steps than `window` nobody is judged yet.
    """
    if len(load) < window:
        return []
    shares_LE = np.mean(load[-window:], axis=0)
    return [(int(layer), int(expert)) for layer, expert in np.argwhere(shares_LE < DEAD_SHARE / shares_LE.shape[1])]


def routing_change(probes: list[tuple[int, dict]]) -> list[tuple[int, float]]:
    """(step, share) of each probe but the first: of its (token, layer) pairs, how many have other experts than before."""
    sets = [(step, np.sort(np.array(probe["indices"]), axis=-1)) for step, probe in probes]
    return [(step, float((new != old).any(-1).mean())) for (_, old), (step, new) in zip(sets, sets[1:])]
