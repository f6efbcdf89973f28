"""A setting is declared once, as a dataclass field: `validate` checks it, `add_arguments` makes it a flag, the page a control.

Its type is bool, int, float, str, one of these or None, or list[...] or tuple[..., ...] of one of these.
"""

import argparse
import math
import sys
from dataclasses import MISSING, Field, field, fields
from types import UnionType
from typing import get_args, get_origin

from deepseek.settings.aliases import ALIASES

NOUNS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def setting(default, help: str, low=None, high=None, choices=None, max_items=None, **page):
    """A dataclass field. `low` and `high` bound a number's value or a string's length, `max_items` a list's length.

    `page` is for the page alone: `slider` (low, high, step), `label`.
    """
    metadata = dict(help=help, low=low, high=high, choices=choices, max_items=max_items, **page)
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def item_type(f: Field) -> type:
    """The type of a setting, or of the items of a list or tuple: bool, int, float or str."""
    return next((t for t in get_args(f.type) if t in NOUNS), None) or f.type


def holds_several(f: Field) -> bool:
    """Whether a setting is a list or a tuple."""
    return get_origin(f.type) in (list, tuple)


def allowed_values(f: Field) -> str:
    """The values a setting may have, in words."""
    noun, low, high, max_items = NOUNS[item_type(f)], f.metadata["low"], f.metadata["high"], f.metadata["max_items"]
    if f.metadata["choices"]:
        return f"one of {', '.join(f.metadata['choices'])}"
    if item_type(f) is not str:
        return noun if low is None else f"{noun} from {low} to {high or 'infinity'}"
    length = "" if low is None else f" of {low} to {high} characters"
    return f"at most {max_items} texts{length}" if max_items else noun + length


def validate(settings) -> None:
    """Checks and converts every field of a dataclass of settings in place.

    Raises ValueError naming the field, its value and what is allowed.
    """
    for f in fields(settings):
        value = getattr(settings, f.name)
        if value is None and isinstance(f.type, UnionType):
            continue
        converted = _convert_items(f, value) if holds_several(f) else _convert(f, value, value)
        object.__setattr__(settings, f.name, converted)


def _convert_items(f: Field, value):
    container, max_items = get_origin(f.type), f.metadata["max_items"]
    items = [value] if isinstance(value, str) and container is tuple else value
    if not isinstance(items, (list, tuple)):
        raise _error(f, value, "a list")
    if max_items and len(items) > max_items:
        raise _error(f, value)
    return container(_convert(f, item, value if max_items else item) for item in items)


def _convert(f: Field, item, shown):
    """`item` in the setting's type; an error shows `shown` as the value."""
    to_type, low, high = item_type(f), f.metadata["low"], f.metadata["high"]
    if to_type in (int, float):
        finite = isinstance(item, (int, float)) and abs(item) <= sys.float_info.max and not isinstance(item, bool)
        valid, size = finite and (to_type is float or item == int(item)), item
    else:
        valid, size = isinstance(item, to_type), len(item) if isinstance(item, str) else 0
    if valid and low is not None:
        valid = low <= size <= (high or math.inf)
    if not valid or f.metadata["choices"] and item not in f.metadata["choices"]:
        raise _error(f, shown)
    return to_type(item)


def _error(f: Field, value, allowed: str = "") -> ValueError:
    return ValueError(f"{f.name} is {shorten(value)}; it must be {allowed or allowed_values(f)}.")


def shorten(value) -> str:
    """A value as an error shows it."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def from_text(f: Field, text: str):
    """One item of a setting from text; returns text that cannot be converted unchanged, for `validate` to refuse."""
    to_type = item_type(f)
    if to_type is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        return to_type(text)
    except ValueError:
        return text


def flag(f: Field) -> str:
    """A setting's flag on the command line."""
    return "--" + f.name.replace("_", "-")


class _Append(argparse.Action):
    """Collects the values of a flag; the first takes the place of the default."""

    def __call__(self, parser, namespace, value, option_string=None):
        items = getattr(namespace, self.dest)
        setattr(namespace, self.dest, [value] if items is self.default else [*items, value])


def add_arguments(parser: argparse.ArgumentParser, settings_class) -> None:
    """Adds a flag for every field of a dataclass of settings; old names work too and are not listed."""
    for f in fields(settings_class):
        default = f.default if f.default is not MISSING else f.default_factory()
        choices, help = f.metadata["choices"], f.metadata["help"]
        if default not in (None, "", [], (), False):
            help += f" ({default})"
        options = dict(dest=f.name)
        if item_type(f) is bool:
            options |= dict(action="store_true")
        elif get_origin(f.type) is tuple:
            options |= dict(action=_Append, default=list(default))
        else:
            options |= dict(type=item_type(f), default=default, nargs="+" if holds_several(f) else None)
            options |= dict(metavar="|".join(choices) if choices else f.name.upper())
        parser.add_argument(flag(f), **options, help=help.replace("%", "%%"))
        hidden = {**options, "default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
        for old_name in (old for old, present in ALIASES.items() if present == f.name):
            parser.add_argument("--" + old_name.replace("_", "-"), **hidden)
