"""The tokens that settings name by text or id: those to bias or to ban, and those that break a sequence for DRY."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache

from deepseek.settings.schema import shorten

MAX_BIAS = 100  # the limit of OpenAI's API
MAX_BREAKER_TOKENS = 20  # of a breaker's rest, after its first token, as in llama.cpp


@dataclass(frozen=True)
class TokenRules:
    """What the settings say of single tokens, in one model's ids."""

    bias: dict[int, float] = field(default_factory=dict)
    banned: list[tuple[int, ...]] = field(default_factory=list)  # sequences, each never to be completed
    breakers: dict[int, list[tuple[int, ...]]] = field(default_factory=dict)  # first token: the rest of each breaker
    eos_token_ids: frozenset[int] = frozenset()


def token_rules(params, tokenizer, vocab_size: int, eos_token_ids: Iterable[int]) -> TokenRules:
    """The rules of some settings. Raises ValueError for an id outside the vocabulary and a text without tokens."""
    bias: dict[int, float] = {}
    for item in params.logit_bias:
        name, amount = split_bias(item)
        for token in named_tokens("logit_bias", name, tokenizer, vocab_size):
            bias[token] = bias.get(token, 0.0) + amount
    banned = [ids for name in params.banned_tokens for ids in banned_sequences(name, tokenizer, vocab_size)]
    breakers = sequence_breakers(tokenizer, params.dry_sequence_breakers) if params.dry_multiplier else {}
    return TokenRules(bias, banned, breakers, frozenset(eos_token_ids))


def named_tokens(setting: str, name: str, tokenizer, vocab_size: int) -> tuple[int, ...]:
    """The ids that `name` stands for: a number is an id, anything else, or a number in double quotes, a text.

    Raises ValueError naming the setting.
    """
    if name.isdecimal():
        if int(name) >= vocab_size:
            raise ValueError(f"{setting} names token {name:.40}; it must be from 0 to {vocab_size - 1}.")
        return (int(name),)
    ids = tuple(tokenizer(unquote(name), add_special_tokens=False)["input_ids"])
    if not ids:
        raise ValueError(f"{setting} holds {name!r:.40}; it must be a text of at least one token.")
    return ids


def banned_sequences(name: str, tokenizer, vocab_size: int) -> list[tuple[int, ...]]:
    """The sequences that `name` bans: a token's id, or a text's tokens; a word also with the space before it."""
    names = [name] if name.isdecimal() or not unquote(name)[:1].isalnum() else [name, json.dumps(" " + unquote(name))]
    return list(dict.fromkeys(named_tokens("banned_tokens", each, tokenizer, vocab_size) for each in names))


def unquote(name: str) -> str:
    """The text in double quotes, as JSON writes it; any other text as it is."""
    try:
        text = json.loads(name) if name[:1] == '"' else name
    except ValueError:
        return name
    return text if isinstance(text, str) else name


def bias_items(value):
    """`logit_bias` as texts "TOKEN=BIAS", of OpenAI's {token: bias} and llama.cpp's [[token, bias], ...]; the rest unchanged."""
    pairs = list(value.items()) if isinstance(value, dict) else value
    if not isinstance(pairs, (list, tuple)):
        return value
    return [f"{p[0]}={p[1]}" if isinstance(p, (list, tuple)) and len(p) == 2 else p for p in pairs]


def split_bias(item: str) -> tuple[str, float]:
    """(token, bias) of "TOKEN=BIAS". Raises ValueError."""
    name, _, amount = item.rpartition("=")
    try:
        bias = float(amount)
    except ValueError:
        bias = float("nan")
    if not name or not -MAX_BIAS <= bias <= MAX_BIAS:
        rule = f"a token's id or text, =, and a number from -{MAX_BIAS} to {MAX_BIAS}"
        raise ValueError(f"logit_bias is {shorten(item)}; it must be {rule}.")
    return name, bias


@lru_cache(maxsize=4)
def vocabulary_texts(tokenizer) -> list[str]:
    """The text of every token of a tokenizer, by id."""
    return [tokenizer.decode([token]) for token in range(len(tokenizer))]


@lru_cache(maxsize=16)
def sequence_breakers(tokenizer, texts: tuple[str, ...]) -> dict[int, list[tuple[int, ...]]]:
    """{first token: [the other tokens, ...]} of all ways in which the texts of tokens can hold one of `texts`.

    As llama.cpp finds them: the first token holds the text, or ends with its beginning; the others are the tokens of its rest.
    """
    breakers: dict[int, list[tuple[int, ...]]] = {}
    for token, word in enumerate(vocabulary_texts(tokenizer)):
        for text in texts:
            if text in word:
                found = [()]
            else:
                rests = [text[n:] for n in range(1, len(text)) if word.endswith(text[:n])]
                found = [tuple(tokenizer(rest, add_special_tokens=False)["input_ids"]) for rest in rests]
            for rest in found:
                if rest[:MAX_BREAKER_TOKENS] not in breakers.setdefault(token, []):
                    breakers[token].append(rest[:MAX_BREAKER_TOKENS])
    return {token: rests for token, rests in breakers.items() if rests}
