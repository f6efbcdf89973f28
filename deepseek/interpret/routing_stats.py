"""Routing statistics of a text, named after the OLMoE paper (Muennighoff et al., 2024).

They read `Trace.routing`, one Routing per MoE layer. Shape letters: T tokens, K experts per token, E experts.
"""

import math
from collections import Counter
from dataclasses import replace

import torch

from deepseek.data.tokenizer import encode_prompt, token_texts
from deepseek.interpret.trace import Routing, context_length, trace
from deepseek.model.load_balancing import load_shares, tokens_per_expert

MAX_CHARACTERS = 20_000  # of a text to trace
NUM_PERMUTATIONS = 20


class LongTrace:
    """Tokens and routing of a text of any length, one Routing per MoE layer. No dataclass: gr.State would make it a dict."""

    def __init__(self, tokens: list[str], routing: list[Routing]):
        self.tokens, self.routing = tokens, routing


def trace_long_text(model, tokenizer, text: str, on_progress=lambda fraction: None) -> LongTrace:
    """Traces a text in windows as long as the model's context; no window sees the ones before it.

    Calls `on_progress` with the fraction done before each window. Raises ValueError for an empty text and for one of more
    than MAX_CHARACTERS.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"text has {len(text):,} characters; it must have at most {MAX_CHARACTERS:,}.")
    ids = encode_prompt(tokenizer, text, None, name="text")
    size = context_length(model) or len(ids)
    windows = []
    for start in range(0, len(ids), size):
        on_progress(start / len(ids))
        windows.append(trace(model, tokenizer, ids[start : start + size]).routing)
    routing = []
    for parts in zip(*windows):
        tensors = {
            name: torch.cat([getattr(part, name) for part in parts])
            for name in ("indices", "weights", "scores", "ranks")
        }
        routing.append(replace(parts[0], **tensors))
    return LongTrace(token_texts(tokenizer, ids), routing)


def expert_counts(routing: list[Routing]) -> list[torch.Tensor]:
    """How many of the T * K assignments each expert got, (E,) per layer."""
    return [tokens_per_expert(layer.indices, layer.num_experts) for layer in routing]


def soft_kl(layer: Routing) -> float:
    """KL(P || U) in nats, 0 to log E; P is the mean over tokens of the router's scores, each normalised to sum 1.

    For sigmoid routers this is the load-balancing loss, `load_balancing.kl_to_uniform`.
    """
    mean_E = (layer.scores / layer.scores.sum(-1, keepdim=True)).mean(0)
    return float(torch.xlogy(mean_E, mean_E * len(mean_E)).sum())


def vocabulary_specialization(tokens: list[str], layer: Routing, top: int = 8) -> list[list[tuple[str, int, int]]]:
    """For each expert the `top` tokens it processed most often: (token, times processed, times in the text)."""
    total, processed = Counter(tokens), [Counter() for _ in range(layer.num_experts)]
    for token, experts in zip(tokens, layer.indices.tolist()):
        for expert in experts:
            processed[expert][token] += 1
    return [[(token, count, total[token]) for token, count in counter.most_common(top)] for counter in processed]


def busiest_experts(layer: Routing, count: int) -> list[int]:
    """The `count` experts that most tokens chose, the busiest first; all in their order if there are no more than `count`."""
    if layer.num_experts <= count:
        return list(range(layer.num_experts))
    load_E = layer.indices.flatten().bincount(minlength=layer.num_experts)
    order_E = load_E.argsort(descending=True, stable=True)
    return order_E[: min(count, int(load_E.count_nonzero()))].tolist()


def co_activation(layer: Routing) -> torch.Tensor:
    """(E, E): how often two experts are chosen for the same token, divided by what their loads alone predict.

    1 is independence, 2 twice as often. The prediction for experts i and j is proportional to load i * load j and sums to
    the observed number of pairs. NaN on the diagonal, for an expert that was never chosen, and with K = 1.
    """
    chosen_TE = torch.zeros(len(layer.indices), layer.num_experts).scatter_(1, layer.indices.cpu(), 1)
    observed_EE = (chosen_TE.T @ chosen_TE).fill_diagonal_(0)
    load_E = chosen_TE.sum(0)
    expected_EE = torch.outer(load_E, load_E).fill_diagonal_(0)
    ratio_EE = observed_EE / (expected_EE * (observed_EE.sum() / expected_EE.sum()))
    return ratio_EE.fill_diagonal_(torch.nan)


def transitions(routing: list[Routing]) -> list[tuple[int, int, int, int]]:
    """(i, e, f, tokens): how many tokens have top expert e in routing[i] and f in routing[i + 1]."""
    counts = []
    for index, (layer, next_layer) in enumerate(zip(routing, routing[1:])):
        pairs = Counter(zip(layer.indices[:, 0].tolist(), next_layer.indices[:, 0].tolist()))
        counts += [(index, *pair, tokens) for pair, tokens in sorted(pairs.items())]
    return counts


def js_divergence(counts_a_E: torch.Tensor, counts_b_E: torch.Tensor) -> float:
    """Jensen-Shannon divergence of two expert loads in bits: 0 for equal loads, 1 for no expert in common."""
    p, q = load_shares(counts_a_E).double(), load_shares(counts_b_E).double()
    mean = (p + q) / 2
    nats = [torch.xlogy(load, load / mean.where(mean > 0, 1)).sum() for load in (p, q)]
    return float(sum(nats)) / (2 * math.log(2))


def layer_divergences(a: list[Routing], b: list[Routing]) -> list[float]:
    """Domain specialization: `js_divergence` of two texts' expert loads, layer by layer."""
    return [js_divergence(*pair) for pair in zip(expert_counts(a), expert_counts(b))]


def permutation_baseline(a: list[Routing], b: list[Routing]) -> list[float]:
    """The `layer_divergences` of two texts of these lengths under random assignment of the same tokens.

    The mean of NUM_PERMUTATIONS permutations from a fixed seed. Short texts differ even at random.
    """
    generator = torch.Generator().manual_seed(0)
    length = len(a[0].indices)
    permutations = [torch.randperm(length + len(b[0].indices), generator=generator) for _ in range(NUM_PERMUTATIONS)]
    baseline = []
    for layer_a, layer_b in zip(a, b):
        pool_TK = torch.cat([layer_a.indices, layer_b.indices]).cpu()
        splits = [pool_TK[order].tensor_split([length]) for order in permutations]
        counts = [[tokens_per_expert(part, layer_a.num_experts) for part in split] for split in splits]
        baseline.append(sum(js_divergence(*pair) for pair in counts) / len(counts))
    return baseline
