"""The metrics.jsonl of a run: its lines, its columns, and what is computed from them."""

import json
import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from deepseek.training.router_history import RouterRecord

SERIES = ["loss", "load_balancing_loss", "lr", "grad_norm", "tokens_per_second"]
STEP_KEYS = ["tokens", "load", "max_violation"]  # of every step's line, beside SERIES
DEAD_WINDOW_STEPS = 50  # steps over whose mean load an expert counts as dead
SPEED_WINDOW_STEPS = 500  # steps whose mean speed gives the time left; includes validations, samples and checkpoints
PAUSE = 500  # a step that takes more than so many times the median was paused; a validation takes up to about 150
SLOWEST = 0.05  # tokens per second that count as the speed of a step whose speed was rounded to 0
MAX_LINE_BYTES = 2**20
DEAD_SHARE = 0.01  # an expert with a smaller fraction of an even load is dead


@dataclass
class TrainStep:
    """What one optimizer step did; the fields up to `max_violation` are a line of metrics.jsonl."""

    step: int
    loss: float  # language modelling, nats per token
    load_balancing_loss: float  # KL, nats, mean over the MoE layers
    lr: float
    grad_norm: float  # before clipping
    tokens: int  # since the start of the run
    tokens_per_second: float  # since the step before, its validation, samples and checkpoint included
    load: list[list[float]]  # (layers, experts), fractions of this step's assignments
    max_violation: list[float]  # per layer
    validation: dict | None = None  # val_loss in nats per token, val_bits_per_byte
    samples: list[dict] | None = None  # prompt, text
    checkpoint: str | None = None  # the folder saved after this step

    def line(self) -> dict:
        """The line of metrics.jsonl; a gradient norm that fp16 cannot hold is None, since JSON has no infinity."""
        values = {k: v for k, v in asdict(self).items() if k not in ("validation", "samples", "checkpoint")}
        return {**values, "grad_norm": self.grad_norm if math.isfinite(self.grad_norm) else None}


@dataclass
class History:
    """The columns of a metrics.jsonl, extended by `add`."""

    steps: list[int] = field(default_factory=list)
    series: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in SERIES})
    tokens: int = 0
    load: list[np.ndarray] = field(default_factory=list)  # per step: (layers, experts) fractions, float32
    max_violation: list[list[float]] = field(default_factory=list)  # per step: one per layer
    validation: list[tuple[int, float]] = field(default_factory=list)  # (step, nats per token)
    samples: list[tuple[int, list[dict]]] = field(default_factory=list)  # (step, [{"prompt", "text"}])
    probes: list[tuple[int, dict]] = field(default_factory=list)  # (step, {"tokens", "layers", "indices", "weights"})
    records: dict[str, list[RouterRecord]] = field(default_factory=lambda: {"routing": [], "probe": []})

    def add(self, lines: list[dict]) -> None:
        """Appends further lines of the file, in their order."""
        for line in lines:
            step = line["step"]
            if "loss" in line:
                self.steps.append(step)
                for name, values in self.series.items():
                    values.append(math.nan if line[name] is None else line[name])  # null: it was not finite
                self.load.append(np.array(line["load"], np.float32))
                self.max_violation.append(line["max_violation"])
                self.tokens = line["tokens"]
            if "val_loss" in line:
                self.validation.append((step, line["val_loss"]))
            if "samples" in line:
                self.samples.append((step, line["samples"]))
            if "probe" in line:
                self.probes.append((step, line["probe"]))
            for kind in self.records.keys() & line.keys():
                self.records[kind].append(RouterRecord.parse(step, line[kind]))

    @property
    def router_records(self) -> list[RouterRecord]:
        """The routing of fixed tokens at every checkpoint: of the probe alone in a run that an earlier version began."""
        return max(self.records["routing"], self.records["probe"], key=len)

    @property
    def experts_per_token(self) -> int:
        """K, from a record; without one 2, as of all presets."""
        return self.router_records[0].indices.shape[-1] if self.router_records else 2

    @property
    def first_layer(self) -> int:
        """Index of the first MoE layer, from a probe; without one 1, since presets begin with one dense layer."""
        return self.probes[0][1]["layers"][0] if self.probes else 1

    def seconds_left(self, last_step: int) -> float | None:
        """Time until step `last_step` at the mean speed of the last SPEED_WINDOW_STEPS, None before the first step."""
        if not self.steps:
            return None
        speeds = self.series["tokens_per_second"][-SPEED_WINDOW_STEPS:]
        return seconds_left(last_step - self.steps[-1], self.tokens / self.steps[-1], speeds)


def read_line(line: bytes) -> dict | None:
    """A line of metrics.jsonl, None for one that no run has written: blank, cut in half, edited."""
    try:
        values = json.loads(line)
        is_whole = isinstance(values["step"], int) and ("loss" not in values or values.keys() >= {*SERIES, *STEP_KEYS})
    except (ValueError, TypeError, KeyError):
        return None
    return values if is_whole else None


def last_step(tail: bytes) -> tuple[int, bool]:
    """(the newest step, whether the lines are whole) in the last bytes of a metrics.jsonl; the ends may be cut."""
    lines = tail.split(b"\n")[:-1]
    values = read_line(lines[-1]) if lines else {"step": 0}
    is_whole = values is not None and all(line[:1] + line[-1:] == b"{}" for line in lines[1:])
    newest = values or next(filter(None, map(read_line, reversed(lines))), {"step": 0})
    return newest["step"], is_whole


def cut(file: Path, num_bytes: int) -> None:
    """Cuts a metrics.jsonl to the whole lines among its first `num_bytes` bytes; one that is lost begins anew."""
    with file.open("a+b") as lines:
        end = min(num_bytes, lines.seek(0, os.SEEK_END))
        start = lines.seek(max(0, end - MAX_LINE_BYTES))
        lines.truncate(start + lines.read(end - start).rfind(b"\n") + 1)


def seconds_left(num_steps: int, tokens_per_step: float, speeds) -> float:
    """Time that `num_steps` steps take at the mean of `speeds`, tokens per second of earlier steps.

    The slowest is left out, and each that was paused, as by a laptop that slept.
    """
    seconds_per_token = np.sort(1 / np.maximum(speeds, SLOWEST))[: max(1, len(speeds) - 1)]
    seconds_per_token = seconds_per_token[seconds_per_token <= PAUSE * np.median(seconds_per_token)]
    return float(num_steps * tokens_per_step * seconds_per_token.mean())


def duration(seconds: float) -> str:
    """A length of time in its two largest units, such as "1 h 5 min"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def smooth(values, smoothing: float) -> np.ndarray:
    """Exponential moving average with bias correction (Adam, arXiv 1412.6980, section 3); `smoothing` in percent.

    0 returns the values unchanged, 90 averages over about the last 10, 100 over all so far. Skips values that are not finite.
    """
    decay, total, weight, averages = smoothing / 100, 0.0, 0.0, []
    for value in values:
        if np.isfinite(value):
            total, weight = decay * total + value, decay * weight + 1
        averages.append(total / weight if weight else np.nan)
    return np.array(averages)


def downsample_indices(num_values: int, max_values: int) -> np.ndarray:
    """At most `max_values` of the indices 0 to num_values - 1, evenly spread, with the first and the last."""
    return np.unique(np.linspace(0, num_values - 1, min(num_values, max_values)).round().astype(int))


def dead_experts(load, window: int = DEAD_WINDOW_STEPS) -> list[tuple[int, int]]:
    """(layer, expert) of each with less than DEAD_SHARE of an even load over the last `window` steps.

    `load` is (steps, layers, experts), fractions; with fewer steps than `window` the result is empty.
    """
    if len(load) < window:
        return []
    load_LE = np.mean(load[-window:], axis=0)
    return [(int(layer), int(expert)) for layer, expert in np.argwhere(load_LE < DEAD_SHARE / load_LE.shape[1])]


def routing_change(probes: list[tuple[int, dict]]) -> list[tuple[int, float]]:
    """(step, fraction) of each probe but the first: how many (token, layer) pairs changed their set of experts."""
    sets = [(step, np.sort(np.array(probe["indices"]), axis=-1)) for step, probe in probes]
    return [(step, float((new != old).any(-1).mean())) for (_, old), (step, new) in zip(sets, sets[1:])]
