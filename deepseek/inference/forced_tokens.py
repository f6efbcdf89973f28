"""Forced tokens as links, requests and the command line write them: a position in the output, a dash and a token's id."""

import re
from collections.abc import Iterable
from math import inf

PAIR = re.compile(r"(\d{1,9})-(\d{1,9})")


def parse_forced_tokens(pairs: Iterable[str], vocab_size: float = inf, name: str = "forced_tokens") -> dict[int, int]:
    """{position in the output, from 0: token's id} of texts such as "4-123". Raises ValueError, which calls them `name`."""
    if not isinstance(pairs, (list, tuple)):
        raise ValueError(
            f"{name} are {pairs!r:.40}; they must be a list of texts such as '4-123', a position and an id."
        )
    forced = {}
    for pair in pairs:
        match = PAIR.fullmatch(pair) if isinstance(pair, str) else None
        if not match or int(match[2]) >= vocab_size:
            below = "" if vocab_size == inf else f" below {vocab_size}"
            raise ValueError(f"{name} is {pair!r:.40}; it must be a position, a dash and a token's id{below}.")
        forced[int(match[1])] = int(match[2])
    return forced
