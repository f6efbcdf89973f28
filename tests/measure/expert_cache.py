"""Which experts to keep of a mixture larger than memory, on real routing: `python tests/measure/expert_cache.py [CHECKPOINT]`.

The texts of assets/texts are traced, and the experts of every token are asked for as decoding asks for them: token by token,
layer by layer. Prints, for caches of a part of all experts, the share of uses that are served: by an ExpertCache, by one that
lets go of the least recently used expert, and by one that knows the future, which nothing can beat.
"""

import sys
from collections import defaultdict
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from deepseek.checkpoints.loading import load
from deepseek.checkpoints.mapped_experts import ExpertCache
from deepseek.interpret.routing_stats import trace_long_text

TEXTS = Path(__file__).parents[2] / "assets" / "texts"
SHARES = (0.25, 0.5, 0.75)


def uses(model, tokenizer) -> tuple[list[tuple], int]:
    """((layer, expert) in the order of decoding the texts one after the other, uses per token)."""
    found = []
    for file in sorted(TEXTS.glob("*.txt")):
        routing = trace_long_text(model, tokenizer, file.read_text("utf-8").strip()).routing
        for experts in zip(*[layer.indices.tolist() for layer in routing]):
            found += [(layer.layer, expert) for layer, chosen in zip(routing, experts) for expert in sorted(chosen)]
    return found, sum(layer.indices.shape[1] for layer in routing)


def cache_hits(order: list[tuple], per_token: int, capacity: int) -> float:
    """The share of uses that an ExpertCache serves."""
    cache = ExpertCache(capacity)
    for number, expert in enumerate(order):
        cache.num_passes = number // per_token
        cache.get(expert, lambda: (torch.zeros(1, dtype=torch.uint8), []))
    return cache.num_hits / cache.num_reads


def hits(order: list[tuple], capacity: int, farthest_next: bool = False) -> float:
    """The share of uses served by a cache that lets go of what was used least recently, or will be used last."""
    cached, served, last, next_uses = set(), 0, {}, defaultdict(list)
    for now in reversed(range(len(order))):
        next_uses[order[now]].append(now)
    for now, expert in enumerate(order):
        served += expert in cached
        cached.add(expert)
        last[expert] = now
        next_uses[expert].pop()
        if len(cached) > capacity and farthest_next:
            cached.remove(
                max(cached - {expert}, key=lambda each: next_uses[each][-1] if next_uses[each] else len(order))
            )
        elif len(cached) > capacity:
            cached.remove(min(cached, key=last.get))
    return served / len(order)


def main():
    model, tokenizer = load(sys.argv[1] if len(sys.argv) > 1 else "assets/demo")
    order, per_token = uses(model, tokenizer)
    experts = len(set(order))
    print(f"{len(order) // per_token:,} tokens, {per_token} uses each, {experts} experts used")
    for share in SHARES:
        capacity = int(share * experts)
        rates = {
            "least recently used goes": hits(order, capacity),
            "ExpertCache": cache_hits(order, per_token, capacity),
            "the next use farthest away goes": hits(order, capacity, farthest_next=True),
        }
        print(f"{share:.0%} of the experts kept:", ", ".join(f"{name} {rate:.3f}" for name, rate in rates.items()))


if __name__ == "__main__":
    main()
