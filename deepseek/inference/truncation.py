"""Samplers that remove tokens by their probability.

Each is a function (ids, logits, params, state) -> (ids, logits) of the candidates, ascending by id, as sampling.py says.
Top-k, top-p, min-p, typical, epsilon and eta give what transformers' warpers give.

Shape letters: N candidates.
"""

import math

import numpy as np

from deepseek.kernels.sampling import softmax_entropy, top_k_indices, top_p_indices, typical_indices


def top_k(ids_N, logits_N, params, state):
    """Keeps the k most likely tokens (Fan et al. 2018) and ties with the last of them."""
    return select(ids_N, logits_N, top_k_indices(logits_N, params.top_k))


def top_p(ids_N, logits_N, params, state):
    """Keeps the fewest most likely tokens that reach p together (Holtzman et al. 2020)."""
    probs_N, _ = softmax_entropy(logits_N)
    return select(ids_N, logits_N, top_p_indices(probs_N, params.top_p))


def min_p(ids_N, logits_N, params, state):
    """Keeps tokens at least min_p times as likely as the most likely one (Nguyen et al. 2024)."""
    probs_N, _ = softmax_entropy(logits_N)
    return select(ids_N, logits_N, np.flatnonzero(probs_N >= params.min_p * probs_N.max()))


def typical(ids_N, logits_N, params, state):
    """Keeps the tokens whose surprise is nearest to the entropy, the fewest that reach p together (Meister et al. 2022)."""
    probs_N, entropy = softmax_entropy(logits_N)
    return select(ids_N, logits_N, typical_indices(probs_N, entropy, params.typical_p))


def top_n_sigma(ids_N, logits_N, params, state):
    """Keeps logits of at least max - n * sigma, sigma their standard deviation (Tang et al. 2024).

    Logits and sigma scale alike, so the same tokens are kept at any temperature.
    """
    finite_N = logits_N[logits_N > -math.inf]
    return select(ids_N, logits_N, np.flatnonzero(logits_N >= finite_N.max() - params.top_n_sigma * finite_N.std()))


def epsilon(ids_N, logits_N, params, state):
    """Keeps tokens of probability epsilon or more, and the most likely one (Hewitt et al. 2022)."""
    probs_N, _ = softmax_entropy(logits_N)
    return _at_least(ids_N, logits_N, probs_N, params.epsilon_cutoff)


def eta(ids_N, logits_N, params, state):
    """Keeps tokens of probability min(eta, sqrt(eta) exp(-H)), H the entropy, or more, and the most likely one (Hewitt et al.
    2022)."""
    probs_N, entropy = softmax_entropy(logits_N)
    cutoff = min(params.eta_cutoff, math.sqrt(params.eta_cutoff) * math.exp(-entropy))
    return _at_least(ids_N, logits_N, probs_N, cutoff)


def xtc(ids_N, logits_N, params, state):
    """With a probability, removes all tokens at least as likely as the threshold but the least likely of them.

    "Exclude Top Choices" (p-e-w 2024, text-generation-webui pull 6335; llama.cpp). The text's seed and the position alone
    decide whether it acts. Reports the number drawn in the state.
    """
    state.details["XTC"] = {"drawn": state.uniform, "acts": float(state.uniform < params.xtc_probability)}
    if state.uniform >= params.xtc_probability:
        return ids_N, logits_N
    probs_N, _ = softmax_entropy(logits_N)
    top = np.flatnonzero(probs_N >= params.xtc_threshold)
    if len(top) < 2:
        return ids_N, logits_N
    removed = np.delete(top, probs_N[top].argmin())
    return np.delete(ids_N, removed), np.delete(logits_N, removed)


def select(ids_N, logits_N, indices):
    """The candidates at some indices."""
    return ids_N[indices], logits_N[indices]


def _at_least(ids_N, logits_N, probs_N, cutoff: float):
    return select(ids_N, logits_N, np.flatnonzero(probs_N >= min(np.float32(cutoff), probs_N.max())))
