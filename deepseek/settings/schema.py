"""A setting declared once, as a dataclass field: `validate` checks it, `add_arguments` makes it a flag, the page a control.

Field types are bool, int, float, str, one of these or None, or list[...] and tuple[..., ...] of one of these.
"""

import argparse
import math
from dataclasses import MISSING, Field, field, fields
from types import UnionType
from typing import get_args, get_origin

from deepseek.settings.aliases import old_names

NOUNS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def setting(default, help: str, low=None, high=None, choices=None, max_items=None, **page):
    """A dataclass field. `low` and `high` bound a number's value or a text's length, `max_items` a list's length.

    `page` is what only the page reads: `slider` (low, high, step), `label`.
    """
    metadata = dict(help=help, low=low, high=high, choices=choices, max_items=max_items, **page)
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def default_of(f: Field):
    """The default of a dataclass field."""
    return f.default if f.default is not MISSING else f.default_factory()


def item_type(f: Field) -> type:
    """The type of a setting, or of the items of one that holds several: bool, int, float or str."""
    return next((t for t in get_args(f.type) if t in NOUNS), None) or f.type


def holds_several(f: Field) -> bool:
    """Whether a setting is a list or a tuple."""
    return get_origin(f.type) in (list, tuple)


def allowed_values(f: Field) -> str:
    """What a setting may be, in words."""
    known, noun = f.metadata, NOUNS[item_type(f)]
    if known["choices"]:
        return f"one of {', '.join(known['choices'])}"
    if item_type(f) is str:
        limits = "" if known["low"] is None else f" of {known['low']} to {known['high']} characters"
        return f"at most {known['max_items']} texts{limits}" if known["max_items"] else noun + limits
    return noun if known["low"] is None else f"{noun} from {known['low']} to {known['high'] or 'infinity'}"


def validate(settings) -> None:
    """Checks and converts every field of a dataclass of settings in place.

    Raises ValueError naming the field, its value and what is allowed.
    """
    for f in fields(settings):
        value = getattr(settings, f.name)
        if value is None and isinstance(f.type, UnionType):
            continue
        if holds_several(f):
            several = [value] if isinstance(value, str) and get_origin(f.type) is tuple else value
            if not isinstance(several, (list, tuple)):
                raise ValueError(f"{f.name} is {shorten(value)}; it must be a list.")
            if len(several) > (f.metadata["max_items"] or math.inf):
                raise refused(f, value)
            value = get_origin(f.type)(
                _checked(f, item, value if f.metadata["max_items"] else item) for item in several
            )
        else:
            value = _checked(f, value, value)
        object.__setattr__(settings, f.name, value)


def _checked(f: Field, value, shown):
    """One value of a setting in the setting's type; a refusal shows `shown`."""
    kind, known = item_type(f), f.metadata
    if kind in (int, float):
        right = isinstance(value, (int, float)) and not isinstance(value, bool)
        right = right and (isinstance(value, int) or math.isfinite(value))
        right = right and (kind is float or value == int(value))
        size = value
    else:
        right = isinstance(value, kind)
        size = len(value) if right and kind is str else 0
    if right and known["low"] is not None:
        right = known["low"] <= size <= (known["high"] or math.inf)
    if not right or known["choices"] and value not in known["choices"]:
        raise refused(f, shown)
    return kind(value)


def refused(f: Field, value) -> ValueError:
    """The error for a value that a setting cannot have."""
    return ValueError(f"{f.name} is {shorten(value)}; it must be {allowed_values(f)}.")


def from_text(f: Field, text: str):
    """One value of a setting from text; text that is none stays as it is, for `validate` to refuse."""
    kind = item_type(f)
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        return kind(text)
    except ValueError:
        return text


def shorten(value) -> str:
    """A value as it is written, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def flag(f: Field) -> str:
    """The command line's name of a setting."""
    return "--" + f.name.replace("_", "-")


def add_arguments(parser: argparse.ArgumentParser, settings_class) -> None:
    """A flag for every field of a dataclass of settings; their old names work too and are not listed."""
    for f in fields(settings_class):
        default, known = default_of(f), f.metadata
        options = dict(dest=f.name)
        if item_type(f) is bool:
            options |= dict(action="store_true")
        elif get_origin(f.type) is tuple:
            options |= dict(action="append", default=[])
        else:
            options |= dict(type=item_type(f), default=default, nargs="+" if holds_several(f) else None)
            options |= dict(metavar="|".join(known["choices"]) if known["choices"] else f.name.upper())
        shown = f"{known['help']} ({default})" if default not in (None, "", [], (), False) else known["help"]
        parser.add_argument(flag(f), **options, help=shown.replace("%", "%%"))
        for name in old_names(f.name):
            old = {**options, "default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
            parser.add_argument("--" + name.replace("_", "-"), **old)
