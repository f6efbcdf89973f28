"""Alarms for experts that go wrong while a run learns: dead ones, and those that a layer's router has collapsed onto."""

from dataclasses import dataclass
from itertools import groupby

import numpy as np

from deepseek.training import runs
from deepseek.training.metrics import DEAD_SHARE, DEAD_WINDOW_STEPS, History, dead_experts

COLLAPSED_SHARE = 0.9  # of the tokens; an expert that gets more of them leaves the others nothing to learn from
MAX_NAMED = 8  # experts of a sentence; more are counted


@dataclass
class Alarm:
    """An expert that has been dead or collapsed over the last DEAD_WINDOW_STEPS steps."""

    kind: str  # "dead" or "collapsed"
    layer: int
    expert: int
    since: int  # the first step of the time that it has been so
    tokens: float  # fraction of the tokens that it got over the last DEAD_WINDOW_STEPS steps, 0 to 1


def router_alarms(history: History, window: int = DEAD_WINDOW_STEPS) -> list[Alarm]:
    """The alarms at the newest step, by layer; none before `window` steps.

    Over the last `window` steps a dead expert had under DEAD_SHARE of an even load, and a collapsed one more than
    COLLAPSED_SHARE of the tokens, at twice an even load or more. `since` is the first such step of the windows in which this
    has held without a break.
    """
    steps, load, k = history.steps, history.load, history.experts_per_token
    found = [("dead", layer, expert) for layer, expert in dead_experts(load, window)]
    found += [("collapsed", layer, expert) for layer, expert in collapsed_experts(load, k, window)]
    alarms = []
    for kind, layer, expert in sorted(found, key=lambda each: each[1]):
        share = np.array([load_LE[layer, expert] for load_LE in load], np.float64)
        means = np.convolve(share, np.full(window, 1 / window), "valid")
        limit = DEAD_SHARE / load[-1].shape[1] if kind == "dead" else COLLAPSED_SHARE / k
        fine, bad = (means >= limit, share < limit) if kind == "dead" else (means <= limit, share > limit)
        first = np.flatnonzero(fine)[-1] + 1 if fine.any() else 0  # of the windows without a break
        since = steps[first + bad[first:].argmax()]
        alarms.append(Alarm(kind, history.first_layer + layer, expert, since, float(k * means[-1])))
    return alarms


class AlarmWatch:
    """Follows the metrics of a run while it writes them, and tells which alarms are new."""

    def __init__(self, folder):
        self.folder, self.offset, self.history, self.known = folder, 0, History(), set()

    def new_alarms(self) -> list[Alarm]:
        """The alarms at the newest step that were none at the last call. Keeps of the run only what these need."""
        lines, self.offset = runs.metrics(self.folder, self.offset)
        self.history.add(lines)
        alarms = {(alarm.kind, alarm.layer, alarm.expert): alarm for alarm in router_alarms(self.history)}
        new = [alarm for key, alarm in alarms.items() if key not in self.known]
        self.known = set(alarms)
        for column in (self.history.steps, self.history.load):  # what is new has begun within the last window
            del column[: -2 * DEAD_WINDOW_STEPS]
        for column in (self.history.probes, *self.history.records.values()):
            del column[1:]
        return new


def collapsed_experts(load, k: int, window: int = DEAD_WINDOW_STEPS) -> list[tuple[int, int]]:
    """(layer, expert) of each that more than COLLAPSED_SHARE of the tokens chose over the last `window` steps.

    `load` is (steps, layers, experts), fractions of the assignments, `k` per token; with fewer steps the result is empty, and
    also with so few experts that an even load would be half of that already.
    """
    if len(load) < window:
        return []
    load_LE = np.mean(load[-window:], axis=0)
    limit = COLLAPSED_SHARE / k
    return [(int(layer), int(expert)) for layer, expert in np.argwhere(load_LE > max(limit, 2 / load_LE.shape[1]))]


def alarm_sentences(alarms: list[Alarm]) -> list[str]:
    """What has gone wrong, where, since when and what helps: as plain text, an item for each layer and kind."""
    sentences = []
    for (layer, kind), group in groupby(alarms, lambda alarm: (alarm.layer, alarm.kind)):
        group = sorted(group, key=lambda alarm: alarm.since)
        named = ", ".join(f"expert {alarm.expert} (since step {alarm.since:,})" for alarm in group[:MAX_NAMED])
        named += f" and {len(group) - MAX_NAMED} more" if len(group) > MAX_NAMED else ""
        if kind == "dead":
            what, them = (
                ("Dead expert", "it, so it learns") if len(group) == 1 else ("Dead experts", "them, so they learn")
            )
            why = f"The router sends almost no tokens to {them} nothing."
        else:
            what, share = "Collapsed router", max(alarm.tokens for alarm in group)
            why = f"Nearly every token ({share:.0%}) goes there, so the other experts hardly learn."
        remedy = "A larger balance weight or bias update rate spreads the tokens again."
        sentences.append(f"{what} in layer {layer}: {named}. {why} {remedy}")
    return sentences
