"""TokenTrace: one generated token with everything the model and the samplers did to it.

Shape letters: V vocabulary, N candidates.
"""

from dataclasses import asdict, dataclass

import numpy as np

from deepseek.kernels.sampling import lookup_probs, softmax_entropy, top_k_indices

NUM_CANDIDATES = 10  # recorded candidates: the 10 most likely before the samplers and the 10 most likely after them


@dataclass
class Candidate:
    """A token that could have been sampled, with its probability after each sampler; 0 once removed."""

    id: int
    text: str
    probabilities: list[float]  # under the model, then after each sampler
    removed_by: str | None  # the sampler that removed it


@dataclass
class Stage:
    """What one sampler did: whether the settings enable it, whether it changed the logits, how many candidates it left."""

    name: str
    active: bool
    changed: bool
    num_candidates: int


@dataclass
class TokenTrace:
    """One generated token. The texts of a stream's tokens join to the generated text."""

    id: int
    text: str
    position: int  # in the sequence of prompt and output, from 0
    probability: float  # under the model
    sampler_probability: float  # after all samplers: the probability it was sampled with
    rank: int  # under the model; 1 is the most likely
    entropy: float  # of the model's distribution, nats
    temperature: float  # the temperature used; 0 is greedy
    stages: list[Stage]
    candidates: list[Candidate]  # most likely first: after all samplers, then under the model; empty without `record`
    experts: dict[int, list[tuple[int, float]]]  # MoE layer: (expert, weight) of this token, largest weight first
    milliseconds: float
    finish_reason: str | None = None  # last token: "stop", "length" (max_new_tokens) or "context" (context full)
    stop_string: str | None = None  # the stop string this token completed; None if "stop" is the end-of-text token
    temperature_entropy: float | None = None  # of the candidates that set a dynamic temperature, nats

    @property
    def ended_by(self) -> str | None:
        """The finish reason in words; None before the last token."""
        if self.stop_string is not None:
            return "stop string"
        return {"stop": "end of text", "context": "context full"}.get(self.finish_reason, self.finish_reason)

    def as_dict(self) -> dict:
        """The trace with JSON's types: the layers of `experts` become strings."""
        return {**asdict(self), "experts": {str(layer): experts for layer, experts in self.experts.items()}}


def record_samplers(logits_V, probs_V, steps, token: int, token_text) -> tuple[list[Stage], list[Candidate]]:
    """The stages and candidates of a token from the steps of `apply_samplers`; `probs_V` is the softmax of `logits_V`."""
    *_, ids_N, logits_N = steps[-1]
    sampled, likely = _top_indices(logits_N, NUM_CANDIDATES), _top_indices(logits_V, NUM_CANDIDATES)
    ids = np.array(list(dict.fromkeys([*ids_N[sampled].tolist(), token, *likely.tolist()])))
    stages, previous_N, probs = [], logits_V, probs_V[ids]
    columns, removed_by = [probs], [None] * len(ids)
    for name, active, ids_N, logits_N in steps:
        changed = active and not np.array_equal(previous_N, logits_N)
        if changed:
            probs, present = lookup_probs(ids_N, softmax_entropy(logits_N)[0], ids)
            removed_by = [sampler or (None if left else name) for sampler, left in zip(removed_by, present)]
            previous_N = logits_N
        columns.append(probs)
        stages.append(Stage(name, active, changed, len(ids_N)))
    rows = np.stack(columns, 1).tolist()
    candidates = [Candidate(i, token_text(i), row, sampler) for i, row, sampler in zip(ids.tolist(), rows, removed_by)]
    candidates.sort(key=lambda c: (-c.probabilities[-1], -c.probabilities[0]))
    return stages, candidates


def _top_indices(logits_N, count: int):
    """The indices of the `count` highest logits, or of all if there are fewer; highest first."""
    indices = top_k_indices(logits_N, count)
    return indices[np.argsort(-logits_N[indices], kind="stable")[:count]]
