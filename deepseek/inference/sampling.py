"""Sampling settings, and the samplers that apply them in order to one row of logits.

A sampler is a function (ids, logits, params, state) -> (ids, logits): of the candidates, ascending by id, those it keeps.
Repetition and n-gram are transformers' own processors; top-k, top-p and min-p give what transformers' warpers give.

Shape letters: V vocabulary, N candidates.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from transformers import NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor

from deepseek.kernels.sampling import softmax_entropy, top_k_indices, top_p_indices
from deepseek.settings.schema import setting, validate

PENALTIES = ("repetition", "n-gram", "presence and frequency")  # first: they need the logits of the whole vocabulary
TRUNCATION = ("top-k", "top-p", "min-p")
SAMPLER_ORDERS = {
    "transformers": (*PENALTIES, "temperature", *TRUNCATION),
    "llama.cpp": (*PENALTIES, *TRUNCATION, "temperature"),
}
SCOPES = ("all", "output")  # prompt and output, or output only
MAX_STOP_CHARACTERS = 200  # length of a stop string
MIN_TEMPERATURE = 0.01  # the lowest temperature that divides; 0 is greedy


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is sampled. `SamplingParams()` is neutral: the model's own distribution.

    Raises ValueError naming the field, its value and what is allowed.
    """

    temperature: float = setting(1.0, "below 1 safer, above 1 more varied; 0 is greedy", 0, 10, slider=(0, 2, 0.05))
    dynamic_temperature: bool = setting(False, "min + (max - min) (entropy / ln N)^exponent for N candidates")
    temperature_min: float = setting(
        0.5, "dynamic temperature at entropy 0", MIN_TEMPERATURE, 10, slider=(0.05, 2, 0.05)
    )
    temperature_max: float = setting(1.5, "at entropy ln N, its maximum", MIN_TEMPERATURE, 10, slider=(0.05, 3, 0.05))
    temperature_exponent: float = setting(1.0, "above 1 stays low longer", 0, 10, slider=(0.1, 4, 0.1))
    top_k: int = setting(0, "keeps the k most likely tokens; 0 is off", 0, 1_000_000, slider=(0, 200, 1))
    top_p: float = setting(
        1.0, "keeps the most likely tokens that sum to p; 1 is off", 0.001, 1, slider=(0.05, 1, 0.01)
    )
    min_p: float = setting(0.0, "keeps tokens at least min_p times as likely as the first; 0 is off", 0, 1,
                           slider=(0, 0.5, 0.01))  # fmt: skip
    repetition_penalty: float = setting(1.0, "divides positive, multiplies negative logits of earlier tokens; 1 is off",
                                        0.1, 10, slider=(1, 2, 0.05))  # fmt: skip
    presence_penalty: float = setting(0.0, "taken once from logits of earlier tokens", -10, 10, slider=(-2, 2, 0.1))
    frequency_penalty: float = setting(0.0, "taken from a logit per earlier occurrence", -10, 10, slider=(-2, 2, 0.1))
    no_repeat_ngram_size: int = setting(0, "never repeats n tokens in a row; 0 is off", 0, 100, slider=(0, 10, 1))
    order: str = setting("transformers", "order of the samplers", choices=tuple(SAMPLER_ORDERS))
    repetition_scope: str = setting("all", "tokens that repetition and n-gram count", choices=SCOPES)
    penalty_scope: str = setting("output", "tokens that presence and frequency count", choices=SCOPES)
    max_new_tokens: int = setting(128, "largest number of tokens to generate", 1, 100_000, slider=(1, 400, 1))
    stop: tuple[str, ...] = setting((), "string that ends the output", 1, MAX_STOP_CHARACTERS, max_items=16)
    seed: int | None = setting(None, "same seed, same output; random if not given", 0, 2**63 - 1)

    def __post_init__(self):
        validate(self)
        low, high = self.temperature_min, self.temperature_max
        if low > high:
            raise ValueError(f"temperature_min is {low}; it must not be above temperature_max, {high}.")
        if 0 < self.temperature < MIN_TEMPERATURE:
            raise ValueError(f"temperature is {self.temperature}; it must be 0 or from {MIN_TEMPERATURE} to 10.")


@dataclass
class SamplingState:
    """What the samplers read of a request, and the temperature they report."""

    prompt_ids: list[int]
    output_ids: list[int]
    temperature: float | None = None  # the temperature used, set by the temperature sampler
    entropy: float | None = None  # of the candidates that set a dynamic temperature, nats

    def tokens(self, scope: str) -> list[int]:
        """The ids that a penalty of this scope, one of SCOPES, counts."""
        return self.output_ids if scope == "output" else self.prompt_ids + self.output_ids


def repetition(ids_V, logits_V, params, state):
    """Divides positive and multiplies negative logits of tokens that occurred (CTRL, Keskar et al. 2019)."""
    return ids_V, _process(RepetitionPenaltyLogitsProcessor(params.repetition_penalty), logits_V, params, state)


def ngram(ids_V, logits_V, params, state):
    """Removes tokens that would complete an n-gram that occurred (Paulus et al. 2017)."""
    if len(state.tokens(params.repetition_scope)) < params.no_repeat_ngram_size:
        return ids_V, logits_V
    processed_V = _process(NoRepeatNGramLogitsProcessor(params.no_repeat_ngram_size), logits_V, params, state)
    return _select(ids_V, logits_V, np.flatnonzero(processed_V > -math.inf))


def _process(processor, logits_V, params, state):
    token_ids = torch.tensor([state.tokens(params.repetition_scope)], dtype=torch.long)
    return processor(token_ids, torch.from_numpy(logits_V)[None])[0].numpy()


def presence_frequency(ids_N, logits_N, params, state):
    """z_j - c_j * frequency - [c_j > 0] * presence, where c_j counts token j (OpenAI's API)."""
    token_ids = np.array(state.tokens(params.penalty_scope), np.int64)
    count_N = np.bincount(token_ids, minlength=ids_N[-1] + 1)[ids_N].astype(np.float32)
    return ids_N, logits_N - count_N * params.frequency_penalty - (count_N > 0) * np.float32(params.presence_penalty)


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
        return _select(ids_N, logits_N, [logits_N.argmax()])
    return ids_N, logits_N / state.temperature


def _select(ids_N, logits_N, indices):
    return ids_N[indices], logits_N[indices]


def top_k(ids_N, logits_N, params, state):
    """Keeps the k most likely tokens (Fan et al. 2018) and ties with the last of them."""
    return _select(ids_N, logits_N, top_k_indices(logits_N, params.top_k))


def top_p(ids_N, logits_N, params, state):
    """Keeps the fewest most likely tokens that reach p together (Holtzman et al. 2020)."""
    probs_N, _ = softmax_entropy(logits_N)
    return _select(ids_N, logits_N, top_p_indices(probs_N, params.top_p))


def min_p(ids_N, logits_N, params, state):
    """Keeps tokens at least min_p times as likely as the most likely one (Nguyen et al. 2024)."""
    probs_N, _ = softmax_entropy(logits_N)
    return _select(ids_N, logits_N, np.flatnonzero(probs_N >= params.min_p * probs_N.max()))


class Sampler(NamedTuple):
    """Whether the settings enable a sampler, and its function."""

    active: Callable[[SamplingParams], bool]
    apply: Callable


SAMPLERS = {
    "repetition": Sampler(lambda p: p.repetition_penalty != 1, repetition),
    "n-gram": Sampler(lambda p: p.no_repeat_ngram_size > 0, ngram),
    "presence and frequency": Sampler(lambda p: any([p.presence_penalty, p.frequency_penalty]), presence_frequency),
    "temperature": Sampler(lambda p: p.temperature != 1 or p.dynamic_temperature, temperature),
    "top-k": Sampler(lambda p: p.top_k > 0, top_k),
    "top-p": Sampler(lambda p: p.top_p < 1, top_p),
    "min-p": Sampler(lambda p: p.min_p > 0, min_p),
}
_all_ids = cache(np.arange)


def apply_samplers(logits_V: np.ndarray, params: SamplingParams, state: SamplingState):
    """Runs the samplers in order; yields (name, active, ids_N, logits_N) for each: the candidates it kept, ascending by id.

    A sampler that would remove every candidate is skipped for this token and counts as not active.
    """
    state.temperature, state.entropy = 1.0, None
    ids_N, logits_N = _all_ids(len(logits_V)), logits_V
    for name in SAMPLER_ORDERS[params.order]:
        sampler = SAMPLERS[name]
        kept_N = sampler.apply(ids_N, logits_N, params, state) if sampler.active(params) else ((), ())
        active = len(kept_N[0]) > 0
        ids_N, logits_N = kept_N if active else (ids_N, logits_N)
        yield name, active, ids_N, logits_N
