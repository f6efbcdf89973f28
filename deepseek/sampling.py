"""Sampling settings and the ordered stages that apply them to one row of logits.

A stage is a function (ids, logits, params, context) -> (ids, logits): of the candidates before it, in the order of their
ids, those that it leaves. transformers' own processors are used for repetition and n-grams; top-k, top-p and min-p give what
theirs give, by the loops of `candidates`. The definitions follow CTRL (repetition), OpenAI's API
(presence, frequency), Holtzman et al. 2020 (top-p), Fan et al. 2018 (top-k), Nguyen et al. 2024 (min-p) and llama.cpp
(dynamic temperature, second order).

Shape letters: V vocabulary, N candidates.
"""

import math
from dataclasses import dataclass, fields
from functools import cache

import numpy as np
import torch
from transformers import NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor

from deepseek.candidates import distribution, highest, nucleus

# Repetition and n-gram look at the whole vocabulary, so both orders begin with them.
ORDERS = {
    "transformers": (
        "repetition", "n-gram", "presence and frequency", "temperature", "top-k", "top-p", "min-p",
    ),
    "llama.cpp": (
        "repetition", "n-gram", "presence and frequency", "top-k", "top-p", "min-p", "temperature",
    ),
}  # fmt: skip
SCOPES = ("all", "output")  # prompt and output, or output only
LONGEST_STOP = 200  # characters of a stop string
COLDEST = 0.01  # the lowest temperature that divides; 0 is greedy

# field: (type, lowest, highest); a tuple of strings lists the choices
LIMITS = {
    "temperature": (float, 0, 10),
    "dynamic_temperature": (bool, None, None),
    "temperature_min": (float, COLDEST, 10),
    "temperature_max": (float, COLDEST, 10),
    "temperature_exponent": (float, 0, 10),
    "top_k": (int, 0, 1_000_000),
    "top_p": (float, 0.001, 1),
    "min_p": (float, 0, 1),
    "repetition_penalty": (float, 0.1, 10),
    "presence_penalty": (float, -10, 10),
    "frequency_penalty": (float, -10, 10),
    "no_repeat_ngram": (int, 0, 100),
    "order": tuple(ORDERS),
    "repetition_scope": SCOPES,
    "penalty_scope": SCOPES,
    "max_new_tokens": (int, 1, 100_000),
    "seed": (int, 0, 2**63 - 1),
}


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is drawn. `SamplingParams()` is neutral: the model's own distribution.

    Raises ValueError naming the field, its value and what is allowed.
    """

    temperature: float = 1.0  # divides the logits; 0 takes the most likely token
    dynamic_temperature: bool = False  # temperature from the entropy of the candidates, in place of `temperature`
    temperature_min: float = 0.5
    temperature_max: float = 1.5
    temperature_exponent: float = 1.0
    top_k: int = 0  # keep the k most likely; 0 is off
    top_p: float = 1.0  # keep the most likely that together reach p; 1 is off
    min_p: float = 0.0  # keep those at least min_p times as likely as the first; 0 is off
    repetition_penalty: float = 1.0  # divides positive, multiplies negative logits of tokens seen; 1 is off
    presence_penalty: float = 0.0  # taken off the logit of a token seen
    frequency_penalty: float = 0.0  # taken off once for each time it was seen
    no_repeat_ngram: int = 0  # no n tokens in a row twice; 0 is off
    order: str = "transformers"
    repetition_scope: str = "all"  # repetition and n-gram: prompt and output, or output only
    penalty_scope: str = "output"  # presence and frequency, likewise
    max_new_tokens: int = 128
    stop: tuple[str, ...] = ()  # the text ends once it holds one of these
    seed: int | None = None  # None draws a new one

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "seed" or value is not None:
                object.__setattr__(self, field.name, _checked(field.name, value))
        if self.temperature_min > self.temperature_max:
            raise ValueError(
                f"temperature_min is {self.temperature_min}; it must not be above temperature_max, {self.temperature_max}."
            )
        if 0 < self.temperature < COLDEST:
            raise ValueError(f"temperature is {self.temperature}; it must be 0 (greedy) or from {COLDEST} to 10.")


def _checked(name: str, value):
    if name == "stop":
        return _checked_stop(value)
    limit = LIMITS[name]
    if isinstance(limit[0], str):
        if not isinstance(value, str) or value not in limit:
            raise ValueError(f"{name} is {_short(value)}; it must be one of {', '.join(limit)}.")
        return value
    kind, low, high = limit
    if kind is bool:
        if not isinstance(value, bool):
            raise ValueError(f"{name} is {_short(value)}; it must be true or false.")
        return value
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and value == value
    if not number or not low <= value <= high or (kind is int and value != int(value)):
        what = "a whole number" if kind is int else "a number"
        raise ValueError(f"{name} is {_short(value)}; it must be {what} from {low} to {high}.")
    return kind(value)


def _checked_stop(value) -> tuple[str, ...]:
    strings = [value] if isinstance(value, str) else value
    fine = isinstance(strings, (list, tuple)) and all(
        isinstance(s, str) and 0 < len(s) <= LONGEST_STOP for s in strings
    )
    if not fine or len(strings) > 16:
        raise ValueError(f"stop is {_short(value)}; it must be at most 16 texts of 1 to {LONGEST_STOP} characters.")
    return tuple(strings)


def _short(value) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


@dataclass
class Context:
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
    if len(context.tokens(params.repetition_scope)) < params.no_repeat_ngram:
        return ids_V, logits_V
    after_V = _processed(NoRepeatNGramLogitsProcessor(params.no_repeat_ngram), logits_V, params, context)
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
        _, context.entropy = distribution(logits_N)
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
    return _only(ids_N, logits_N, highest(logits_N, params.top_k))


def top_p(ids_N, logits_N, params, context):
    """Keeps the fewest most likely tokens that reach p together (Holtzman et al. 2020)."""
    shares_N, _ = distribution(logits_N)
    return _only(ids_N, logits_N, nucleus(shares_N, params.top_p))


def min_p(ids_N, logits_N, params, context):
    """Keeps tokens at least min_p times as likely as the most likely one (Nguyen et al. 2024)."""
    shares_N, _ = distribution(logits_N)
    return _only(ids_N, logits_N, np.flatnonzero(shares_N >= params.min_p * shares_N.max()))


# name: (whether the settings ask for it, what it does)
STAGES = {
    "repetition": (lambda p: p.repetition_penalty != 1, repetition),
    "n-gram": (lambda p: p.no_repeat_ngram > 0, ngram),
    "presence and frequency": (lambda p: p.presence_penalty != 0 or p.frequency_penalty != 0, presence_frequency),
    "temperature": (lambda p: p.temperature != 1 or p.dynamic_temperature, temperature),
    "top-k": (lambda p: p.top_k > 0, top_k),
    "top-p": (lambda p: p.top_p < 1, top_p),
    "min-p": (lambda p: p.min_p > 0, min_p),
}


all_ids = cache(np.arange)


def apply(logits_V: np.ndarray, params: SamplingParams, context: Context):
    """Runs the stages in the order in force; yields (name, active, ids_N, logits_N) for each.

    Those are the candidates left after it, in the order of their ids. A stage that would leave none at all is passed over
    for this token and counts as not active.
    """
    context.temperature, context.entropy = 1.0, None
    ids_N, logits_N = all_ids(len(logits_V)), logits_V
    for name in ORDERS[params.order]:
        wanted, stage = STAGES[name]
        active = wanted(params)
        if active:
            left = stage(ids_N, logits_N, params, context)
            active = len(left[0]) > 0
            ids_N, logits_N = left if active else (ids_N, logits_N)
        yield name, active, ids_N, logits_N
