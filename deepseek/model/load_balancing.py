"""Load balancing of routed experts: the KL loss, the auxiliary-loss-free bias, and measures of load.

Pure functions of tensors. Shape letters: T tokens, K experts per token, E experts.
"""

import math

import torch


def mean_router_probs(logits_TE: torch.Tensor, mask_T: torch.Tensor | None = None) -> torch.Tensor:
    """P, (E,): the mean over tokens of a router's sigmoid scores, each normalised to sum 1; `mask_T` is 0 for padding."""
    scores_TE = logits_TE.float().sigmoid()
    probs_TE = scores_TE / scores_TE.sum(-1, keepdim=True)
    if mask_T is None:
        return probs_TE.mean(0)
    mask_T1 = mask_T.to(probs_TE).unsqueeze(-1)
    return (probs_TE * mask_T1).sum(0) / mask_T1.sum().clamp(min=1)


def kl_to_uniform(logits_TE: torch.Tensor, mask_T: torch.Tensor | None = None, all_reduce_mean=None) -> torch.Tensor:
    """KL(P || U) = sum_i P_i log(E P_i) of one router, a scalar in [0, log E] nats; P is its `mean_router_probs`.

    It sees scores and not counts, so `update_expert_bias` exists too. Of a batch in parts, over forward passes or processes,
    `all_reduce_mean` returns the mean of P over all of them: KL is not linear in P.
    """
    mean_E = mean_router_probs(logits_TE, mask_T)
    if all_reduce_mean is not None:
        mean_E = all_reduce_mean(mean_E)
    return torch.xlogy(mean_E, mean_E).sum() + math.log(len(mean_E))


def load_balancing_loss(router_logits, mask_T: torch.Tensor | None = None, all_reduce_mean=None) -> torch.Tensor:
    """`kl_to_uniform` averaged over the MoE layers; `router_logits` has one (T, E) tensor per layer."""
    return torch.stack([kl_to_uniform(logits_TE, mask_T, all_reduce_mean) for logits_TE in router_logits]).mean()


def sequence_balance_loss(router_logits, top_k: int, num_sequences: int) -> torch.Tensor:
    """sum_i f_i P_i of each sequence and layer, averaged: DeepSeek-V3, section 2.1.2, equations 17 to 20, without alpha.

    f_i is E / K times the share of the sequence's tokens with expert i among their `top_k` scores, P_i the mean of its scores
    normalised to sum 1; 1 where either is even, at most E / K. `router_logits` has one (num_sequences * S, E) tensor per layer.
    """
    losses = []
    for logits_TE in router_logits:
        scores_BSE = logits_TE.float().sigmoid().unflatten(0, (num_sequences, -1))
        num_experts = scores_BSE.shape[-1]
        chosen_BSE = torch.zeros_like(scores_BSE).scatter(-1, scores_BSE.topk(top_k, -1).indices, 1.0)
        probs_BE = (scores_BSE / scores_BSE.sum(-1, keepdim=True)).mean(1)
        losses.append((chosen_BSE.mean(1) * probs_BE).sum(-1).mean() * num_experts / top_k)
    return torch.stack(losses).mean()


def tokens_per_expert(indices_TK: torch.Tensor, num_experts: int, mask_T: torch.Tensor | None = None) -> torch.Tensor:
    """How many of the T*K assignments each expert receives, (E,) int64; padding (`mask_T` 0) is not counted."""
    if mask_T is not None:
        indices_TK = indices_TK[mask_T.bool()]
    return torch.bincount(indices_TK.flatten(), minlength=num_experts)


def update_expert_bias(bias_E: torch.Tensor, counts_E: torch.Tensor, gamma: float = 0.001) -> torch.Tensor:
    """The next correction bias: +gamma for experts below the mean load, -gamma for those above.

    Auxiliary-loss-free balancing, DeepSeek-V3, section 2.1.2. The bias selects experts; it never weighs them.
    """
    counts_E = counts_E.to(bias_E)
    return bias_E + gamma * torch.sign(counts_E.mean() - counts_E)


def load_shares(counts_E: torch.Tensor) -> torch.Tensor:
    """Each expert's fraction of the assignments, float32, sums to 1 (all zero without assignments). Last dim E."""
    return counts_E.float() / counts_E.sum(-1, keepdim=True).clamp(min=1)


def max_violation(counts_E: torch.Tensor) -> torch.Tensor:
    """MaxVio = max(load) / mean(load) - 1, last dim E: 0 is even, E - 1 is everything on one expert.

    Loss-Free Balancing (arXiv 2408.15664), section 4.
    """
    counts_E = counts_E.float()
    return counts_E.amax(-1) / counts_E.mean(-1).clamp(min=1e-9) - (counts_E.sum(-1) > 0).float()
