"""The order of the samplers: two named ones, any other, and what of it conflicts with the settings."""

from functools import cache

from deepseek.settings.schema import shorten

RULES = ("logit bias", "banned tokens", "min new tokens")
PENALTIES = ("repetition", "n-gram", "presence and frequency", "DRY")
TRUNCATION = ("top-n-sigma", "top-k", "typical", "top-p", "min-p", "epsilon", "eta", "XTC")
FEEDBACK = ("mirostat", "adaptive-p")
SAMPLER_ORDERS = {
    "transformers": (*RULES, *PENALTIES, "temperature", *TRUNCATION, *FEEDBACK),
    "llama.cpp": (*RULES, *PENALTIES, *TRUNCATION, "temperature", *FEEDBACK),
}
STAGES = SAMPLER_ORDERS["transformers"]
OTHER_NAMES = {  # of a stage, or of several, as other programs call them
    "penalties": "repetition, n-gram, presence and frequency",
    "typ p": "typical",
    "typical p": "typical",
    "temp": "temperature",
    "top n sigma": "top-n-sigma",
    "epsilon cutoff": "epsilon",
    "eta cutoff": "eta",
    "adaptive p": "adaptive-p",
}


@cache
def parse_order(order: str) -> tuple[str, ...]:
    """All samplers in the order that a setting names: a named order, or samplers with commas or semicolons between.

    A sampler that is not named comes after the one before it in the order `transformers`, mirostat and adaptive-p at the end.
    Raises ValueError.
    """
    if order in SAMPLER_ORDERS:
        return SAMPLER_ORDERS[order]
    plain = {_plain(name): name for name in STAGES}
    stages: list[str] = []
    for part in order.replace(";", ",").split(","):
        for name in OTHER_NAMES.get(_plain(part), part).split(","):
            if _plain(name) not in plain:
                rule = f"it must be {', '.join(SAMPLER_ORDERS)}, or some of {', '.join(STAGES)} with commas between"
                unknown = f", of which {shorten(name.strip())} is none" if name != order else ""
                raise ValueError(f"order is {shorten(order)}{unknown}; {rule}.")
            stages.append(plain[_plain(name)])
    if twice := {name for name in stages if stages.count(name) > 1}:
        raise ValueError(f"order is {shorten(order)}; it must name {', '.join(sorted(twice))} once.")
    for index, name in enumerate(STAGES):
        if name not in stages:
            after = len(stages) if name in FEEDBACK else stages.index(STAGES[index - 1]) + 1 if index else 0
            stages.insert(after, name)
    return tuple(stages)


def canonical_order(order: str) -> str:
    """The one way to write an order: its name, or all samplers with commas between. Raises ValueError."""
    stages = parse_order(order)
    return next((name for name, named in SAMPLER_ORDERS.items() if named == stages), ",".join(stages))


def conflicts(stages: tuple[str, ...], active: set[str], greedy: bool) -> list[str]:
    """What a reader should know of the samplers that the settings enable, `active`, in this order; one clause each.

    `greedy`: the temperature is 0.
    """
    used = [name for name in stages if name in active]
    cuts = [name for name in used if name in TRUNCATION]
    notes = []
    if "mirostat" in used:
        if cuts:
            notes.append(f"mirostat replaces {', '.join(cuts)}")
        used = [name for name in used if name not in cuts]
        cuts = ["mirostat"]
    if "XTC" in used and (before := [name for name in cuts if used.index(name) < used.index("XTC")]):
        notes.append(f"XTC after {', '.join(before)} can leave one token")
    first_cut = min((used.index(name) for name in cuts), default=len(used))
    for name in used[first_cut:]:
        if name in RULES or name == "n-gram":
            notes.append(f"{name} after {used[first_cut]} is skipped where it would leave no token")
        elif name in PENALTIES:
            notes.append(f"{name} after {used[first_cut]} brings back no token")
    if "adaptive-p" in used and used[-1] != "adaptive-p":
        notes.append(f"{used[-1]} after adaptive-p works on its curve, no longer on the model's probabilities")
    if greedy and "temperature" in used:
        if after := used[used.index("temperature") + 1 :]:
            notes.append(f"temperature 0 leaves one token to {', '.join(after)}")
        elif "XTC" in used:
            notes.append("temperature 0 takes the most likely token that XTC leaves")
    return notes


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("-", " ").replace("_", " ").split())
