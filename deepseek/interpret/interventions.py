"""Ablates or forces experts while a model runs, for any mixture of experts that `trace.routers` finds.

A hook replaces the router's output before the experts and the recording hooks see it, so a trace shows what really ran.
"""

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from deepseek.data.tokenizer import encode_prompt
from deepseek.interpret.trace import context_length, hook_routers, router_scores, routers, trace
from deepseek.model.config import num_experts

ACTIONS = ("off", "force")


@dataclass(frozen=True)
class Intervention:
    """What to do to one expert in one layer, or in every MoE layer where `layer` is None.

    off: the expert is ablated; tokens that chose it get the best expert they had not chosen (by score plus DeepSeek-V3's
    bias; expert groups are ignored). force: every token runs the expert, in place of the lowest-ranked one it chose.
    Tokens whose experts change are weighted by the router's scores, scaled so that their sum stays the same.
    """

    expert: int
    action: str
    layer: int | None = None


_plan: ContextVar[dict | None] = ContextVar("interventions", default=None)
_hooked_models = weakref.WeakSet()


@contextmanager
def intervened(model, interventions: Iterable[Intervention]):
    """Within this context, and in this thread only, `model` runs under `interventions`; an outer context's are suspended.

    An empty list leaves every output bit-identical. Raises ValueError for an intervention that the model does not allow.
    A generator must not yield inside it, or its caller would run under the interventions too.
    """
    plan = _router_plan(model, interventions)
    hook_routers(model, _hooked_models, _reroute, prepend=True)  # before the hooks that record
    token = _plan.set(plan)
    try:
        yield
    finally:
        _plan.reset(token)


def router_biases(model, interventions: Iterable[Intervention]) -> dict[int, torch.Tensor]:
    """The interventions as biases on the ranking of experts, {layer: (experts,)}: -inf for off, inf for force.

    Equivalent for routers that select by rank and renormalise the weights, as DeepSeek-V3's.
    Raises ValueError for an intervention that the model does not allow.
    """
    plan, biases = _router_plan(model, interventions), {}
    for layer, router in routers(model).items():
        if router in plan:
            off, forced = plan[router]
            biases[layer] = torch.zeros(num_experts(model.config.get_text_config()))
            biases[layer][off], biases[layer][forced] = -torch.inf, torch.inf
    return biases


def _router_plan(model, interventions: Iterable[Intervention]) -> dict:
    """{router: (experts switched off, experts forced)} of the routers that are changed."""
    router_of, config = routers(model), model.config.get_text_config()
    experts, plan = num_experts(config), {}
    for change in interventions:
        if not router_of:
            raise ValueError(f"expert is {change.expert}; this model has no experts.")
        if change.action not in ACTIONS:
            raise ValueError(f"action is {change.action!r:.40}; it must be one of {', '.join(ACTIONS)}.")
        if change.layer is not None and change.layer not in router_of:
            raise ValueError(f"layer is {change.layer}; it must be one with experts: {', '.join(map(str, router_of))}.")
        if change.expert not in range(experts):
            raise ValueError(f"expert is {change.expert}; it must be from 0 to {experts - 1}.")
        for layer in router_of if change.layer is None else [change.layer]:
            off, forced = plan.setdefault(router_of[layer], ([], []))
            same, opposite = (off, forced) if change.action == "off" else (forced, off)
            if change.expert in opposite:
                raise ValueError(f"expert {change.expert} is switched off and forced at once; it must be one of them.")
            if change.expert not in same:
                same.append(change.expert)
            max_off, max_forced = experts - config.num_experts_per_tok, config.num_experts_per_tok
            if len(off) > max_off or len(forced) > max_forced:
                raise ValueError(
                    f"layer {layer} has {len(off)} experts off and {len(forced)} forced; "
                    f"it must be at most {max_off} and {max_forced}."
                )
    return plan


def _reroute(_layer, router, _input, output):
    """A router's (logits (T, E), weights (T, K), indices (T, K)) under this thread's plan."""
    plan = _plan.get() or {}
    if router not in plan:
        return None
    off, forced = plan[router]
    logits, weights_TK, chosen_TK = output
    scores_TE = router_scores(router, logits)
    rank_TE = scores_TE + getattr(router, "e_score_correction_bias", 0)
    rank_TE[:, off] = -torch.inf
    indices_TK = chosen_TK.clone()
    for expert in off:
        best_T1 = rank_TE.scatter(1, indices_TK, -torch.inf).argmax(-1, keepdim=True)
        indices_TK = torch.where(indices_TK == expert, best_T1, indices_TK)
    rank_TE[:, forced] = torch.inf
    for expert in forced:
        weakest_T1 = rank_TE.gather(1, indices_TK).argmin(-1, keepdim=True)
        absent_T1 = (indices_TK != expert).all(-1, keepdim=True)
        indices_TK = torch.where(absent_T1, indices_TK.scatter(1, weakest_T1, expert), indices_TK)
    scores_TK = scores_TE.gather(1, indices_TK)
    scaled_TK = scores_TK / (scores_TK.sum(-1, keepdim=True) + 1e-20) * weights_TK.float().sum(-1, keepdim=True)
    changed_T1 = (indices_TK != chosen_TK).any(-1, keepdim=True)
    return logits, torch.where(changed_T1, scaled_TK.to(weights_TK.dtype), weights_TK), indices_TK


@torch.inference_mode()
def mean_loss(model, ids: list[int]) -> float:
    """Mean cross-entropy of token ids in nats per token, each predicted from those before it."""
    logits = model(torch.tensor([ids], device=model.device), use_cache=False).logits[0, :-1]
    return F.cross_entropy(logits.float(), torch.tensor(ids[1:], device=logits.device)).item()


def ablation_effects(model, tokenizer, text, layers: Iterable[int] | None = None) -> Iterator[tuple[int, int, float]]:
    """Yields (layer, expert, change in loss with that expert off), in nats per token, for `layers` or all MoE layers.

    An expert that no token chose has effect 0 and costs no forward pass. Raises ValueError for a text of one token or past
    the context.
    """
    ids = encode_prompt(tokenizer, text, context_length(model), min_new_tokens=0, name="text")
    if len(ids) < 2:
        raise ValueError("text has 1 token; it must have at least 2, so that one can be predicted from the other.")
    baseline = mean_loss(model, ids)
    for routing in trace(model, tokenizer, ids).routing:
        if layers is None or routing.layer in layers:
            for expert in range(routing.num_experts):
                effect = 0.0
                if (routing.indices == expert).any():
                    with intervened(model, [Intervention(expert, "off", routing.layer)]):
                        effect = mean_loss(model, ids) - baseline
                yield routing.layer, expert, effect
