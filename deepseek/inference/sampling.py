"""Sampling settings, and the samplers that apply them in order to one row of logits.

A sampler is a function (ids, logits, params, state) -> (ids, logits): of the candidates, ascending by id, those it keeps.

Shape letters: V vocabulary, N candidates.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

import numpy as np

from deepseek.inference import adaptive, penalties, truncation
from deepseek.inference.grammar import Grammar, check_constraint, constrain, is_constrained
from deepseek.inference.sampler_order import TRUNCATION, canonical_order, parse_order
from deepseek.inference.token_rules import TokenRules, bias_items, split_bias
from deepseek.settings.schema import setting, validate

SCOPES = ("all", "output")  # prompt and output, or output only
MAX_STOP_CHARACTERS = 200  # length of a stop string
MIN_TEMPERATURE = 0.01  # the lowest temperature that divides; 0 is greedy
NAMED_TOKENS = dict(low=1, high=200, max_items=300)


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
    order: str = setting("transformers", "transformers, llama.cpp, or the samplers' names with commas between", 1, 400)
    repetition_scope: str = setting("all", "tokens that repetition and n-gram count", choices=SCOPES)
    penalty_scope: str = setting("output", "tokens that presence and frequency count", choices=SCOPES)
    max_new_tokens: int = setting(128, "largest number of tokens to generate", 1, 100_000, slider=(1, 400, 1))
    stop: tuple[str, ...] = setting((), "string that ends the output", 1, MAX_STOP_CHARACTERS, max_items=16)
    seed: int | None = setting(None, "same seed, same output; random if not given", 0, 2**63 - 1)
    typical_p: float = setting(1.0, "keeps tokens of near the expected surprise that sum to p; 1 is off", 0.001, 1,
                               slider=(0.05, 1, 0.01))  # fmt: skip
    top_n_sigma: float = setting(0.0, "keeps logits within n standard deviations of the highest; 0 is off", 0, 100,
                                 slider=(0, 5, 0.1))  # fmt: skip
    epsilon_cutoff: float = setting(0.0, "keeps tokens of at least this probability; 0 is off", 0, 1,
                                    slider=(0, 0.05, 0.0005))  # fmt: skip
    eta_cutoff: float = setting(0.0, "as epsilon, but lower where the entropy is high; 0 is off", 0, 1,
                                slider=(0, 0.05, 0.0005))  # fmt: skip
    xtc_probability: float = setting(0.0, "how often XTC removes the top choices; 0 is off", 0, 1, slider=(0, 1, 0.05))
    xtc_threshold: float = setting(0.1, "of tokens at least this likely XTC keeps only the last", 0, 1,
                                   slider=(0, 0.5, 0.01))  # fmt: skip
    dry_multiplier: float = setting(0.0, "strength of DRY against repeated sequences; 0 is off", 0, 100,
                                    slider=(0, 5, 0.1))  # fmt: skip
    dry_base: float = setting(1.75, "a repetition one token longer costs this many times as much", 1, 10,
                              slider=(1, 4, 0.05))  # fmt: skip
    dry_allowed_length: int = setting(2, "length that costs the multiplier; shorter repetitions are free", 1, 100,
                                      slider=(1, 20, 1))  # fmt: skip
    dry_sequence_breakers: tuple[str, ...] = setting(
        ("\n", ":", '"', "*"), "text across which DRY sees no repetition", 1, 40, max_items=100
    )
    mirostat_tau: float = setting(0.0, "surprise to hold, in bits per token, in place of top-k, top-p...; 0 is off", 0, 30,
                                  slider=(0, 10, 0.1))  # fmt: skip
    mirostat_eta: float = setting(0.1, "how fast mirostat corrects", 0, 1, slider=(0, 1, 0.01))
    adaptive_target: float = setting(0.0, "probability of the tokens to prefer; 0 or less is off", -1, 1,
                                     slider=(0, 1, 0.01))  # fmt: skip
    adaptive_decay: float = setting(0.9, "weight of earlier tokens in adaptive-p's average", 0, 0.99,
                                    slider=(0, 0.99, 0.01))  # fmt: skip
    logit_bias: tuple[str, ...] = setting((), "TOKEN=BIAS, a token's id or a text and -100 to 100", **NAMED_TOKENS)
    banned_tokens: tuple[str, ...] = setting((), "a token's id, or a text never to be written", **NAMED_TOKENS)
    min_new_tokens: int = setting(0, "the text does not end before; 0 is off", 0, 100_000, slider=(0, 400, 1))
    regex: str = setting("", "regular expression that the whole output must match", 0, 2000)
    choice: tuple[str, ...] = setting((), "text to choose from; the output is one of them", 1, 200, max_items=100)
    json_schema: str = setting("", "JSON schema that the output must follow", 0, 10_000)

    def __post_init__(self):
        object.__setattr__(self, "logit_bias", bias_items(self.logit_bias))
        if isinstance(self.json_schema, dict):
            object.__setattr__(self, "json_schema", json.dumps(self.json_schema))
        if isinstance(self.order, (list, tuple)) and all(isinstance(name, str) for name in self.order):
            object.__setattr__(self, "order", ",".join(self.order))
        validate(self)
        object.__setattr__(self, "order", canonical_order(self.order))
        for item in self.logit_bias:
            split_bias(item)
        check_constraint(self)
        low, high = self.temperature_min, self.temperature_max
        if low > high:
            raise ValueError(f"temperature_min is {low}; it must not be above temperature_max, {high}.")
        if 0 < self.temperature < MIN_TEMPERATURE:
            raise ValueError(f"temperature is {self.temperature}; it must be 0 or from {MIN_TEMPERATURE} to 10.")


@dataclass
class SamplingState:
    """What the samplers read of a request, what they keep along its text, and what they report of the token at hand."""

    prompt_ids: list[int]  # without the tokens that begin or end a text
    output_ids: list[int]
    rules: TokenRules = field(default_factory=TokenRules)
    grammar: Grammar | None = None  # of a constrained output
    uniform: float = 0.0  # XTC's random number for this token, from 0 to 1
    mirostat_mu: float | None = None  # the surprise that mirostat allows, bits
    adaptive_sums: tuple[float, float] | None = None  # adaptive-p's weighted probabilities and weights
    pending: dict[str, tuple] = field(default_factory=dict)  # (ids, probabilities) that wait for the sampled token
    details: dict[str, dict[str, float]] = field(default_factory=dict)  # sampler: what it reports of this token
    temperature: float | None = None  # the temperature used, set by the temperature sampler
    entropy: float | None = None  # of the candidates that set a dynamic temperature, nats

    def tokens(self, scope: str) -> list[int]:
        """The ids that a penalty of this scope, one of SCOPES, counts."""
        return self.output_ids if scope == "output" else self.prompt_ids + self.output_ids


class Sampler(NamedTuple):
    """Whether the settings enable a sampler, and its function."""

    active: Callable[[SamplingParams], bool]
    apply: Callable


SAMPLERS = {
    "grammar": Sampler(is_constrained, constrain),
    "logit bias": Sampler(lambda p: len(p.logit_bias) > 0, penalties.logit_bias),
    "banned tokens": Sampler(lambda p: len(p.banned_tokens) > 0, penalties.banned_tokens),
    "min new tokens": Sampler(lambda p: p.min_new_tokens > 0, penalties.min_new_tokens),
    "repetition": Sampler(lambda p: p.repetition_penalty != 1, penalties.repetition),
    "n-gram": Sampler(lambda p: p.no_repeat_ngram_size > 0, penalties.ngram),
    "presence and frequency": Sampler(
        lambda p: any([p.presence_penalty, p.frequency_penalty]), penalties.presence_frequency
    ),
    "DRY": Sampler(lambda p: p.dry_multiplier > 0, penalties.dry),
    "temperature": Sampler(lambda p: p.temperature != 1 or p.dynamic_temperature, adaptive.temperature),
    "top-n-sigma": Sampler(lambda p: p.top_n_sigma > 0, truncation.top_n_sigma),
    "top-k": Sampler(lambda p: p.top_k > 0, truncation.top_k),
    "typical": Sampler(lambda p: p.typical_p < 1, truncation.typical),
    "top-p": Sampler(lambda p: p.top_p < 1, truncation.top_p),
    "min-p": Sampler(lambda p: p.min_p > 0, truncation.min_p),
    "epsilon": Sampler(lambda p: p.epsilon_cutoff > 0, truncation.epsilon),
    "eta": Sampler(lambda p: p.eta_cutoff > 0, truncation.eta),
    "XTC": Sampler(lambda p: p.xtc_probability > 0, truncation.xtc),
    "mirostat": Sampler(lambda p: p.mirostat_tau > 0, adaptive.mirostat),
    "adaptive-p": Sampler(lambda p: p.adaptive_target > 0, adaptive.adaptive_p),
}
_all_ids = cache(np.arange)


def is_active(name: str, params: SamplingParams) -> bool:
    """Whether the settings have a sampler run: enabled, and not replaced by mirostat."""
    return SAMPLERS[name].active(params) and not (params.mirostat_tau > 0 and name in TRUNCATION)


def apply_samplers(logits_V: np.ndarray, params: SamplingParams, state: SamplingState):
    """Runs the samplers in order; yields (name, active, ids_N, logits_N) for each: the candidates it kept, ascending by id.

    A sampler that would remove every candidate is skipped for this token and counts as not active.
    """
    state.temperature, state.entropy = 1.0, None
    state.details.clear()
    ids_N, logits_N = _all_ids(len(logits_V)), logits_V
    for name in ("grammar", *parse_order(params.order)):  # what a later one would remove of the last tokens, stays
        kept_N = SAMPLERS[name].apply(ids_N, logits_N, params, state) if is_active(name, params) else ((), ())
        active = len(kept_N[0]) > 0
        ids_N, logits_N = kept_N if active else (ids_N, logits_N)
        yield name, active, ids_N, logits_N
