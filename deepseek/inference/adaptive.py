"""Samplers that adapt: temperature, to the entropy of a token; mirostat and adaptive-p, along the text.

Each is a function (ids, logits, params, state) -> (ids, logits) of the candidates, ascending by id, as sampling.py says. What
mirostat and adaptive-p keep of a text follows from the tokens before, sampled or forced: `accept` moves it by each.

Shape letters: N candidates.
"""

import math

import numpy as np

from deepseek.inference.truncation import select
from deepseek.kernels.sampling import lookup_probs, softmax_entropy

WIDTH, PEAK, SHARPNESS = 0.3, 5.0, 10.0  # of adaptive-p's curve, as in llama.cpp


def temperature(ids_N, logits_N, params, state):
    """z / T; T = 0 keeps the most likely token alone. Reports T in the state.

    Dynamic: T_min + (T_max - T_min) (H / ln N)^exponent for N candidates of entropy H (llama.cpp); 1 for a single candidate.
    """
    state.temperature = params.temperature
    if params.dynamic_temperature:
        _, state.entropy = softmax_entropy(logits_N)
        state.temperature = 1.0
        if len(logits_N) > 1:
            low, high = params.temperature_min, params.temperature_max
            normalized = min(1.0, state.entropy / math.log(len(logits_N)))
            state.temperature = low + (high - low) * normalized**params.temperature_exponent
    if state.temperature == 0:
        return select(ids_N, logits_N, [logits_N.argmax()])
    return ids_N, logits_N / state.temperature


def mirostat(ids_N, logits_N, params, state):
    """Keeps tokens of a surprise -log2 p up to mu, at least the most likely (mirostat 2.0, Basu et al. 2021; llama.cpp).

    mu is 2 tau at first; each token then moves it by -eta (surprise - tau), its surprise being that among the tokens kept.
    """
    mu = state.mirostat_mu = 2 * params.mirostat_tau if state.mirostat_mu is None else state.mirostat_mu
    probs_N, _ = softmax_entropy(logits_N)
    with np.errstate(over="ignore"):
        cutoff = np.minimum(np.exp2(np.float32(-mu)), probs_N.max())
    indices = np.flatnonzero(probs_N >= cutoff)
    state.details["mirostat"] = {"mu": mu}
    state.pending["mirostat"] = ids_N, probs_N / probs_N[indices].sum()
    return select(ids_N, logits_N, indices)


def adaptive_p(ids_N, logits_N, params, state):
    """Prefers tokens of a probability near a target: 5 - 10 d^2 / (1 + d), d = |p - target| / 0.3 (llama.cpp pull 17927).

    The target moves so that the sampled tokens' probabilities, in an exponential average of weight `adaptive_decay`, near
    `adaptive_target`: it is that times two less the average, within 0 and 1.
    """
    if state.adaptive_sums is None:
        weight = 1 / (1 - params.adaptive_decay)
        state.adaptive_sums = params.adaptive_target * weight, weight
    weighted, weight = state.adaptive_sums
    target = min(max(2 * params.adaptive_target - weighted / weight, 0.0), 1.0)
    probs_N, _ = softmax_entropy(logits_N)
    distance_N = np.abs(probs_N - np.float32(target)) / np.float32(WIDTH)
    state.details["adaptive-p"] = {"target": target, "average": weighted / weight}
    state.pending["adaptive-p"] = ids_N, probs_N
    curve_N = PEAK - SHARPNESS * distance_N**2 / (1 + distance_N)
    return ids_N, np.where(logits_N > -math.inf, curve_N, logits_N)


def accept(token: int, params, state) -> None:
    """Appends the token that was sampled or forced after the samplers ran, and moves what they keep along the text by it.

    A token that other samplers had removed before mirostat leaves mu as it is; for adaptive-p its probability is 0.
    Raises ValueError for a forced token that the grammar does not allow.
    """
    if state.grammar:
        state.grammar.accept(token)
    state.output_ids.append(token)
    probs = {name: lookup_probs(*seen, np.array([token]))[0][0].item() for name, seen in state.pending.items()}
    state.pending.clear()
    if probs.get("mirostat"):
        state.mirostat_mu -= params.mirostat_eta * (-math.log2(probs["mirostat"]) - params.mirostat_tau)
    if "adaptive-p" in probs:
        weighted, weight = state.adaptive_sums
        state.adaptive_sums = probs["adaptive-p"] + params.adaptive_decay * weighted, 1 + params.adaptive_decay * weight
