"""Hidden states and routing, against loops over pairs, NumPy's SVD, and routers that follow the states or do not."""

import numpy as np
import pytest
import torch
from routed import at_random, routed

from deepseek.interpret import geometry
from deepseek.interpret.chance import verdict
from deepseek.interpret.corpus import trace_corpus

S, D = 60, 12


@pytest.fixture(scope="module")
def states():
    return torch.randn(S, D, generator=torch.Generator().manual_seed(0)) + 0.5


@pytest.fixture(scope="module")
def indices(states):
    """Two of six experts, each with a direction: close states mostly go to the same ones."""
    return (states @ torch.randn(D, 6, generator=torch.Generator().manual_seed(1))).topk(2).indices


def all_pairs():
    return [(i, j) for i in range(S) for j in range(i + 1, S)]


def ranks_of(values):
    """Average ranks by counting, for Spearman's correlation."""
    return np.array([sum(v < value for v in values) + (sum(v == value for v in values) - 1) / 2 for value in values])


def test_similarity_overlap_and_their_rank_correlation_against_loops(states, indices):
    similarity, overlap = geometry.cosine_similarity(states @ states.T), geometry.routing_overlap(indices)
    near, shared = [], []
    for i, j in all_pairs():
        near.append(float(torch.nn.functional.cosine_similarity(states[i], states[j], dim=0)))
        shared.append(len({*indices[i].tolist()} & {*indices[j].tolist()}) / 2)
        assert float(similarity[i, j]) == pytest.approx(near[-1], abs=1e-5) and float(overlap[i, j]) == shared[-1]
    found = geometry.rank_correlation(similarity, indices)
    expected = np.corrcoef(ranks_of(near), ranks_of(shared))[0, 1]
    assert float(found.observed) == pytest.approx(expected, abs=1e-5) and expected > 0.2
    assert verdict(found[None]) == "above chance in 1 of 1 layers" and abs(float(found.chance)) < 0.02
    assert geometry.average_ranks(torch.tensor(shared)).tolist() == ranks_of(shared).tolist()


def test_nearest_neighbours_against_loops(states, indices):
    similarity = geometry.cosine_similarity(states @ states.T)
    agree = 0
    for i in range(S):
        nearest = max((j for j in range(S) if j != i), key=lambda j: float(similarity[i, j]))
        agree += int(indices[i, 0] == indices[nearest, 0])
    found = geometry.neighbour_agreement(similarity, indices)
    assert float(found.observed) == pytest.approx(agree / S)
    load = indices[:, 0].bincount(minlength=6) / S
    assert float(found.chance) == pytest.approx(float((load**2).sum()), abs=0.03), "two tokens at random"


def test_bins_hold_equally_many_pairs_from_least_to_most_similar(states, indices):
    similarity = geometry.cosine_similarity(states @ states.T)
    bins = geometry.overlap_by_similarity(similarity, indices, 10)
    rows = sorted((float(similarity[i, j]), float(geometry.routing_overlap(indices)[i, j])) for i, j in all_pairs())
    assert [each.pairs for each in bins] == [177] * 10
    for number, each in enumerate(bins):
        part = np.array(rows[177 * number : 177 * (number + 1)])
        assert (each.similarity, each.overlap) == pytest.approx(part.mean(0), abs=1e-5)
        assert each.spread == pytest.approx(part[:, 1].std(), abs=1e-5)


def test_the_map_is_the_principal_components(states):
    found = geometry.principal_map(states @ states.T)
    centred = states.numpy() - states.numpy().mean(0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    for axis in range(2):
        expected = u[:, axis] * s[axis]
        expected *= np.sign(expected[np.abs(expected).argmax()])
        assert found.points[:, axis].numpy() == pytest.approx(expected, abs=1e-3)
    assert found.explained == pytest.approx(s[:2] ** 2 / (s**2).sum(), abs=1e-5)
    for few in (1, 2):
        assert geometry.principal_map(torch.eye(few)).points.shape == (few, 2)


def test_equal_routing_has_no_correlation(states):
    found = geometry.rank_correlation(
        geometry.cosine_similarity(states @ states.T), torch.zeros(S, 1, dtype=torch.int64)
    )
    assert found.observed.isnan() and verdict(found[None]) == "no better than chance"


def test_a_router_that_does_not_look_at_the_states_is_no_better_than_chance(model, tokenizer):
    with routed(model, at_random()):
        corpus = trace_corpus(model, tokenizer, {"a": "Once upon a time a fox ran over the hill to see 25 dogs. " * 5})
    for dots, layer in zip(corpus.dots, corpus.routing):
        sampled = geometry.cosine_similarity(dots), layer.indices[corpus.sample_S]
        for measure in (geometry.rank_correlation, geometry.neighbour_agreement):
            assert verdict(measure(*sampled)[None]) == "no better than chance"
