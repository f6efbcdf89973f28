"""How the routers of a run changed: what fixed tokens chose at every checkpoint, and the figures of papers computed from it.

Each figure has its control: what chance alone would give with the same load on every expert. Shape letters: N checkpoints,
L layers with experts, T tokens, K experts per token, E experts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

NUM_SHUFFLES = 4  # random assignments whose mean is the control
CURVES = {  # heading by name in `router_curves`
    "saturation_top_1": "router saturation, top-1",
    "saturation_top_k": "router saturation, top-k",
    "vocabulary_specialization": "vocabulary specialization",
    "co_activation": "co-activation",
    "max_violation": "MaxVio",
    "bias_spread": "balancing bias, largest - smallest",
}


class LayerRouting(NamedTuple):
    """What is known of a layer's routing without its weights and scores: see `interpret.trace.Routing`."""

    num_experts: int
    indices: Any  # torch.Tensor, (T, K) int64, the largest weight first


@dataclass(eq=False)
class RouterRecord:
    """The routing of fixed tokens at one checkpoint."""

    step: int
    tokens: list[str]
    layers: list[int]
    num_experts: int
    indices: np.ndarray  # (L, T, K) int64, the largest weight first
    bias: np.ndarray | None  # (L, E), the balancing bias; None in a file of an earlier version

    @classmethod
    def parse(cls, step: int, values: dict) -> "RouterRecord":
        """The record in a line of metrics.jsonl: its "routing", or the "probe" of an earlier version."""
        indices = np.array(values["indices"])
        num_experts = values["experts"] if "experts" in values else indices.max() + 1
        bias = np.array(values["bias"]) if "bias" in values else None
        return cls(step, values["tokens"], values["layers"], num_experts, indices, bias)

    @cached_property
    def counts(self) -> np.ndarray:
        """How many tokens each expert got, (L, E)."""
        return np.stack([np.bincount(layer.ravel(), minlength=self.num_experts) for layer in self.indices])

    @property
    def load(self) -> np.ndarray:
        """Each expert's fraction of the assignments, (L, E)."""
        return self.counts / self.counts.sum(1, keepdims=True)

    @property
    def max_violation(self) -> np.ndarray:
        """MaxVio of each layer, (L,): `load_balancing.max_violation` of `counts`."""
        return self.load.max(1) * self.num_experts - 1

    @property
    def bias_spread(self) -> np.ndarray:
        """The largest balancing bias of each layer less the smallest, (L,); NaN where it was not recorded."""
        return np.full(len(self.layers), np.nan) if self.bias is None else np.ptp(self.bias, axis=1)

    def layer_routing(self) -> list[LayerRouting]:
        """Each layer's choices, as the functions of `interpret.routing_stats` read them."""
        import torch  # not earlier: a training process reads metrics.py before it has torch

        return [LayerRouting(self.num_experts, torch.from_numpy(layer_TK)) for layer_TK in self.indices]

    @cached_property
    def vocabulary(self) -> np.ndarray:
        """`vocabulary_specialization` of each layer and its control, (2, L)."""
        top_LT, shuffled = self.indices[..., 0], _generator()
        words_T = np.unique(self.tokens, return_inverse=True)[1]
        controls = [vocabulary_specialization(words_T, shuffled.permuted(top_LT, axis=1)) for _ in range(NUM_SHUFFLES)]
        return np.stack([vocabulary_specialization(words_T, top_LT), np.mean(controls, axis=0)])

    @cached_property
    def partners(self) -> np.ndarray:
        """`co_activation` of each layer and its control, (2, L)."""
        generator = _generator()
        controls = [co_activation(reassigned(self.indices, generator), self.num_experts) for _ in range(NUM_SHUFFLES)]
        return np.stack([co_activation(self.indices, self.num_experts), np.mean(controls, axis=0)])


def _generator() -> np.random.Generator:
    return np.random.default_rng(0)  # the same numbers at every look


def router_curves(records: Sequence[RouterRecord]) -> dict:
    """The curves of a run as lists: "steps", "layers", "curves" and "chance", each {name in CURVES: N rows of L values}.

    - saturation: fraction of the experts of a token that the newest checkpoint chooses too, of the first or of all K
      (OLMoE, arXiv 2409.02060, section 5.1). By chance: with the tokens of one of the two checkpoints in random order.
    - vocabulary_specialization, co_activation: see these functions. By chance: first choices in random order; `reassigned`.
    - max_violation: 0 is an even load. bias_spread: how far the balancing bias pushes experts apart.

    None stands for a value that is not known. Records of other tokens than the newest's do not compare, and are left out: a
    run may be resumed with other held-out texts.
    """
    records = [r for r in records if (r.tokens, r.layers) == (records[-1].tokens, records[-1].layers)]
    newest = records[-1] if records else None
    top_1, top_k = ([saturation(r, newest, k) for r in records] for k in (1, None))
    with_chance = {
        "saturation_top_1": top_1,
        "saturation_top_k": top_k,
        "vocabulary_specialization": [r.vocabulary for r in records],
        "co_activation": [r.partners for r in records],
    }
    curves = {name: [value for value, _ in values] for name, values in with_chance.items()}
    curves |= {name: [getattr(r, name) for r in records] for name in ("max_violation", "bias_spread")}
    return {
        "steps": [r.step for r in records],
        "layers": newest.layers if newest else [],
        "curves": {name: _as_json(values) for name, values in curves.items()},
        "chance": {name: _as_json([chance for _, chance in values]) for name, values in with_chance.items()},
    }


def _as_json(rows: list[np.ndarray]) -> list[list[float | None]]:
    return [[None if np.isnan(value) else round(value, 5) for value in row.tolist()] for row in rows]


def saturation(record: RouterRecord, final: RouterRecord, k: int | None = None) -> np.ndarray:
    """Router saturation and its control, (2, L): the fraction of each token's first `k` experts (None: all) in common.

    OLMoE (arXiv 2409.02060), section 5.1. The control is the mean over all orders of the tokens of one of the two records.
    """
    ours, theirs = record.indices[..., :k], final.indices[..., :k]
    common_L = (ours[..., None] == theirs[..., None, :]).any(-1).mean((1, 2))
    rates = [
        np.stack([np.bincount(layer.ravel(), minlength=record.num_experts) / len(layer) for layer in indices])
        for indices in (ours, theirs)
    ]
    return np.stack([common_L, (rates[0] * rates[1]).sum(1) / ours.shape[-1]])


def vocabulary_specialization(words_T: np.ndarray, top_LT: np.ndarray) -> np.ndarray:
    """How far a layer routes by vocabulary, (L,): which fraction of a word's tokens goes to the expert that most of them choose.

    Averaged over the words, which `words_T` numbers; `top_LT` are the first choices. OLMoE (arXiv 2409.02060), section 5.4,
    but for words that occur once: theirs is always 1, and they are left out. NaN without any that occurs twice.
    """
    num_words, num_experts = words_T.max() + 1, top_LT.max() + 1
    repeated_W = np.bincount(words_T) > 1
    if not repeated_W.any():
        return np.full(len(top_LT), np.nan)
    counts = [np.bincount(words_T * num_experts + top_T, minlength=num_words * num_experts) for top_T in top_LT]
    counts_LWE = np.stack(counts).reshape(len(top_LT), num_words, num_experts)[:, repeated_W]
    return (counts_LWE.max(-1) / counts_LWE.sum(-1)).mean(-1)


def co_activation(indices_LTK: np.ndarray, num_experts: int) -> np.ndarray:
    """How much experts go together, (L,): the fraction of an expert's tokens that its most frequent partner got as well.

    Averaged over the tokens of all experts. With N_ij the tokens that experts i and j share and N_i those of i, the
    co-activation of OLMoE (arXiv 2409.02060, section 5.2) is N_ij / N_i; this is the mean of its maximum over j.
    """
    chosen_LTE = np.zeros((*indices_LTK.shape[:2], num_experts), np.float32)
    np.put_along_axis(chosen_LTE, indices_LTK, 1, axis=-1)
    pairs_LEE = np.swapaxes(chosen_LTE, 1, 2) @ chosen_LTE
    counts_LE = np.einsum("lee->le", pairs_LEE).copy()
    pairs_LEE[:, range(num_experts), range(num_experts)] = 0
    return pairs_LEE.max(-1).sum(-1) / counts_LE.sum(-1)


def reassigned(indices_LTK: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The experts dealt out again at random: each keeps its load, and no token gets one twice.

    Pairs of tokens swap an expert each, many times over: the swaps of Connor and Simberloff (Ecology, 1979).
    """
    dealt = indices_LTK.copy()
    num_layers, num_tokens, k = dealt.shape
    half, layers = num_tokens // 2, np.arange(num_layers)[:, None]
    for _ in range(4 * k):
        order = generator.permuted(np.tile(np.arange(num_tokens), (num_layers, 1)), axis=1)
        a, b = order[:, :half], order[:, half : 2 * half]
        slot_a, slot_b = generator.integers(k, size=(2, num_layers, half))
        expert_a, expert_b = dealt[layers, a, slot_a], dealt[layers, b, slot_b]
        twice = (dealt[layers, a] == expert_b[..., None]).any(-1) | (dealt[layers, b] == expert_a[..., None]).any(-1)
        dealt[layers, a, slot_a] = np.where(twice, expert_a, expert_b)
        dealt[layers, b, slot_b] = np.where(twice, expert_b, expert_a)
    return dealt
