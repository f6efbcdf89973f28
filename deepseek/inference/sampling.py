"""Sampling settings and the ordered stages that apply them to one row of logits.

A stage is a function (ids, logits, params, context) -> (ids, logits): of the candidates before it, in the order of their
ids, those that it leaves. transformers' own processors are used for repetition and n-grams; top-k, top-p and min-p give what
theirs give, by the loops of `candidates`. The definitions follow CTRL (repetition), OpenAI's API
(presence, frequency), Holtzman et al. 2020 (top-p), Fan et al. 2018 (top-k), Nguyen et al. 2024 (min-p) and llama.cpp
(dynamic temperature, second order).

Shape letters: V vocabulary, N candidates.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from transformers import NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor

from deepseek.kernels.sampling import softmax_entropy, top_k_indices, top_p_indices
from deepseek.settings.schema import setting, validate

# Repetition and n-gram look at the whole vocabulary, so both orders begin with them.
SAMPLER_ORDERS = {
    "transformers": (
        "repetition", "n-gram", "presence and frequency", "temperature", "top-k", "top-p", "min-p",
    ),
    "llama.cpp": (
        "repetition", "n-gram", "presence and frequency", "top-k", "top-p", "min-p", "temperature",
    ),
}  # fmt: skip
SCOPES = ("all", "output")  # prompt and output, or output only
MAX_STOP_CHARACTERS = 200  # characters of a stop string
MIN_TEMPERATURE = 0.01  # the lowest temperature that divides; 0 is greedy


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is sampled. `SamplingParams()` is neutral: the model's own distribution.

    Raises ValueError naming the field, its value and what is allowed.
    """

    temperature: float = setting(
        1.0, "above 1 bolder, below 1 safer; 0 always takes the most likely token", 0, 10, slider=(0, 2, 0.05)
    )
    dynamic_temperature: bool = setting(
        False, "cold where the model is sure, hot where it is not: min + (max - min) (entropy / ln N)^exponent"
    )
    temperature_min: float = setting(0.5, "at entropy 0", MIN_TEMPERATURE, 10, slider=(0.05, 2, 0.05))
    temperature_max: float = setting(
        1.5, "when all N candidates are equally likely", MIN_TEMPERATURE, 10, slider=(0.05, 3, 0.05)
    )
    temperature_exponent: float = setting(1.0, "above 1: stays cold longer", 0, 10, slider=(0.1, 4, 0.1))
    top_k: int = setting(0, "keeps the k most likely; 0 is off", 0, 1_000_000, slider=(0, 200, 1))
    top_p: float = setting(
        1.0, "keeps the most likely that together reach p; 1 is off", 0.001, 1, slider=(0.05, 1, 0.01)
    )
    min_p: float = setting(
        0.0, "keeps those at least this times as likely as the first; 0 is off", 0, 1, slider=(0, 0.5, 0.01)
    )
    repetition_penalty: float = setting(
        1.0, "divides positive, multiplies negative logits of tokens seen; 1 is off", 0.1, 10, slider=(1, 2, 0.05)
    )
    presence_penalty: float = setting(
        0.0, "subtracted from the logit of a token seen, once", -10, 10, slider=(-2, 2, 0.1)
    )
    frequency_penalty: float = setting(
        0.0, "subtracted from the logit for each time a token was seen", -10, 10, slider=(-2, 2, 0.1)
    )
    no_repeat_ngram_size: int = setting(0, "no n tokens in a row twice; 0 is off", 0, 100, slider=(0, 10, 1))
    order: str = setting("transformers", "order of the samplers", choices=tuple(SAMPLER_ORDERS))
    repetition_scope: str = setting("all", "what repetition and n-gram look at", choices=SCOPES)
    penalty_scope: str = setting("output", "what presence and frequency look at", choices=SCOPES)
    max_new_tokens: int = setting(128, "at most", 1, 100_000, slider=(1, 400, 1))
    stop: tuple[str, ...] = setting((), "text that ends a sample", 1, MAX_STOP_CHARACTERS, max_items=16)
    seed: int | None = setting(None, "same seed, same text; a new one each time if not given", 0, 2**63 - 1)

    def __post_init__(self):
        validate(self)
        if self.temperature_min > self.temperature_max:
            raise ValueError(
                f"temperature_min is {self.temperature_min}; it must not be above temperature_max, {self.temperature_max}."
            )
        if 0 < self.temperature < MIN_TEMPERATURE:
            raise ValueError(
                f"temperature is {self.temperature}; it must be 0 (greedy) or from {MIN_TEMPERATURE} to 10."
            )


@dataclass
class SamplingState:
    """What the stages need to know of the text so far, and what they leave behind."""

    prompt: list[int]
    output: list[int]
    temperature: float | None = None  # set by the temperature stage: the one used
    entropy: float | None = None  # likewise: of the candidates that a dynamic temperature was made from

    def tokens(self, scope: str) -> list[int]:
        """The ids that a penalty of this scope, one of SCOPES, looks at."""
        return self.output if scope == "output" else self.prompt + self.output


def repetition(ids_V, logits_V, params, context):
    """Divides positive and multiplies negative logits of tokens seen (CTRL, Keskar et al. 2019)."""
    return ids_V, _processed(RepetitionPenaltyLogitsProcessor(params.repetition_penalty), logits_V, params, context)


def ngram(ids_V, logits_V, params, context):
    """Removes tokens that would complete an n-gram already seen (Paulus et al. 2017)."""
    if len(context.tokens(params.repetition_scope)) < params.no_repeat_ngram_size:
        return ids_V, logits_V
    after_V = _processed(NoRepeatNGramLogitsProcessor(params.no_repeat_ngram_size), logits_V, params, context)
    return _only(ids_V, logits_V, np.flatnonzero(after_V > -math.inf))


def _processed(processor, logits_V, params, context):
    """A whole vocabulary's logits after one of transformers' processors, which looks at the tokens of repetition's scope."""
    seen = torch.tensor([context.tokens(params.repetition_scope)], dtype=torch.long)
    return processor(seen, torch.from_numpy(logits_V)[None])[0].numpy()


def presence_frequency(ids_N, logits_N, params, context):
    """z_j - c_j * frequency - [c_j > 0] * presence, c_j how often token j was seen (OpenAI's API)."""
    seen = np.array(context.tokens(params.penalty_scope), np.int64)
    count_N = np.bincount(seen, minlength=ids_N[-1] + 1)[ids_N].astype(np.float32)
    return ids_N, logits_N - count_N * params.frequency_penalty - (count_N > 0) * np.float32(params.presence_penalty)


def temperature(ids_N, logits_N, params, context):
    """z / T; T = 0 leaves the most likely token alone. Notes the T it used in the context."""
    value = params.temperature
    if params.dynamic_temperature:
        _, context.entropy = softmax_entropy(logits_N)
        value = dynamic_temperature(context.entropy, len(logits_N), params)
    context.temperature = value
    if value == 0:
        return _only(ids_N, logits_N, [logits_N.argmax()])
    return ids_N, logits_N / value


def dynamic_temperature(entropy: float, count: int, params) -> float:
    """T_min + (T_max - T_min) (H / ln N)^exponent; H is the entropy of the N candidates left. 1 for a single one."""
    if count <= 1:
        return 1.0
    share = min(1.0, entropy / math.log(count))
    low, high = params.temperature_min, params.temperature_max
    return low + (high - low) * share**params.temperature_exponent


def _only(ids_N, logits_N, places):
    """The candidates at some places."""
    return ids_N[places], logits_N[places]


def top_k(ids_N, logits_N, params, context):
    """Keeps the k most likely (Fan et al. 2018), and those as likely as the last of them."""
    return _only(ids_N, logits_N, top_k_indices(logits_N, params.top_k))


def top_p(ids_N, logits_N, params, context):
    """Keeps the fewest most likely tokens that reach p together (Holtzman et al. 2020)."""
    shares_N, _ = softmax_entropy(logits_N)
    return _only(ids_N, logits_N, top_p_indices(shares_N, params.top_p))


def min_p(ids_N, logits_N, params, context):
    """Keeps tokens at least min_p times as likely as the most likely one (Nguyen et al. 2024)."""
    shares_N, _ = softmax_entropy(logits_N)
    return _only(ids_N, logits_N, np.flatnonzero(shares_N >= params.min_p * shares_N.max()))


# name: (whether the settings ask for it, what it does)
SAMPLERS = {
    "repetition": (lambda p: p.repetition_penalty != 1, repetition),
    "n-gram": (lambda p: p.no_repeat_ngram_size > 0, ngram),
    "presence and frequency": (lambda p: p.presence_penalty != 0 or p.frequency_penalty != 0, presence_frequency),
    "temperature": (lambda p: p.temperature != 1 or p.dynamic_temperature, temperature),
    "top-k": (lambda p: p.top_k > 0, top_k),
    "top-p": (lambda p: p.top_p < 1, top_p),
    "min-p": (lambda p: p.min_p > 0, min_p),
}


all_ids = cache(np.arange)


def apply_samplers(logits_V: np.ndarray, params: SamplingParams, context: SamplingState):
    """Runs the stages in the order in force; yields (name, active, ids_N, logits_N) for each.

    Those are the candidates left after it, in the order of their ids. A stage that would leave none at all is passed over
    for this token and counts as not active.
    """
    context.temperature, context.entropy = 1.0, None
    ids_N, logits_N = all_ids(len(logits_V)), logits_V
    for name in SAMPLER_ORDERS[params.order]:
        wanted, stage = SAMPLERS[name]
        active = wanted(params)
        if active:
            left = stage(ids_N, logits_N, params, context)
            active = len(left[0]) > 0
            ids_N, logits_N = left if active else (ids_N, logits_N)
        yield name, active, ids_N, logits_N
