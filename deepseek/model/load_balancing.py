"""Load balancing of routed experts: the KL loss, the counted bias, and figures of load. Pure functions of tensors.

Shape letters: T tokens, K experts a token, E experts.
"""

import math

import torch


def kl_to_uniform(logits_TE: torch.Tensor, mask_T: torch.Tensor | None = None, across=None) -> torch.Tensor:
    """KL(P || U) of one router, a scalar in [0, log E] nats.

    P is the mean over tokens of the router's sigmoid scores, each normalised to sum 1: the soft share of each
    expert. KL(P || U) = sum_i P_i log(E P_i). `mask_T` is 0 for padding, which is left out of the mean.
    It sees soft scores, not counts: equal soft shares can still send every token to one expert, which is why
    `bias_step` exists beside it.
    Where the batch lies on several processes, `across` makes the mean over all of them from the mean of each: KL is
    not linear in P, so a mean of their KLs would be another loss.
    """
    scores_TE = logits_TE.float().sigmoid()
    shares_TE = scores_TE / scores_TE.sum(-1, keepdim=True)
    if mask_T is None:
        mean_E = shares_TE.mean(0)
    else:
        weight_T1 = mask_T.to(shares_TE).unsqueeze(-1)
        mean_E = (shares_TE * weight_T1).sum(0) / weight_T1.sum().clamp(min=1)
    if across is not None:
        mean_E = across(mean_E)
    return torch.xlogy(mean_E, mean_E).sum() + math.log(len(mean_E))


def load_balancing_loss(router_logits, mask_T: torch.Tensor | None = None, across=None) -> torch.Tensor:
    """`kl_to_uniform` averaged over the MoE layers; `router_logits` is one (T, E) tensor a layer."""
    return torch.stack([kl_to_uniform(logits_TE, mask_T, across) for logits_TE in router_logits]).mean()


def tokens_per_expert(indices_TK: torch.Tensor, experts: int, mask_T: torch.Tensor | None = None) -> torch.Tensor:
    """How many of the T*K assignments each expert got, shape (E,), int64; padding (`mask_T` 0) is not counted."""
    if mask_T is not None:
        indices_TK = indices_TK[mask_T.bool()]
    return torch.bincount(indices_TK.flatten(), minlength=experts)


def update_expert_bias(bias_E: torch.Tensor, counts_E: torch.Tensor, gamma: float = 0.001) -> torch.Tensor:
    """The next correction bias: +gamma for experts below the mean load, -gamma for those above.

    Auxiliary-loss-free balancing, DeepSeek-V3 section 2.1.2. The bias chooses experts; it never weighs them.
    """
    counts_E = counts_E.to(bias_E)
    return bias_E + gamma * torch.sign(counts_E.mean() - counts_E)


def load_shares(counts_E: torch.Tensor) -> torch.Tensor:
    """Each expert's share of the assignments, float32, sums to 1 (all zero for no assignments). Last dim E."""
    return counts_E.float() / counts_E.sum(-1, keepdim=True).clamp(min=1)


def max_violation(counts_E: torch.Tensor) -> torch.Tensor:
    """MaxVio = max(load) / mean(load) - 1, last dim E: 0 is even, E - 1 is everything on one expert.

    Loss-Free Balancing (arXiv 2408.15664), section 4.
    """
    counts_E = counts_E.float()
    return counts_E.amax(-1) / counts_E.mean(-1).clamp(min=1e-9) - (counts_E.sum(-1) > 0).float()
