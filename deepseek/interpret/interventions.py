"""Ablates or forces experts while a model runs, for any mixture of experts that `trace.routers` finds.

A hook replaces the router's output before the experts and the recording hooks see it, so a trace shows what really ran.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from deepseek.data.tokenizer import encode_prompt
from deepseek.interpret.trace import context_length, hook_routers, rerouting, router_scores, routers, trace
from deepseek.model.config import num_experts

ACTIONS = {"off": -torch.inf, "force": torch.inf}  # added to the rank of an expert


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


@contextmanager
def intervened(model, interventions: Iterable[Intervention]):
    """Within this context, and in this thread only, `model` runs under `interventions`; an outer context's are suspended.

    An empty list leaves every output bit-identical. Raises ValueError for an intervention that the model does not allow.
    A generator must not yield inside it, or its caller would run under the interventions too.
    """
    biases = router_biases(model, interventions)
    router_of = routers(model) if biases else {}
    hook_routers(model)
    token = rerouting.set(partial(_reroute, {router_of[layer]: bias_E for layer, bias_E in biases.items()}))
    try:
        yield
    finally:
        rerouting.reset(token)


def router_biases(model, interventions: Iterable[Intervention]) -> dict[int, torch.Tensor]:
    """The interventions as biases on the ranking of experts, {layer: (experts,)}: -inf for off, inf for force, else 0.

    Adding them is equivalent for routers that select by rank and renormalise the weights, as DeepSeek-V3's.
    Raises ValueError for an intervention that the model does not allow.
    """
    layers, config = list(routers(model)), model.config.get_text_config()
    experts, biases = num_experts(config), {}
    for change in interventions:
        if not layers:
            raise ValueError(f"expert is {change.expert}; this model has no experts.")
        if change.action not in list(ACTIONS):  # which allows what cannot be hashed
            raise ValueError(f"action is {change.action!r:.40}; it must be one of {', '.join(ACTIONS)}.")
        if change.layer is not None and change.layer not in layers:
            raise ValueError(f"layer is {change.layer}; it must be one with experts: {', '.join(map(str, layers))}.")
        if change.expert not in range(experts):
            raise ValueError(f"expert is {change.expert}; it must be from 0 to {experts - 1}.")
        for layer in layers if change.layer is None else [change.layer]:
            bias_E = biases.setdefault(layer, torch.zeros(experts))
            if bias_E[change.expert] == -ACTIONS[change.action]:
                raise ValueError(f"expert {change.expert} is switched off and forced at once; it must be one of them.")
            bias_E[change.expert] = ACTIONS[change.action]
            num_off, num_forced = ((bias_E == bias).sum() for bias in ACTIONS.values())
            max_off, max_forced = experts - config.num_experts_per_tok, config.num_experts_per_tok
            if num_off > max_off or num_forced > max_forced:
                raise ValueError(
                    f"layer {layer} has {num_off} experts off and {num_forced} forced; "
                    f"it must be at most {max_off} and {max_forced}."
                )
    return biases


def _reroute(biases: dict, router, output):
    """A router's (logits (T, E), weights (T, K), indices (T, K)) under the bias of this router, if it has one."""
    if router not in biases:
        return output
    off, forced = ((biases[router] == bias).nonzero().flatten().tolist() for bias in ACTIONS.values())
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
