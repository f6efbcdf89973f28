"""What is recorded of a generated token: the candidates, and what every sampler did to them.

Shape letters: V vocabulary, N candidates, M recorded ids.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

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
    ranks: list[int] = field(default_factory=list)  # likewise, 1 is the most likely; 0 once removed; only if asked for


@dataclass
class Stage:
    """What one sampler did: whether the settings enable it, whether it changed the logits, how many candidates it left."""

    name: str
    active: bool
    changed: bool
    num_candidates: int
    moved: float = 0.0  # the probability that it took from some tokens and gave to others: total variation distance
    details: dict[str, float] = field(default_factory=dict)  # what the sampler reports, such as mirostat's mu


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
    experts: dict[int, list[tuple[int, float]]] = field(default_factory=dict)  # MoE layer: (expert, weight), by weight
    milliseconds: float = 0.0
    finish_reason: str | None = None  # last token: "stop", "length" (max_new_tokens) or "context" (context full)
    stop_string: str | None = None  # the stop string this token completed; None if "stop" is the end-of-text token
    temperature_entropy: float | None = None  # of the candidates that set a dynamic temperature, nats

    @property
    def ended_by(self) -> str | None:
        """The finish reason in words; None before the last token."""
        if self.stop_string is not None:
            return "stop string"
        return {"stop": "end of text", "context": "context full"}.get(self.finish_reason, self.finish_reason)

    @property
    def decided_by(self) -> str:
        """What gave the token most of the probability it was sampled with: "model", or the sampler that added more.

        "forced" for a token that the samplers had removed.
        """
        own = next((c.probabilities for c in self.candidates if c.id == self.id), [self.probability])
        if self.sampler_probability == 0:
            return "forced"
        gains = [after - before for before, after in zip(own, own[1:])]
        best = max(range(len(gains)), key=gains.__getitem__, default=0)
        return self.stages[best].name if gains and gains[best] > own[0] else "model"

    def as_dict(self) -> dict:
        """The trace with JSON's types: the layers of `experts` become strings."""
        return {**asdict(self), "experts": {str(layer): experts for layer, experts in self.experts.items()}}


def record_samplers(
    logits_V,
    probs_V,
    steps: list[tuple],
    details: dict[str, dict[str, float]],
    token: int,
    probe: Sequence[int],
    token_text: Callable[[int], str],
) -> tuple[list[Stage], list[Candidate]]:
    """The stages and candidates of a token, from the model's logits and probabilities and the steps of `apply_samplers`.

    `probe` are ids to record with their ranks, whatever their probability.
    """
    *_, ids_N, logits_N = steps[-1]
    sampled, likely = _top_candidates(logits_N), _top_candidates(logits_V)
    ids_M = np.array(list(dict.fromkeys([*ids_N[sampled].tolist(), token, *probe, *likely.tolist()])))
    ids_N, logits_N, probs_M = np.arange(len(logits_V)) if probe else None, logits_V, probs_V[ids_M]
    stages, columns, removed_by = [], [probs_M], [None] * len(ids_M)
    ranks = [_ranks(ids_N, logits_N, probe)]
    for name, active, new_ids, new_logits in steps:
        changed, moved = active and not np.array_equal(logits_N, new_logits), 0.0
        if changed:
            ids_N, logits_N = new_ids, new_logits
            probs_N, _ = softmax_entropy(logits_N)
            if len(ids_N) < len(probs_V):
                moved, probs_V = float(_gain(probs_N, probs_V[ids_N])), np.zeros_like(probs_V)
                probs_V[ids_N] = probs_N
            else:
                moved, probs_V = float(_gain(probs_N, probs_V)), probs_N
            probs_M, is_left_M = lookup_probs(ids_N, probs_N, ids_M)
            removed_by = [sampler or (None if left else name) for sampler, left in zip(removed_by, is_left_M)]
        columns.append(probs_M)
        ranks.append(_ranks(ids_N, logits_N, probe) if changed else ranks[-1])
        stages.append(Stage(name, active, changed, len(new_ids), moved, details.get(name, {}) if active else {}))
    rows = zip(ids_M.tolist(), np.stack(columns, 1).tolist(), removed_by)
    ranks_of = dict(zip(probe, map(list, zip(*ranks))))
    candidates = [Candidate(i, token_text(i), row, sampler, ranks_of.get(i, [])) for i, row, sampler in rows]
    candidates.sort(key=lambda c: (-c.probabilities[-1], -c.probabilities[0]))
    return stages, candidates


def _gain(after_N, before_N):
    """The probability that those candidates gained that did: what is moved, for the others lost as much."""
    gain_N = after_N - before_N
    return np.maximum(gain_N, 0, out=gain_N).sum()


def _ranks(ids_N, logits_N, probe: Sequence[int]) -> list[int]:
    """The rank of each id of `probe` among the candidates, 0 for one that is none."""
    logits, is_candidate = lookup_probs(ids_N, logits_N, np.array(probe, np.int64)) if probe else ((), ())
    return [int((logits_N > logit).sum()) + 1 if left else 0 for logit, left in zip(logits, is_candidate)]


def _top_candidates(logits_N):
    """The indices of the NUM_CANDIDATES highest logits, or of all if there are fewer; highest first."""
    indices = top_k_indices(logits_N, NUM_CANDIDATES)
    return indices[np.argsort(-logits_N[indices], kind="stable")[:NUM_CANDIDATES]]
