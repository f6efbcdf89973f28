"""What a checkpoint's folder must be before a library reads it: ordinary files, all inside it, that do not ask for more
memory, time or code than a model needs.
"""

import json
import re
import stat
from pathlib import Path

from deepseek.model.config import MAX_LAYERS

MAX_CONFIG_BYTES = 2**20  # bytes of config.json
MAX_JSON_BYTES = 2**26  # bytes of any other .json; the largest tokenizers of public models have half of that
MAX_HEADER_BYTES = 2**24  # bytes of the header of a .safetensors file; safetensors itself reads up to 100 MB
MAX_PATTERN_CHARACTERS = 10_000  # characters of a tokenizer's regular expression
GROUP = re.compile(r"\(((?:[^()\\]|\\.)*)\)([+*{]?)")  # an innermost group and how it is repeated


class FolderError(ValueError):
    """A folder that is not opened; the message goes on from its name."""


def validate_folder(folder: Path) -> None:
    """Raises FolderError for a folder that must not be opened."""
    for file in folder.iterdir():
        _check_file(folder, file)
    config = _object(folder / "config.json")
    if config.get("transformers_weights"):
        raise FolderError("names its weights in config.json (transformers_weights); they must be model*.safetensors.")
    _check_values(config)
    index = folder / "model.safetensors.index.json"
    if index.exists():
        parts = _object(index).get("weight_map")
        for name in set(parts.values()) if isinstance(parts, dict) else [parts]:
            if not (isinstance(name, str) and name == Path(name).name and (folder / name).is_file()):
                raise FolderError(
                    f"has an index that names {name!r:.60}; it must name .safetensors files of the folder."
                )
    if (folder / "tokenizer.json").exists():
        _check_patterns(_object(folder / "tokenizer.json"))


def _check_file(folder: Path, file: Path) -> None:
    """Refuses what is no file in the folder, or one larger than what it is for."""
    # The cache of the Hub keeps the files of a snapshot elsewhere: two folders up, in blobs/.
    places = (folder.resolve(), folder.absolute().parent.parent.resolve() / "blobs")
    if file.is_symlink() and not any(file.resolve().is_relative_to(place) for place in places):
        raise FolderError(f"has a link {file.name!r:.60} that leads out of it; all files must be inside.")
    kind = file.stat()
    if not (stat.S_ISREG(kind.st_mode) or stat.S_ISDIR(kind.st_mode)):
        raise FolderError(f"has {file.name!r:.60}, which is a pipe, a socket or a device; it must be a file.")
    most = MAX_CONFIG_BYTES if file.name == "config.json" else MAX_JSON_BYTES
    if file.suffix in (".json", ".jinja") and kind.st_size > most:
        raise FolderError(f"has {file.name!r:.60} of {kind.st_size:,} bytes; it must have {most:,} at most.")
    if file.suffix == ".safetensors" and stat.S_ISREG(kind.st_mode):
        with file.open("rb") as data:
            header = int.from_bytes(data.read(8), "little")
        if header > min(MAX_HEADER_BYTES, kind.st_size - 8):
            raise FolderError(
                f"has {file.name!r:.60} of {kind.st_size:,} bytes with a header of {header:,}; it must have "
                f"{MAX_HEADER_BYTES:,} at most, and the file must hold it."
            )


def _object(file: Path) -> dict:
    """The JSON object in a file."""
    try:
        value = json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise FolderError(f"has a {file.name} that is not JSON ({str(error)[:100]}).") from error
    if not isinstance(value, dict):
        raise FolderError(f"has a {file.name} that is {value!r:.40}; it must be an object.")
    return value


def _check_values(config: dict) -> None:
    """Refuses a number of layers that no model has, at any depth, and what would have code fetched from the Hub."""
    for name, value in config.items():
        if isinstance(value, dict):
            _check_values(value)
        elif "layers" in name and isinstance(value, (int, float)) and not 0 <= value <= MAX_LAYERS:  # NaN neither
            raise FolderError(f"has {name} {value!r:.40} in its config.json; it must be from 0 to {MAX_LAYERS}.")
        elif name.endswith("_implementation") and "/" in str(value):
            raise FolderError(f"asks for {name} {value!r:.60}, which is code from elsewhere; that stays off.")


def _check_patterns(tokenizer) -> None:
    """Refuses regular expressions that can take a time exponential in the length of a text."""
    rest = [tokenizer]
    while rest:
        value = rest.pop()
        if isinstance(value, list):
            rest += value if not value or isinstance(value[0], (dict, list)) else []
        elif isinstance(value, dict):
            pattern = value.get("Regex")
            if isinstance(pattern, str) and is_exponential(pattern):
                raise FolderError(f"has a tokenizer with the pattern {pattern!r:.60}; it must not repeat repetitions.")
            rest += [one for name, one in value.items() if name != "vocab" and isinstance(one, (dict, list))]


def is_exponential(pattern: str) -> bool:
    """Whether a regular expression repeats a group that holds a repetition or a choice; also if it is very long."""
    if len(pattern) > MAX_PATTERN_CHARACTERS:
        return True
    before = None
    while pattern != before:
        before = pattern
        if any(again and set(inside) & set("+*|") for inside, again in GROUP.findall(pattern)):
            return True
        # What is left of a group is whether it holds a repetition or a choice.
        pattern = GROUP.sub(lambda group: "x+" if group[2] or set(group[1]) & set("+*|") else "x", pattern)
    return False
