"""Models with a router of the tests' own: random, by token, or by kind of text."""

from contextlib import contextmanager

import torch

from deepseek.interpret.moe_layers import moe_layers


@contextmanager
def routed(model, choose):
    """Within it every router of our model `model` takes the experts `choose(ids)` (tokens, K), given the ids of the pass."""
    current = {}
    handle = model.register_forward_pre_hook(
        lambda _, args, keywords: current.update(ids=args[0] if args else keywords["input_ids"]), with_kwargs=True
    )
    routers = [layer.router for layer in moe_layers(model).values()]
    for router in routers:

        def forward(x_XD, router=router):
            indices = choose(current["ids"].flatten())
            logits = torch.zeros(len(x_XD), router.config.n_routed_experts).scatter(1, indices, 1.0)
            return logits, torch.full(indices.shape, 0.5), indices

        router.forward = forward
    try:
        yield
    finally:
        handle.remove()
        for router in routers:
            del router.forward


def at_random(seed=0):
    """A `choose` that takes two of eight experts for every token, whatever it is."""
    generator = torch.Generator().manual_seed(seed)
    return lambda ids: torch.rand(len(ids), 8, generator=generator).topk(2).indices


def by_token(ids):
    """A `choose` that gives every token of the vocabulary its own two experts."""
    return torch.stack([ids % 4, 4 + ids % 4], 1)
