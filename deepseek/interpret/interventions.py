"""Experts switched off or forced while a model runs, for any mixture of experts that `trace.routers` finds.

The router's answer is replaced before its layer reads it and before it is recorded, so a trace shows what really ran.
"""

import threading
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from deepseek.data.tokenizer import encode_prompt
from deepseek.interpret.trace import context_length, router_scores, routers, trace
from deepseek.model.config import num_experts

ACTIONS = ("off", "force")


@dataclass(frozen=True)
class Intervention:
    """What to do to one expert at one layer, or at every layer that has experts where `layer` is None.

    off: it does not run; the best of those not chosen takes its place (DeepSeek-V3's bias included, groups aside).
    force: it runs for every token, in the place of the weakest of those chosen.
    A token that this gives other experts weighs them by the router's scores, which add up to what they did before.
    """

    expert: int
    action: str
    layer: int | None = None


_plan: ContextVar[dict | None] = ContextVar("changes", default=None)
_hooked, _hooking = weakref.WeakSet(), threading.Lock()


@contextmanager
def intervened(model, changes: Iterable[Intervention]):
    """Within it, and in this thread alone, `model` runs under `changes` (and not under those of a context around it).

    Without any it computes what it always does, bit for bit. Raises ValueError for a change that cannot be made.
    A generator must not yield inside of it, or its reader would run under the changes too.
    """
    plan = _planned(model, list(changes))
    with _hooking:
        if model not in _hooked:
            for router in routers(model).values():
                router.register_forward_hook(_reroute, prepend=True)  # before the hooks that record
            _hooked.add(model)
    token = _plan.set(plan)
    try:
        yield
    finally:
        _plan.reset(token)


def router_biases(model, changes: Iterable[Intervention]) -> dict[int, torch.Tensor]:
    """The changes as what to add to the routers' ranking of experts, {layer: (experts,)}: -inf for off, inf for forced.

    For a router that chooses by rank and weighs so that the sum stays, as DeepSeek-V3's does, that is all there is to it.
    Raises ValueError for a change that cannot be made.
    """
    plan, added = _planned(model, list(changes)), {}
    for layer, router in routers(model).items():
        off, forced = plan.get(router, ([], []))
        if off + forced:
            added[layer] = torch.zeros(num_experts(model.config.get_text_config()))
            added[layer][off], added[layer][forced] = -torch.inf, torch.inf
    return added


def _planned(model, changes: list[Intervention]) -> dict:
    """{router: (experts switched off, experts forced)}."""
    router, config = routers(model), model.config.get_text_config()
    plan = {}
    for change in changes:
        if not router:
            raise ValueError(f"expert is {change.expert}; this model has no experts.")
        if change.action not in ACTIONS:
            raise ValueError(f"action is {change.action!r:.40}; it must be one of {', '.join(ACTIONS)}.")
        if change.layer is not None and change.layer not in router:
            raise ValueError(f"layer is {change.layer}; it must be one with experts: {', '.join(map(str, router))}.")
        for layer in router if change.layer is None else [change.layer]:
            experts = num_experts(config)
            if change.expert not in range(experts):
                raise ValueError(f"expert is {change.expert}; it must be from 0 to {experts - 1}.")
            off, forced = plan.setdefault(router[layer], ([], []))
            if change.expert not in off + forced:
                (off if change.action == "off" else forced).append(change.expert)
            elif change.expert in (forced if change.action == "off" else off):
                raise ValueError(f"expert {change.expert} is switched off and forced at once; it must be one of them.")
            most = dict(off=experts - config.num_experts_per_tok, force=config.num_experts_per_tok)
            if len(off) > most["off"] or len(forced) > most["force"]:
                raise ValueError(
                    f"layer {layer} has {len(off)} experts off and {len(forced)} forced; "
                    f"it must be at most {most['off']} and {most['force']}."
                )
    return plan


def _reroute(router, _, output):
    """A router's (logits (T, E), weights (T, K), indices (T, K)) under the plan of this thread."""
    off, forced = (_plan.get() or {}).get(router, ([], []))
    if not off + forced:
        return None
    logits, weights_TK, before_TK = output
    scores_TE = router_scores(router, logits)
    rank_TE = scores_TE + getattr(router, "e_score_correction_bias", 0)
    rank_TE[:, off] = -torch.inf
    indices_TK = before_TK.clone()
    for expert in off:
        best_T1 = rank_TE.scatter(1, indices_TK, -torch.inf).argmax(-1, keepdim=True)
        indices_TK = torch.where(indices_TK == expert, best_T1, indices_TK)
    rank_TE[:, forced] = torch.inf
    for expert in forced:
        weakest_T1 = rank_TE.gather(1, indices_TK).argmin(-1, keepdim=True)
        absent_T1 = (indices_TK != expert).all(-1, keepdim=True)
        indices_TK = torch.where(absent_T1, indices_TK.scatter(1, weakest_T1, expert), indices_TK)
    kept_TK = scores_TE.gather(1, indices_TK)
    scaled_TK = kept_TK / (kept_TK.sum(-1, keepdim=True) + 1e-20) * weights_TK.float().sum(-1, keepdim=True)
    changed_T1 = (indices_TK != before_TK).any(-1, keepdim=True)
    return logits, torch.where(changed_T1, scaled_TK.to(weights_TK.dtype), weights_TK), indices_TK


@torch.inference_mode()
def loss(model, ids: list[int]) -> float:
    """Mean loss of a text in nats a token, each given those before it."""
    logits = model(torch.tensor([ids], device=model.device), use_cache=False).logits[0, :-1]
    return F.cross_entropy(logits.float(), torch.tensor(ids[1:], device=logits.device)).item()


def ablation_effects(model, tokenizer, text, layers: Iterable[int] | None = None) -> Iterator[tuple[int, int, float]]:
    """What each expert is worth to a text: (layer, expert, loss with it switched off less the untouched loss), in turn.

    In nats a token, for all layers with experts or those of `layers`. An expert that no token chose changes nothing and
    costs no pass. Raises ValueError for a text that is too short or too long.
    """
    ids = encode_prompt(tokenizer, text, context_length(model), room=0, what="text")
    if len(ids) < 2:
        raise ValueError("text has 1 token; it must have at least 2, so that one can be predicted from the other.")
    untouched = loss(model, ids)
    for routing in trace(model, tokenizer, ids).routing:
        if layers is None or routing.layer in layers:
            for expert in range(routing.experts):
                change = 0.0
                if (routing.indices == expert).any():
                    with intervened(model, [Intervention(expert, "off", routing.layer)]):
                        after = loss(model, ids)
                    change = after - untouched
                yield routing.layer, expert, change
