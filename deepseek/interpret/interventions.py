"""Ablates, forces, promotes or suppresses experts while a model runs, for any mixture of experts that `moe_layers` finds.

The router's own code chooses, with the expert ranked last or first or its score changed, so a trace shows what really ran.
"""

import re
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch

from deepseek.interpret.moe_layers import biased_experts, moe_layers, why_no_experts

# What is added to the rank of an expert; of a finite one, times the strength, the fraction by which its score is steered.
ACTIONS = {"off": -torch.inf, "force": torch.inf, "promote": 1.0, "suppress": -1.0}
DONE = {"off": "switched off", "force": "forced", "promote": "promoted", "suppress": "suppressed"}
FORM = re.compile(rf"({'|'.join(ACTIONS)})\s+(\d{{1,6}})(?:\s*@\s*(\d{{1,6}}))?(?:\s+([0-9.]{{1,20}}))?")
FORM_HELP = (
    "an action (off, force, promote, suppress), an expert, @ with a layer, and a strength, such as promote 3@2 0.5"
)


@dataclass(frozen=True)
class Intervention:
    """What to do to one expert in one layer, or in every MoE layer that ranks its experts where `layer` is None.

    off: the expert is ablated, which is the model's own rule with that expert barred from its choice; a token that had not
    chosen it is unaffected, unless the router ranks groups, whose score counts it too. force: every token runs the expert, in
    place of the lowest-ranked one it chose. Scores, biases, groups and the normalisation of weights are the router's own.

    promote and suppress are SteerMoE's activation and deactivation (Fayyaz et al., 2025, arXiv 2509.09660): at `strength` 1 the
    score of the expert is set above the largest score of the token, or below the smallest; between 0 and 1 that fraction of
    the offset is added to it. The score is what the router ranks and weighs by, so the weights change too; see
    `router_watch.steered`. Any number of experts may be promoted; if more than top-k are, their own scores decide. Limits by
    groups stay in force.
    """

    expert: int
    action: str
    layer: int | None = None
    strength: float = 1.0  # of promote and suppress

    def __str__(self) -> str:
        """The text that `parse_intervention` reads, such as "promote 3@2 0.5"."""
        layer = "" if self.layer is None else f"@{self.layer}"
        return f"{self.action} {self.expert}{layer}" + ("" if self.strength == 1 else f" {self.strength:g}")


def parse_intervention(text: str) -> Intervention:
    """The Intervention that a text such as "off 3", "force 3@2" or "promote 3@2 0.5" names. Raises ValueError."""
    if not isinstance(text, str) or not (match := FORM.fullmatch(text.strip())):
        raise ValueError(f"intervention is {text!r:.60}; it must be {FORM_HELP}.")
    action, expert, layer, strength = match.groups()
    try:
        strength = 1.0 if strength is None else float(strength)
    except ValueError:
        raise ValueError(f"strength is {strength!r:.40}; it must be a number above 0, at most 1.") from None
    return Intervention(int(expert), action, None if layer is None else int(layer), strength)


def parse_interventions(value) -> list[Intervention]:
    """Interventions of a list of Interventions, their texts, or their fields as dicts; also of one text with one a line.

    Raises ValueError for anything else. The model that runs them refuses an expert that it lacks.
    """
    items = [line for line in value.splitlines() if line.strip()] if isinstance(value, str) else value
    rule = "they must be a list of objects with expert, action and, unless for all layers, layer, or of texts"
    if not isinstance(items, (list, tuple)):
        raise ValueError(f"interventions are {value!r:.60}; {rule}.")
    found = []
    for item in items:
        try:
            fields = asdict(item) if isinstance(item, Intervention) else item
            each = parse_intervention(item) if isinstance(item, str) else Intervention(**fields)
        except TypeError:
            each = None
        if each is None or type(each.expert) is not int or each.layer is not None and type(each.layer) is not int:
            raise ValueError(f"interventions are {value!r:.60}; {rule}.")
        found.append(each)
    return found


@contextmanager
def intervened(model, interventions: Iterable[Intervention]):
    """Within this context, and in this thread only, `model` runs under `interventions`; an outer context's are suspended.

    An empty list leaves every output bit-identical. Raises ValueError for an intervention that the model does not allow.
    A generator must not yield inside it, or its caller would run under the interventions too.
    """
    with biased_experts(model, router_biases(model, interventions)):
        yield


def router_biases(model, interventions: Iterable[Intervention]) -> dict[int, torch.Tensor]:
    """The interventions as biases on the ranking of experts, {layer: (experts,)}: -inf for off, inf for force, the strength to
    promote and its negative to suppress, else 0.

    Raises ValueError for an intervention that the model does not allow.
    """
    layers, biases = moe_layers(model), {}
    ranked = [index for index, layer in layers.items() if layer.ranks]
    for change in interventions:
        if not layers:
            raise ValueError(f"expert is {change.expert!r:.40}; {why_no_experts(model)}")
        if change.action not in list(ACTIONS):  # which allows what cannot be hashed
            raise ValueError(f"action is {change.action!r:.40}; it must be one of {', '.join(ACTIONS)}.")
        _check_strength(change)
        if change.layer is not None and change.layer not in ranked:
            allowed = "one with experts" + ("" if len(ranked) == len(layers) else " that are ranked")
            raise ValueError(f"layer is {change.layer}; it must be {allowed}: {', '.join(map(str, ranked))}.")
        for index in ranked if change.layer is None else [change.layer]:
            layer = layers[index]
            if change.expert not in range(layer.num_experts):
                raise ValueError(f"expert is {change.expert}; it must be from 0 to {layer.num_experts - 1}.")
            bias_E = biases.setdefault(index, torch.zeros(layer.num_experts))
            bias = torch.tensor(ACTIONS[change.action] * change.strength)
            if bias_E[change.expert] not in (0, bias):
                done = f"{_done(bias_E[change.expert])} and {_done(bias)} at once"
                raise ValueError(f"expert {change.expert} is {done}; it must be one of them.")
            bias_E[change.expert] = bias
            num_off, num_forced = (int((bias_E == ACTIONS[action]).sum()) for action in ("off", "force"))
            max_off = layer.num_experts - layer.top_k
            if num_off > max_off or num_forced > layer.top_k:
                raise ValueError(
                    f"layer {index} has {num_off} experts off and {num_forced} forced; "
                    f"it must be at most {max_off} and {layer.top_k}."
                )
    return biases


def _check_strength(change: Intervention) -> None:
    strength, steers = change.strength, abs(ACTIONS[change.action]) == 1
    is_number = isinstance(strength, (int, float)) and not isinstance(strength, bool)
    if not is_number or not 0 < strength <= 1 or not steers and strength != 1:
        rule = "a number above 0, at most 1" if steers else f"1, as {change.action} has no other"
        raise ValueError(f"strength is {strength!r:.40}; it must be {rule}.")


def _done(bias) -> str:
    """The words for what a bias does."""
    action = next(name for name, value in ACTIONS.items() if (bias == value if abs(value) > 1 else bias * value > 0))
    return DONE[action] + ("" if abs(bias) >= 1 else f" by {abs(bias):.3g}")
