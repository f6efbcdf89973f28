"""What experts specialize in, beside chance: tokens, kinds of text, one another, and the token before.

The definitions are those of OLMoE (Muennighoff et al. 2024, arXiv 2409.02060, section 5) and, for repetition, of Mixtral (Jiang
et al. 2024, arXiv 2401.04088, section 5). Shape letters: T tokens, K experts per token, E experts, N kinds of text, U different
labels.
"""

import math
from collections import Counter
from typing import NamedTuple

import torch

from deepseek.interpret.chance import Comparison, compare, exchanged, permuted
from deepseek.interpret.corpus import Corpus, RoutedLayer


class TokenShare(NamedTuple):
    """A token that an expert processes: how often, and of how many occurrences in the corpus."""

    token: int
    times: int
    total: int


class Pair(NamedTuple):
    """Two experts: the share of the first one's tokens that the second one gets too, what chance gives, and how far that is."""

    expert: int
    partner: int
    share: float
    chance: float
    deviations: float


def _counts(indices_TK, num_experts: int, label_T, num_labels: int) -> torch.Tensor:
    """(labels, E): how many tokens of each label were routed to each expert."""
    cells = label_T[:, None] * num_experts + indices_TK
    return cells.flatten().bincount(minlength=num_labels * num_experts).view(num_labels, num_experts).float()


def _with_mean(values_E) -> torch.Tensor:
    """(E + 1,): the mean over the experts that were chosen at all, then the experts."""
    return torch.cat([values_E.nanmean()[None], values_E])


def vocabulary_specialization(layer: RoutedLayer, ids_T: torch.Tensor) -> Comparison:
    """(E + 1,): how much of a token's occurrences its expert gets; the mean over the experts, then each expert.

    OLMoE defines the vocabulary specialization of expert i in token x as N_xi / N_x, the share of the occurrences of x that are
    routed to i. Here it is averaged over the tokens that i processes, as often as it does. `ids_T` are the input tokens or
    those that the model predicts. NaN for an expert that was never chosen.
    """
    labels, label_T = ids_T.unique(return_inverse=True)
    total_U = label_T.bincount().float()

    def figure(indices_TK):
        counts_UE = _counts(indices_TK, layer.num_experts, label_T, len(labels))
        return _with_mean((counts_UE**2 / total_U[:, None]).sum(0) / counts_UE.sum(0))

    return compare(figure, layer.indices, permuted(layer.indices))


def expert_tokens(layer: RoutedLayer, ids_T: torch.Tensor, top: int = 8) -> list[list[TokenShare]]:
    """For each expert the `top` tokens that it gets most more often than its load predicts."""
    labels, label_T = ids_T.unique(return_inverse=True)
    total_U = label_T.bincount()
    counts_UE = _counts(layer.indices, layer.num_experts, label_T, len(labels))
    excess_UE = counts_UE - total_U[:, None] * counts_UE.sum(0) / len(ids_T)
    tokens = []
    for expert in range(layer.num_experts):
        order = excess_UE[:, expert].topk(min(top, len(labels))).indices
        order = order[excess_UE[order, expert] > 0].tolist()
        tokens.append([TokenShare(int(labels[u]), int(counts_UE[u, expert]), int(total_U[u])) for u in order])
    return tokens


def domain_shares(layer: RoutedLayer, kind_T: torch.Tensor, num_kinds: int) -> Comparison:
    """(N, E): domain specialization, the share of each kind's tokens that are routed to each expert: N_ki / N_k in OLMoE."""

    def figure(indices_TK):
        counts_NE = _counts(indices_TK, layer.num_experts, kind_T, num_kinds)
        return counts_NE / kind_T.bincount(minlength=num_kinds)[:, None]

    return compare(figure, layer.indices, permuted(layer.indices))


def domain_specialization(layer: RoutedLayer, kind_T: torch.Tensor, num_kinds: int) -> Comparison:
    """(N,): the share of each kind's assignments that would have to go to other experts for it to be routed as the corpus is.

    It is the total variation distance of the kind's expert load and that of all kinds: 0 to 1.
    """

    def figure(indices_TK):
        counts_NE = _counts(indices_TK, layer.num_experts, kind_T, num_kinds)
        load_NE = counts_NE / counts_NE.sum(1, keepdim=True)
        return (load_NE - counts_NE.sum(0) / counts_NE.sum()).abs().sum(1) / 2

    return compare(figure, layer.indices, permuted(layer.indices))


def _chosen(indices_TK, num_experts: int) -> torch.Tensor:
    return torch.zeros(len(indices_TK), num_experts).scatter_(1, indices_TK, 1)


def co_activation(layer: RoutedLayer) -> Comparison:
    """(E, E): the share of expert i's tokens that run expert j too, N_ij / N_i in OLMoE; NaN for i = j and for idle experts.

    In chance's routings tokens swap experts one by one; swapped together, they would meet as before.
    """

    def figure(indices_TK):
        chosen_TE = _chosen(indices_TK, layer.num_experts)
        return ((chosen_TE.T @ chosen_TE) / chosen_TE.sum(0)[:, None]).fill_diagonal_(torch.nan)

    return compare(figure, layer.indices, exchanged(layer.indices))


def cross_activation(layer: RoutedLayer, next_layer: RoutedLayer) -> Comparison:
    """(E, E of `next_layer`): the share of the tokens of expert i of a layer that run expert j of another; NaN if i is idle."""
    next_TE = _chosen(next_layer.indices, next_layer.num_experts)

    def figure(indices_TK):
        chosen_TE = _chosen(indices_TK, layer.num_experts)
        return (chosen_TE.T @ next_TE) / chosen_TE.sum(0)[:, None]

    return compare(figure, layer.indices, permuted(layer.indices))


def favourite_partner(layer: RoutedLayer, next_layer: RoutedLayer | None = None) -> Comparison:
    """(E + 1,): the share of an expert's tokens that its favourite partner gets too; the mean over the experts, then each.

    The partner is another expert of the layer, or one of `next_layer`. NaN for an expert that was never chosen, and within a
    layer that runs one expert per token.
    """
    partner_TE = None if next_layer is None else _chosen(next_layer.indices, next_layer.num_experts)

    def figure(indices_TK):
        chosen_TE = _chosen(indices_TK, layer.num_experts)
        together = chosen_TE.T @ (chosen_TE if partner_TE is None else partner_TE)
        if partner_TE is None:
            together.fill_diagonal_(0 if layer.indices.shape[1] > 1 else torch.nan)
        return _with_mean(together.max(1).values / chosen_TE.sum(0))

    return compare(figure, layer.indices, (exchanged if next_layer is None else permuted)(layer.indices))


def strongest_pairs(shares: Comparison, top: int = 50) -> list[Pair]:
    """The pairs of experts furthest above chance, of `co_activation` or `cross_activation`; none that is not better."""
    deviations = shares.deviations.nan_to_num(0, posinf=1e9).where(shares.side > 0, 0)
    order = deviations.flatten().topk(min(top, deviations.numel())).indices.tolist()
    width = deviations.shape[1]
    cells = [divmod(cell, width) for cell in order]
    return [
        Pair(i, j, *(float(values[i, j]) for values in (shares.observed, shares.chance, shares.deviations)))
        for i, j in cells
        if deviations[i, j] > 0
    ]


def repetition(layer: RoutedLayer, follows_T: torch.Tensor) -> Comparison:
    """(2,): how often a token goes to an expert of the token before it: [its first choice is the same, any of its K is].

    `follows_T` says which tokens follow the one before them. NaN if none does.
    """

    def figure(indices_TK):
        before, after = indices_TK[:-1][follows_T[1:]], indices_TK[1:][follows_T[1:]]
        any_same = (before[:, :, None] == after[:, None]).flatten(1).any(1)
        return torch.stack([(before[:, 0] == after[:, 0]).float().mean(), any_same.float().mean()])

    return compare(figure, layer.indices, permuted(layer.indices))


def repetition_by_kind(layer: RoutedLayer, corpus: Corpus) -> Comparison:
    """(N, 2): `repetition` within each kind of text; chance swaps experts within the kind, so that kinds do not count."""
    parts = []
    for kind in range(len(corpus.kinds)):
        here_T = corpus.kind_T == kind
        parts.append(repetition(layer._replace(indices=layer.indices[here_T]), corpus.follows_T[here_T]))
    return Comparison(*(torch.stack([getattr(part, f) for part in parts]) for f in ("observed", "chance", "spread")))


def uniform_repetition(num_experts: int, top_k: int) -> tuple[float, float]:
    """`repetition` under random routing with even loads, as Mixtral gives it: 1 / E, and 1 - C(E - K, K) / C(E, K)."""
    return 1 / num_experts, 1 - math.comb(num_experts - top_k, top_k) / math.comb(num_experts, top_k)


def processed_shares(layer: RoutedLayer) -> list[float]:
    """The share of all tokens that each expert processes."""
    counts = Counter(layer.indices.flatten().tolist())
    return [counts[expert] / len(layer.indices) for expert in range(layer.num_experts)]
