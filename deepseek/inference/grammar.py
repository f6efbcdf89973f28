"""Constrained output: a regular expression, a list of choices or a JSON schema that the whole output must match.

llguidance gives the tokens that may follow. It was chosen by measurement (docs/log.md): a pattern compiles within milliseconds,
and its limits bound the work and memory of any pattern, which a stranger may have sent.
"""

import json
import re
from functools import lru_cache

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, grammar_from, hf

from deepseek.settings.schema import shorten

CONSTRAINTS = {  # setting: what its value must be
    "regex": "a regular expression",
    "choice": "texts to choose from",
    "json_schema": "a JSON schema",
}
MAX_REPEATS = 1000  # a step of a{100000} takes 0.1 s
REPEATS = re.compile(r"(?<!\\)\{(\d+)(?:,(\d*))?\}")
LIMITS = LLParserLimits(
    step_lexer_fuel=100_000, max_lexer_states=20_000, max_grammar_size=100_000, verbose_errors=False
)
JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}  # as Python's json writes it


def is_constrained(params) -> bool:
    """Whether the settings constrain the output."""
    return any(getattr(params, name) for name in CONSTRAINTS)


def check_constraint(params) -> None:
    """Raises ValueError, naming the setting, for a constraint that cannot be followed and for two of them."""
    given = [name for name in CONSTRAINTS if getattr(params, name)]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} are given; only one of {', '.join(CONSTRAINTS)} may be.")
    for name in given:
        _compile(name, getattr(params, name))


@lru_cache(maxsize=64)
def _compile(name: str, value: str | tuple[str, ...]) -> str:
    """llguidance's form of a constraint. Raises ValueError."""
    try:
        for low, high in REPEATS.findall(value) if isinstance(value, str) else ():
            if int(high or low) > MAX_REPEATS:
                raise ValueError(f"it repeats something {int(high or low):,} times, {MAX_REPEATS:,} are allowed")
        if name == "choice":
            grammar = grammar_from("choice", json.dumps(value))
        elif name == "regex":
            grammar = LLMatcher.grammar_from_regex(value)
        else:
            grammar = LLMatcher.grammar_from_json_schema(value, overrides=JSON_STYLE)
        if error := LLMatcher.validate_grammar(grammar, limits=LIMITS):
            raise ValueError(error)
    except ValueError as error:
        raise ValueError(f"{name} is {shorten(value)}; it must be {CONSTRAINTS[name]}: {_reason(error)}.") from error
    return grammar


def _reason(error: ValueError | str) -> str:
    """The reason within llguidance's message, which may quote the whole pattern around it."""
    text = str(error)
    reason = re.search(r"^error: (.*)$", text, re.M) or re.match(r"(?:at \d+\(\d+\): )?(.{1,160})", text)
    return reason[1].rstrip(".")


class Grammar:
    """The constraint of one request, which moves with each token of its output."""

    def __init__(self, params, tokenizer, vocab_size: int, eos_token_ids: frozenset[int]):
        """Raises ValueError for a tokenizer that cannot be read, and for a constraint that no text follows."""
        self.name = next(name for name in CONSTRAINTS if getattr(params, name))
        self.vocab_size, self.eos_token_ids = vocab_size, eos_token_ids
        prepared = _prepare(tokenizer, vocab_size, eos_token_ids)
        self.matcher = LLMatcher(prepared, _compile(self.name, getattr(params, self.name)), log_level=0, limits=LIMITS)
        self.allowed_ids()

    def allowed_ids(self) -> np.ndarray:
        """The ids that may follow, ascending; an end token is one exactly when the output is complete. Raises ValueError."""
        mask = np.frombuffer(self.matcher.compute_bitmask(), np.uint8)
        self._check()
        return np.flatnonzero(np.unpackbits(mask, count=self.vocab_size, bitorder="little"))

    def accept(self, token: int) -> None:
        """Moves on by a token. Raises ValueError for one that is not allowed."""
        self.matcher.consume_token(token)
        self._check(f"token {token}")

    def _check(self, token: str = "any token") -> None:
        error = self.matcher.get_error()
        if "satisfy the grammar" in error or error.startswith("NoExtension"):
            raise ValueError(f"{self.name} does not allow {token} here; it must allow what is to be written.")
        if error:
            raise ValueError(f"{self.name} takes too much work here; it must be simpler: {_reason(error)}.")

    @property
    def is_complete(self) -> bool:
        """Whether the output matches as it is."""
        return self.matcher.is_accepting()

    @property
    def is_finished(self) -> bool:
        """Whether the output matches and nothing more may follow."""
        return self.matcher.is_stopped()


@lru_cache(maxsize=4)
def _prepare(tokenizer, vocab_size: int, eos_token_ids: frozenset[int]) -> LLTokenizer:
    """A tokenizer's vocabulary as llguidance reads it. Raises ValueError."""
    try:
        return hf.from_tokenizer(tokenizer, n_vocab=vocab_size, eos_token=sorted(eos_token_ids) or None)
    except Exception as error:
        raise ValueError(f"the tokenizer cannot be constrained: {str(error).splitlines()[0]:.100}.") from error


def constrain(ids_V, logits_V, params, state):
    """Keeps the tokens with which the output can still match, and the end token once it does (Willard and Louf 2023)."""
    allowed = state.grammar.allowed_ids()
    return ids_V[allowed], logits_V[allowed]
