"""Where routing lies in the space of hidden states: do similar ones go to the same experts?

Everything is computed from the dot products of the states that a router read. Shape letters: S sampled tokens, K experts per
token.
"""

from typing import NamedTuple

import torch

from deepseek.interpret.chance import Comparison, compare, permuted


class SimilarityBin(NamedTuple):
    """Pairs of tokens with about the same cosine similarity, and the share of experts that they have in common."""

    similarity: float  # mean over the pairs
    overlap: float  # mean
    spread: float  # standard deviation of the overlap over the pairs
    pairs: int


class Map(NamedTuple):
    """The first two principal components of the hidden states."""

    points: torch.Tensor  # (S, 2) float32
    explained: tuple[float, float]  # share of the variance along each


def cosine_similarity(dots_SS: torch.Tensor) -> torch.Tensor:
    """(S, S) float32, -1 to 1, from dot products."""
    norm_S = dots_SS.diagonal().clamp_min(1e-30).sqrt()
    return (dots_SS / norm_S[:, None] / norm_S).clamp(-1, 1)


def routing_overlap(indices_SK: torch.Tensor) -> torch.Tensor:
    """(S, S) float32: the share of two tokens' experts that they have in common, 0 to 1."""
    same = indices_SK[:, None, :, None] == indices_SK[None, :, None, :]
    return same.any(-1).float().mean(-1)


def pairs(matrix_SS) -> torch.Tensor:
    """The entries above the diagonal of (S, S), one for each pair of tokens."""
    first, second = torch.triu_indices(*matrix_SS.shape, 1)
    return matrix_SS[first, second]


def average_ranks(values: torch.Tensor) -> torch.Tensor:
    """Ranks from 0 of a vector, float64; equal values share the mean of theirs."""
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0)
    return ((last - counts + last - 1) / 2).double()[inverse]


def _rank_matrix(matrix_SS) -> torch.Tensor:
    """(S, S): the ranks of all pairs' entries, scaled to mean 0 and norm 1; 0 on the diagonal."""
    ranks = average_ranks(pairs(matrix_SS))
    ranks = (ranks - ranks.mean()) / (ranks - ranks.mean()).norm()
    ranks_SS = torch.zeros(matrix_SS.shape, dtype=torch.float64)
    first, second = torch.triu_indices(*matrix_SS.shape, 1)
    ranks_SS[first, second] = ranks_SS[second, first] = ranks
    return ranks_SS


def rank_correlation(similarity_SS: torch.Tensor, indices_SK: torch.Tensor) -> Comparison:
    """Spearman's rank correlation, over all pairs of tokens, of hidden-state similarity and routing overlap; beside chance.

    Pairs that share a token are not independent, so chance swaps tokens and not pairs: the test of Mantel (1967, "The detection
    of disease clustering and a generalized regression approach"). NaN if all similarities or all overlaps are equal.
    """
    similarity, overlap = _rank_matrix(similarity_SS), _rank_matrix(routing_overlap(indices_SK))

    def figure(order_S1):
        order_S = order_S1[:, 0]
        return (similarity * overlap[order_S][:, order_S]).sum() / 2  # every pair stands there twice

    own_S1 = torch.arange(len(indices_SK))[:, None]
    return compare(figure, own_S1, permuted(own_S1))


def neighbour_agreement(similarity_SS: torch.Tensor, indices_SK: torch.Tensor) -> Comparison:
    """The share of tokens whose most similar other token has the same first expert; beside chance."""
    nearest_S = similarity_SS.clone().fill_diagonal_(-torch.inf).argmax(1)

    def figure(indices_SK):
        return (indices_SK[:, 0] == indices_SK[nearest_S, 0]).float().mean()

    return compare(figure, indices_SK, permuted(indices_SK))


def overlap_by_similarity(similarity_SS: torch.Tensor, indices_SK: torch.Tensor, bins: int = 20) -> list[SimilarityBin]:
    """The routing overlap of pairs of tokens, in `bins` of equally many pairs from the least to the most similar."""
    similarity, overlap = pairs(similarity_SS), pairs(routing_overlap(indices_SK))
    order = similarity.argsort(stable=True)
    parts = [part for part in order.tensor_split(bins) if len(part)]
    return [
        SimilarityBin(
            float(similarity[part].mean()),
            float(overlap[part].mean()),
            float(overlap[part].std(correction=0)),
            len(part),
        )
        for part in parts
    ]


def principal_map(dots_SS: torch.Tensor) -> Map:
    """The first two principal components of the states, from their dot products (classical scaling, Torgerson 1952).

    A component's sign is arbitrary; here the largest coordinate is positive. Fewer than three tokens lie on a line or a point.
    """
    dots_SS = dots_SS.double()
    centred = dots_SS - dots_SS.mean(0) - dots_SS.mean(1, keepdim=True) + dots_SS.mean()
    values, vectors = torch.linalg.eigh((centred + centred.T) / 2)
    values = values.clamp_min(0)
    points = vectors[:, -2:].flip(1) * values[-2:].flip(0).sqrt()
    points = torch.nn.functional.pad(points, (0, 2 - points.shape[1]))
    largest = points.gather(0, points.abs().argmax(0, keepdim=True))
    explained = values.flip(0)[:2] / values.sum().clamp_min(1e-30)
    return Map((points * torch.where(largest < 0, -1, 1)).float(), tuple([*explained.tolist(), 0.0][:2]))
