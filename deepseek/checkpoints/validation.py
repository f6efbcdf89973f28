"""Checks a checkpoint's folder before any library reads it.

It must hold ordinary files, all inside it, that ask for no more memory, time or code than a model needs.
"""

import json
import re
import stat
from fnmatch import fnmatch
from pathlib import Path

MAX_LAYERS = 512
OTHER_WEIGHTS = (".bin", ".gguf", ".h5", ".msgpack", ".onnx", ".pt", ".pth", ".safetensors")
MAX_CONFIG_BYTES = 2**20
MAX_JSON_BYTES = 2**26  # of any other .json or .jinja file; the largest tokenizers of public models have half of that
MAX_HEADER_BYTES = 2**24  # of a .safetensors file; safetensors itself reads up to 100 MB
MAX_PATTERN_CHARACTERS = 10_000  # of a tokenizer's regular expression
CLASS_NAMES = re.compile(r"\b\w+(?:Error|Exception): |<class '(?:\w+\.)*(\w+)'>")
DEQUANTIZED = ("fp8", "mxfp4")  # formats that transformers converts where no GPU computes in them
GROUP = re.compile(r"\(((?:[^()\\]|\\.)*)\)([+*{]?)")  # an innermost group and its quantifier


class FolderError(ValueError):
    """A checkpoint that is not opened; the message continues a sentence that begins with its name."""


def first_sentence(error: Exception) -> str:
    """The first sentence of an error's message, in one line, without the names of Python's classes."""
    text = CLASS_NAMES.sub(r"\1", " ".join(str(error).split())) or "no reason is known"
    if isinstance(error, KeyError):  # its message is the key alone
        text = f"{text} is unknown"
    return re.split(r"(?<=[.!?]) ", text)[0][:300].rstrip(".") + "."


def check_weights(names) -> None:
    """Raises FolderError for a folder whose files, by their `names`, hold no weights of a whole model in safetensors."""
    if any(fnmatch(name, "model*.safetensors") for name in names):
        return
    if "adapter_config.json" in names:
        raise FolderError("is an adapter, which changes another model; merge it into that one and open the result.")
    other = next((name for name in sorted(names) if Path(name).suffix in OTHER_WEIGHTS), None)
    its_own = f"; its weights are in {other!r:.60}, a format that is not opened" if other else ""
    raise FolderError(f"has no model*.safetensors file{its_own}.")


def check_quantization(config: dict) -> str | None:
    """The format that a config.json names for quantized weights, None for none. Raises FolderError for one that is not read."""
    quantization = config.get("quantization_config") or {}
    method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
    if method not in (None, *DEQUANTIZED):
        rule = "its weights must be fp32, bf16, fp16, fp8 or mxfp4; open the checkpoint that it was made from"
        raise FolderError(f"is quantized by {method!r:.40}; {rule}.")
    return method


def validate_folder(folder: Path) -> None:
    """Raises FolderError for a folder that must not be opened."""
    for file in folder.iterdir():
        _check_file(folder, file)
    if _read_object(folder / "config.json", _check_config).get("transformers_weights"):
        raise FolderError("names its weights in config.json (transformers_weights); they must be model*.safetensors.")
    index = folder / "model.safetensors.index.json"
    if index.exists():
        weight_map = _read_object(index).get("weight_map")
        for name in set(weight_map.values()) if isinstance(weight_map, dict) else [weight_map]:
            if not (isinstance(name, str) and name == Path(name).name and (folder / name).is_file()):
                raise FolderError(f"has an index that names {name!r:.60}; it must name files of the folder.")
    if (folder / "tokenizer.json").exists():
        _read_object(folder / "tokenizer.json", _check_pattern)


def _check_file(folder: Path, file: Path) -> None:
    # The Hub's cache keeps the files of a snapshot two folders up, in blobs/.
    roots = (folder.resolve(), folder.absolute().parent.parent.resolve() / "blobs")
    if file.is_symlink() and not any(file.resolve().is_relative_to(root) for root in roots):
        raise FolderError(f"has a link {file.name!r:.60} that leads out of it; all files must be inside.")
    mode, size = file.stat().st_mode, file.stat().st_size
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise FolderError(f"has {file.name!r:.60}, which is a pipe, a socket or a device; it must be a file.")
    max_bytes = MAX_CONFIG_BYTES if file.name == "config.json" else MAX_JSON_BYTES
    if file.suffix in (".json", ".jinja") and size > max_bytes:
        raise FolderError(f"has {file.name!r:.60} of {size:,} bytes; it must have {max_bytes:,} at most.")
    if file.suffix == ".safetensors" and stat.S_ISREG(mode) and not file.name.startswith("."):
        with file.open("rb") as content:
            header = int.from_bytes(content.read(8), "little")
        if header > min(MAX_HEADER_BYTES, size - 8):
            allowed = f"{MAX_HEADER_BYTES:,} at most, and the file must hold it"
            sizes = f"{size:,} bytes with a header of {header:,}"
            raise FolderError(f"has {file.name!r:.60} of {sizes}; it must have {allowed}.")


def _read_object(file: Path, check=None) -> dict:
    """The object in a .json file; `check` takes and returns every object at any depth of it."""
    try:
        value = json.loads(file.read_text("utf-8"), object_hook=check)
    except FolderError:
        raise
    except (ValueError, RecursionError) as error:
        raise FolderError(f"has a {file.name} that is not JSON ({str(error)[:100]}).") from error
    if not isinstance(value, dict):
        raise FolderError(f"has a {file.name} that is {value!r:.40}; it must be an object.")
    return value


def _check_config(config: dict) -> dict:
    """Refuses an absurd number of layers, and names of code on the Hub."""
    for name, value in config.items():
        if "layers" in name and isinstance(value, (int, float)) and not 0 <= value <= MAX_LAYERS:  # also NaN
            raise FolderError(f"has {name} {value!r:.40} in its config.json; it must be from 0 to {MAX_LAYERS}.")
        elif name.endswith("_implementation") and "/" in str(value):
            raise FolderError(f"asks for {name} {value!r:.60}, which is code from elsewhere; that stays off.")
    return config


def _check_pattern(value: dict) -> dict:
    """Refuses a regular expression that can take a time exponential in the length of a text."""
    pattern = value.get("Regex")
    if isinstance(pattern, str) and is_exponential(pattern):
        raise FolderError(f"has a tokenizer with the pattern {pattern!r:.60}; it must not repeat repetitions.")
    return value


def is_exponential(pattern: str) -> bool:
    """Whether a regular expression repeats a group that holds a repetition or an alternative, or is very long."""
    if len(pattern) > MAX_PATTERN_CHARACTERS:
        return True
    while groups := GROUP.findall(pattern):
        if any(quantifier and set(inside) & set("+*|") for inside, quantifier in groups):
            return True
        # Replace each innermost group by whether it holds a repetition or an alternative.
        pattern = GROUP.sub(lambda group: "x+" if group[2] or set(group[1]) & set("+*|") else "x", pattern)
    return False
