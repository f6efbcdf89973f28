"""Steering: the experts that two lists of texts use most differently, and what promoting and suppressing them does.

Definitions: SteerMoE (Fayyaz et al., 2025, arXiv 2509.09660). Shape letters: N texts, X experts of all
MoE layers, P permutations.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import log, sqrt
from statistics import fmean, stdev

import torch

from deepseek.interpret.importance import ranked_layers
from deepseek.interpret.interventions import Intervention, intervened
from deepseek.interpret.trace import Routing, Trace, trace

NUM_PERMUTATIONS = 999
SIGNIFICANT = 0.05
STEERS = ("promote", "suppress")
MAX_COUNT = 1000  # experts to steer
MIN_TEXTS = 2  # in each list, for an error
SENTENCE_END = re.compile(r"(?<=[.!?])[\"”’)]?\s+")


@dataclass
class RateDifference:
    """An expert's activation rates in two lists of texts: the fraction of a list's tokens that are routed to it."""

    layer: int
    expert: int
    rate_a: float
    rate_b: float
    error: float  # standard error of the difference, with texts as the samples: tokens of a text are not independent
    p_value: float  # share of permuted labels with an expert, any of all, that differs at least as much

    @property
    def difference(self) -> float:
        """rate_a - rate_b: SteerMoE's risk difference, from -1 to 1."""
        return self.rate_a - self.rate_b

    @property
    def is_significant(self) -> bool:
        """Whether chance explains the difference in fewer than 1 of 20 permutations, all experts taken together."""
        return self.p_value < SIGNIFICANT


@dataclass
class Effect:
    """What interventions do to a list of texts. Changes are means over its texts, with their standard errors."""

    loss: float  # mean over the texts of the loss without interventions, nats per token
    loss_change: float
    loss_error: float
    promoted_rates: tuple[float, float]  # activation rate of the promoted experts, mean over them: without and with
    suppressed_rates: tuple[float, float]


def split_texts(text: str) -> list[str]:
    """The texts of a box: its paragraphs; of one paragraph its sentences."""
    paragraphs = [part.strip() for part in text.split("\n") if part.strip()]
    return paragraphs if len(paragraphs) != 1 else [part for part in SENTENCE_END.split(paragraphs[0]) if part.strip()]


def held_out(texts: Sequence) -> tuple[list, list]:
    """(texts to find experts with, texts held out to measure the effect on): every second one is held out."""
    return list(texts[::2]), list(texts[1::2])


def rate_differences(texts_a: Sequence[list[Routing]], texts_b: Sequence[list[Routing]]) -> list[RateDifference]:
    """The experts' RateDifferences, the largest absolute difference first, of two lists of texts' routing (`Trace.routing`).

    p values are those of a permutation test: the texts' labels A and B are permuted NUM_PERMUTATIONS times, from a fixed seed,
    and an expert's difference is held against the largest of any expert (Westfall and Young's max-T, 1993), so that many
    experts do not make a chance difference count. Texts are permuted, not tokens, since a text repeats its words.

    Raises ValueError for a list of fewer than MIN_TEXTS texts.
    """
    for name, texts in (("A", texts_a), ("B", texts_b)):
        if len(texts) < MIN_TEXTS:
            raise ValueError(
                f"list {name} has {len(texts)} texts to find experts with; it must have at least {MIN_TEXTS}."
            )
    texts = [*texts_a, *texts_b]
    experts = [(layer.layer, expert) for layer in texts[0] for expert in range(layer.num_experts)]
    counts_NX = torch.stack([torch.cat([_tokens_per_expert(layer) for layer in routing]) for routing in texts]).double()
    lengths_N = torch.tensor([len(routing[0].indices) for routing in texts]).double()
    generator, is_a_N = torch.Generator().manual_seed(0), torch.arange(len(texts)) < len(texts_a)
    permuted_PN = torch.stack(
        [is_a_N[torch.randperm(len(texts), generator=generator)] for _ in range(NUM_PERMUTATIONS)]
    )
    rate_a_X, rate_b_X = (side_1X[0] for side_1X in _rates(is_a_N[None], counts_NX, lengths_N))
    permuted_a_PX, permuted_b_PX = _rates(permuted_PN, counts_NX, lengths_N)
    largest_P = (permuted_a_PX - permuted_b_PX).abs().amax(1)
    at_least_X = (largest_P[:, None] >= (rate_a_X - rate_b_X).abs() - 1e-12).double().sum(0)
    p_value_X = (1 + at_least_X) / (1 + NUM_PERMUTATIONS)
    variance_X = sum(
        _rate_variance(counts_NX[side], lengths_N[side], rate_X)
        for side, rate_X in ((is_a_N, rate_a_X), (~is_a_N, rate_b_X))
    )
    columns = zip(experts, rate_a_X.tolist(), rate_b_X.tolist(), variance_X.sqrt().tolist(), p_value_X.tolist())
    found = [RateDifference(*expert, *numbers) for expert, *numbers in columns]
    return sorted(found, key=lambda each: -abs(each.difference))


def _tokens_per_expert(layer: Routing) -> torch.Tensor:
    """(E,): how many tokens are routed to each expert."""
    chosen_TE = torch.zeros(len(layer.indices), layer.num_experts).scatter_(1, layer.indices.cpu(), 1)
    return chosen_TE.sum(0)


def _rates(is_a_PN, counts_NX, lengths_N) -> tuple[torch.Tensor, torch.Tensor]:
    """Activation rates (P, X) of the texts labelled A, and of the others: all tokens of a list count alike."""
    sides_PN = is_a_PN.double(), (~is_a_PN).double()
    return tuple(side_PN @ counts_NX / (side_PN @ lengths_N)[:, None] for side_PN in sides_PN)


def _rate_variance(counts_NX, lengths_N, rate_X) -> torch.Tensor:
    """Variance (X,) of the rate of a list of texts, a ratio of two sums over them (Cochran, 1977, section 6.4)."""
    residuals_NX, number = counts_NX - rate_X * lengths_N[:, None], len(lengths_N)
    return (residuals_NX**2).sum(0) / (number - 1) * number / lengths_N.sum() ** 2


def verdict(differences: Sequence[RateDifference]) -> str:
    """One sentence on whether the lists differ by more than chance."""
    significant, first = [each for each in differences if each.is_significant], differences[0]
    where = f"expert {first.expert} of layer {first.layer}"
    largest = f"the largest difference is {first.difference:+.1%} ± {first.error:.1%}, {where}"
    if not significant:
        return (
            f"No better than chance: {largest}, and permuted labels give one as large in {first.p_value:.0%} of cases."
        )
    return (
        f"{len(significant)} of {len(differences)} experts differ by more than chance (p < {SIGNIFICANT:g}): {largest}."
    )


def steering(differences: Iterable[RateDifference], count: int, strength: float) -> list[Intervention]:
    """Interventions on the `count` experts that differ most: toward list A at `strength` 1, toward B at -1, none at 0.

    Toward A, experts that A activates more are promoted and those that B does are suppressed, each by |strength|.
    Raises ValueError for another count or strength.
    """
    if type(count) is not int or not 1 <= count <= MAX_COUNT:
        raise ValueError(f"count is {count!r:.40}; it must be a whole number from 1 to {MAX_COUNT}.")
    if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not -1 <= strength <= 1:
        raise ValueError(f"strength is {strength!r:.40}; it must be a number from -1 to 1.")
    if not strength:
        return []
    return [
        Intervention(
            each.expert, "promote" if each.difference * strength > 0 else "suppress", each.layer, abs(strength)
        )
        for each in list(differences)[:count]
        if each.difference
    ]


def trace_texts(model, tokenizer, texts: Iterable[str]) -> list[list[Routing]]:
    """The routing of each text, one pass each, of the layers whose experts are ranked. Raises ValueError as `trace` does."""
    return [_ranked(trace(model, tokenizer, text)) for text in texts]


def _ranked(traced: Trace) -> list[Routing]:
    layers = ranked_layers(traced.model)
    return [layer for layer in traced.routing if layer.layer in layers]


def measure_effect(
    model, tokenizer, texts: Sequence[str], interventions: Sequence[Intervention], on_text: Callable = lambda: None
) -> Effect:
    """What interventions do to texts: losses and activation rates without and with them, two passes a text.

    Calls `on_text` after each. Raises ValueError for no text, one of a single token, and an intervention the model does not
    allow.
    """
    if not texts:
        raise ValueError("texts are none; they must be at least one.")
    losses, rates = [], []
    for text in texts:
        before = trace(model, tokenizer, text)
        with intervened(model, interventions):
            after = trace(model, tokenizer, text)
        losses.append([_loss(side, text) for side in (before, after)])
        rates.append([[_rate(_ranked(side), interventions, action) for side in (before, after)] for action in STEERS])
        on_text()
    changes = [after - before for before, after in losses]
    error = stdev(changes) / sqrt(len(changes)) if len(changes) > 1 else 0.0
    promoted, suppressed = ([fmean(rate) for rate in zip(*(text[index] for text in rates))] for index in (0, 1))
    return Effect(fmean(before for before, _ in losses), fmean(changes), error, tuple(promoted), tuple(suppressed))


def _loss(traced: Trace, text: str) -> float:
    """Mean cross-entropy in nats per token, each predicted from those before it."""
    if len(traced.ids) < 2:
        raise ValueError(f"text {text!r:.40} has 1 token; it must have at least 2.")
    return -fmean(log(max(probability, 1e-45)) for probability in traced.probabilities[1:])


def _rate(routing: list[Routing], interventions: Sequence[Intervention], action: str) -> float:
    """Mean activation rate of the experts that an action is applied to, 0 if there are none."""
    rates = [
        (layer.indices == change.expert).any(-1).float().mean().item()
        for layer in routing
        for change in interventions
        if change.action == action and change.layer in (None, layer.layer)
    ]
    return fmean(rates) if rates else 0.0
