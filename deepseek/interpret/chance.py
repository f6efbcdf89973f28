"""What chance would give. Every figure about experts stands beside routings without meaning, and one rule says what is better.

A figure is a function of a layer's routing (T tokens, K experts each); here it is computed again on routings in which the
tokens have swapped their experts, so that every expert's load stays and only who gets which token is random.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

NUM_PERMUTATIONS = 100
SIGNIFICANT = 3.0  # standard deviations from chance; beyond them a figure counts as different from it
SWEEPS = 4  # rounds of exchanges between two routings of `exchanged`; four times as many before the first
CHANCE = (
    f"Chance is measured: the figure again on {NUM_PERMUTATIONS} routings in which tokens have swapped their experts at "
    "random, so that every expert keeps its load. What is within "
    f"{SIGNIFICANT:g} standard deviations of their mean is no better than chance; of a thousand figures without meaning about "
    "four lie beyond."
)


@dataclass
class Comparison:
    """A figure beside chance: three tensors of one shape, float32. NaN where there is nothing to measure."""

    observed: torch.Tensor
    chance: torch.Tensor  # mean over the permutations
    spread: torch.Tensor  # their standard deviation

    @property
    def deviations(self) -> torch.Tensor:
        """How many standard deviations of chance the figure is away from chance; infinite where chance never varies."""
        gap = self.observed - self.chance
        return torch.where(gap.abs() < 1e-5, 0 * gap, gap / self.spread)

    @property
    def side(self) -> torch.Tensor:
        """1 where the figure is above chance by more than SIGNIFICANT, -1 where it is below, 0 where no better than chance."""
        return (self.deviations > SIGNIFICANT).int() - (self.deviations < -SIGNIFICANT).int()

    def __getitem__(self, index) -> "Comparison":
        return Comparison(self.observed[index], self.chance[index], self.spread[index])


def stack(comparisons: Sequence[Comparison]) -> Comparison:
    """Comparisons of one shape along a new first dimension, such as the layers."""
    columns = zip(*((each.observed, each.chance, each.spread) for each in comparisons))
    return Comparison(*map(torch.stack, columns))


def compare(figure: Callable[[torch.Tensor], torch.Tensor], indices_TK, chance: Iterable[torch.Tensor]) -> Comparison:
    """`figure(indices_TK)` beside the mean and the standard deviation of `figure` over the routings in `chance`."""
    observed = figure(indices_TK).double()
    count, total, squares = 0, torch.zeros_like(observed), torch.zeros_like(observed)
    for routing_TK in chance:
        gap = figure(routing_TK).double() - observed  # the differences are small where sums of squares would round
        count, total, squares = count + 1, total + gap, squares + gap**2
    variance = (squares - total**2 / count) / max(1, count - 1)
    return Comparison(observed.float(), (observed + total / count).float(), variance.clamp_min(0).sqrt().float())


def permuted(indices_TK: torch.Tensor) -> Iterator[torch.Tensor]:
    """NUM_PERMUTATIONS routings, from a fixed seed, in which the tokens have swapped all their experts with one another."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(NUM_PERMUTATIONS):
        yield indices_TK[torch.randperm(len(indices_TK), generator=generator)]


def exchanged(indices_TK: torch.Tensor) -> Iterator[torch.Tensor]:
    """NUM_PERMUTATIONS routings, from a fixed seed, in which pairs of tokens have swapped experts one by one.

    Each expert keeps its load and each token K different experts, in no order; which of them meet is random. These are the
    trades of the curveball algorithm (Strona et al. 2014, "A fast and unbiased procedure to randomize ecological binary
    matrices with fixed row and column totals").
    """
    generator = torch.Generator().manual_seed(0)
    current_TK = indices_TK.clone()
    for number in range(NUM_PERMUTATIONS):
        for _ in range(SWEEPS if number else 4 * SWEEPS):
            current_TK = _trade(current_TK, generator)
        yield current_TK


def _trade(indices_TK, generator):
    """Deals the experts that only one token of a pair has at random among the two, for random pairs of tokens."""
    num_pairs, top_k = len(indices_TK) // 2, indices_TK.shape[1]
    first, second = torch.randperm(len(indices_TK), generator=generator)[: 2 * num_pairs].view(2, -1)
    a_PK, b_PK = indices_TK[first], indices_TK[second]
    both_PKK = a_PK[:, :, None] == b_PK[:, None]
    keys = torch.rand(num_pairs, 2 * top_k, generator=generator)
    keys[:, :top_k][both_PKK.any(2)] = -1  # what both have stays, at either end
    keys[:, top_k:][both_PKK.any(1)] = 2
    dealt = torch.cat([a_PK, b_PK], 1).gather(1, keys.argsort(1))
    traded_TK = indices_TK.clone()
    traded_TK[first], traded_TK[second] = dealt[:, :top_k], dealt[:, top_k:]
    return traded_TK


def verdict(comparison: Comparison, places: str = "layers") -> str:
    """One line on a Comparison of several `places`, such as "above chance in 4 of 5 layers" or "no better than chance"."""
    side, total = comparison.side.flatten(), int((~comparison.observed.isnan()).sum())
    parts = [
        f"{name} chance in {count} of {total} {places}"
        for name, sign in (("above", 1), ("below", -1))
        if (count := int((side == sign).sum()))
    ]
    return " and ".join(parts) or "no better than chance"
