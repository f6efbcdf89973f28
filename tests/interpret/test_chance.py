"""Chance: what its routings keep and what they mix, its mean and spread, and the one rule of what is better."""

import statistics

import pytest
import torch

from deepseek.interpret import chance
from deepseek.interpret.chance import Comparison, compare, exchanged, permuted, stack, verdict


def random_routing(tokens=120, experts=8, top_k=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(tokens, experts, generator=generator).topk(top_k).indices


def test_a_figure_stands_beside_mean_and_spread_of_the_permutations():
    indices = random_routing()

    def figure(indices_TK):
        return torch.stack([(indices_TK[::2, 0] == 3).float().mean(), (indices_TK[:60] == 1).float().sum()])

    found = compare(figure, indices, permuted(indices))
    for place in range(2):
        values = [float(figure(routing)[place]) for routing in permuted(indices)]
        assert len(values) == chance.NUM_PERMUTATIONS and float(found.observed[place]) == float(figure(indices)[place])
        assert float(found.chance[place]) == pytest.approx(statistics.fmean(values), abs=1e-5)
        assert float(found.spread[place]) == pytest.approx(statistics.stdev(values), abs=1e-5)


def test_permuted_tokens_keep_their_rows_and_exchanged_ones_their_number_and_every_load():
    indices = random_routing(top_k=3)
    rows = sorted(indices.tolist())
    routings = list(permuted(indices))
    assert (
        all(sorted(routing.tolist()) == rows for routing in routings)
        and len({str(r.tolist()) for r in routings}) == 100
    )
    load = indices.flatten().bincount(minlength=8)
    for routing in exchanged(indices):
        assert all(len(set(row)) == 3 for row in routing.tolist())
        assert torch.equal(routing.flatten().bincount(minlength=8), load) and sorted(routing.tolist()) != rows


def test_exchanged_experts_meet_as_often_as_their_loads_say():
    """0 and 1 always together, 2 and 3 too: by chance an expert meets each of the three others equally often."""
    indices = torch.tensor([[0, 1], [2, 3]] * 150)

    def together(indices_TK):
        return ((indices_TK == 0).any(1) & (indices_TK == 1).any(1)).float().sum() / 150

    found = compare(together, indices, exchanged(indices))
    assert float(found.observed) == 1 and float(found.chance) == pytest.approx(1 / 3, abs=0.02)
    assert float(found.spread) == pytest.approx(0.04, abs=0.015)  # of a table with fixed margins, by simulation
    assert verdict(found, "layers") == "above chance in 1 of 1 layers"


def test_beyond_three_standard_deviations_is_better_or_worse():
    values = torch.tensor([0.16, 0.14, -0.06, 0.0, torch.nan, 0.5])
    found = Comparison(
        values, torch.tensor([0.0, 0, 0, 0, torch.nan, 0.1]), torch.tensor([0.05, 0.05, 0.01, 0, torch.nan, 0])
    )
    assert found.side.tolist() == [1, 0, -1, 0, 0, 1]
    assert found.deviations[0] == pytest.approx(3.2, abs=1e-4) and found.deviations[5] == torch.inf
    assert verdict(found) == "above chance in 2 of 5 layers and below chance in 1 of 5 layers"
    assert verdict(found[1:2]) == "no better than chance" == verdict(found[3:5])
    assert stack([found[0], found[1]]).observed.tolist() == pytest.approx([0.16, 0.14])


def test_what_is_random_is_hardly_ever_better():
    labels = torch.arange(120) % 2
    sides = []
    for seed in range(100):
        indices = random_routing(seed=seed)
        sides.append(int(compare(lambda i: (i[labels == 0] == 2).float().mean(), indices, permuted(indices)).side))
    assert sum(side != 0 for side in sides) <= 2
