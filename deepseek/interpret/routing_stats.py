"""Figures of routing: how experts share a text, fire together, follow one another, and tell two texts apart.

Functions of `Trace.routing`, one Routing a MoE layer. Shape letters: T tokens, K experts a token, E experts.
"""

import math
from collections import Counter

import torch

from deepseek.data.tokenizer import encode_prompt, token_texts
from deepseek.interpret.trace import Routing, context_length, trace
from deepseek.model.load_balancing import load_shares, tokens_per_expert

MAX_CHARACTERS = 20_000  # characters of a text that is read in windows
PERMUTATIONS = 20  # random divisions that chance is the mean of


class LongTrace:
    """A text of any length as a model routed it: its tokens, and one Routing a MoE layer over all of them."""

    def __init__(self, tokens: list[str], routing: list[Routing]):
        self.tokens, self.routing = tokens, routing


def trace_long_text(model, tokenizer, text: str, tell=lambda part: None) -> LongTrace:
    """Traces a text window by window, telling before each what part of the text is done.

    A window is as long as the model's context and knows nothing of the ones before it.
    Raises ValueError for a text that is empty or has more than MOST characters.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"text has {len(text):,} characters; it must have at most {MAX_CHARACTERS:,}.")
    ids = encode_prompt(tokenizer, text, None, what="text")
    size = context_length(model) or len(ids)
    windows = []
    for start in range(0, len(ids), size):
        tell(start / len(ids))
        windows.append(trace(model, tokenizer, ids[start : start + size]).routing)
    return LongTrace(token_texts(tokenizer, ids), [_joined(parts) for parts in zip(*windows)])


def _joined(parts: tuple[Routing, ...]) -> Routing:
    """One layer's Routing of consecutive pieces of a text, as one."""
    tensors = {name: torch.cat([getattr(part, name) for part in parts]) for name in ("indices", "weights", "scores")}
    return Routing(parts[0].layer, parts[0].experts, **tensors)


def expert_counts(routing: list[Routing]) -> list[torch.Tensor]:
    """How many of the T * K choices each expert got, (E,) a layer."""
    return [tokens_per_expert(layer.indices, layer.experts) for layer in routing]


def soft_kl(layer: Routing) -> float:
    """KL(P || U) in nats, 0 to log E, with P the mean over tokens of the router's scores, each normalised to sum 1.

    For sigmoid routers it is the load-balancing loss, `balance.kl_to_uniform`.
    """
    mean_E = (layer.scores / layer.scores.sum(-1, keepdim=True)).mean(0)
    return float(torch.xlogy(mean_E, mean_E * len(mean_E)).sum())


def vocabulary_specialization(tokens: list[str], layer: Routing, most: int = 8) -> list[list[tuple[str, int, int]]]:
    """For each expert the token texts that it took most often: (text, times taken, times in the text)."""
    total, taken = Counter(tokens), [Counter() for _ in range(layer.experts)]
    for token, chosen in zip(tokens, layer.indices.tolist()):
        for expert in chosen:
            taken[expert][token] += 1
    return [[(token, times, total[token]) for token, times in counter.most_common(most)] for counter in taken]


def co_activation(layer: Routing) -> torch.Tensor:
    """(E, E): how often two experts were chosen for the same token, over what their loads alone would give.

    1 is independence, 2 twice as often. Expected of experts i and j is in proportion to load i * load j, over all pairs
    as many as there were. Not a number on the diagonal, where an expert was never chosen, and with one expert a token.
    """
    chosen_TE = torch.zeros(len(layer.indices), layer.experts).scatter_(1, layer.indices.cpu(), 1)
    together_EE = (chosen_TE.T @ chosen_TE).fill_diagonal_(0)
    load_E = chosen_TE.sum(0)
    expected_EE = torch.outer(load_E, load_E).fill_diagonal_(0)
    ratio_EE = together_EE / (expected_EE * (together_EE.sum() / expected_EE.sum()))
    return ratio_EE.fill_diagonal_(torch.nan)


def transitions(routing: list[Routing]) -> list[tuple[int, int, int, int]]:
    """(i, e, f, tokens): how many tokens had e as first expert in routing[i] and f in routing[i + 1]."""
    steps = []
    for index, (here, there) in enumerate(zip(routing, routing[1:])):
        pairs = Counter(zip(here.indices[:, 0].tolist(), there.indices[:, 0].tolist()))
        steps += [(index, one, other, tokens) for (one, other), tokens in sorted(pairs.items())]
    return steps


def js_divergence(counts_E: torch.Tensor, other_E: torch.Tensor) -> float:
    """Jensen-Shannon divergence of two loads in bits: 0 for the same shares of every expert, 1 for none in common."""
    p, q = load_shares(counts_E).double(), load_shares(other_E).double()
    middle = (p + q) / 2
    nats = [torch.xlogy(share, share / middle.where(middle > 0, 1)).sum() for share in (p, q)]
    return float(sum(nats)) / (2 * math.log(2))


def layer_divergences(one: list[Routing], other: list[Routing]) -> list[float]:
    """`divergence` of two texts' loads, layer by layer."""
    return [js_divergence(*pair) for pair in zip(expert_counts(one), expert_counts(other))]


def permutation_baseline(one: list[Routing], other: list[Routing]) -> list[float]:
    """`divergences` that two texts of these lengths show by chance: the same tokens, dealt out at random, the mean of
    SHUFFLES deals from a fixed seed. Short texts differ by chance alone.
    """
    generator = torch.Generator().manual_seed(0)
    length = len(one[0].indices)
    deals = [torch.randperm(length + len(other[0].indices), generator=generator) for _ in range(PERMUTATIONS)]
    found = []
    for here, there in zip(one, other):
        pool_TK = torch.cat([here.indices, there.indices]).cpu()
        parts = ((pool_TK[deal[:length]], pool_TK[deal[length:]]) for deal in deals)
        dealt = [js_divergence(*(tokens_per_expert(part, here.experts) for part in pair)) for pair in parts]
        found.append(sum(dealt) / len(dealt))
    return found
