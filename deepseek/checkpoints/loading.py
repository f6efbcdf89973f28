"""Folders of weights: opening one safely, and committing a run's so that no crash can lose or corrupt it.

A commit is a folder `step-NNNNNN` that appears whole or not at all: it is written under another name, every file is
hashed into manifest.json and flushed to the disk, then the folder is renamed. The newest commit whose manifest
holds is the one a run goes on from.
"""

import hashlib
import math
import re
from contextlib import suppress
from pathlib import Path

import torch
from huggingface_hub import get_safetensors_metadata, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    NotASafetensorsRepoError,
    SafetensorsParsingError,
)
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from deepseek.checkpoints.saving import sha256
from deepseek.checkpoints.validation import FolderError
from deepseek.checkpoints.validation import validate_folder as check_folder
from deepseek.model.cpu_features import preferred_dtype
from deepseek.model.deepseek_v3 import DeepseekV3ForCausalLM

HUB_FILES = ["*.json", "model*.safetensors", "*.model", "*.txt", "*.jinja", "README.md"]
HUB_ID = r"[\w-][\w.-]*/[\w-][\w.-]*"
CGROUP = Path("/sys/fs/cgroup")
CGROUP_MEMORY_FILES = [  # files with a container's limit and use of memory, by the version of control groups
    (CGROUP / "memory.max", CGROUP / "memory.current"),
    (CGROUP / "memory/memory.limit_in_bytes", CGROUP / "memory/memory.usage_in_bytes"),
]


class CheckpointError(ValueError):
    """A folder or Hub id that cannot be opened; the message is one sentence that says why."""


def load(path, dtype: torch.dtype | None = None, most: int | None = None):
    """Opens a folder or a Hub id; returns (model in eval mode, tokenizer or None where the folder has none).

    Only safetensors weights are read and no code of the checkpoint is ever run. A DeepSeek-V3 checkpoint opens in this
    package's own model, anything else in transformers' class for it. `dtype` defaults to bfloat16 where the
    processor computes in it and float32 elsewhere. What needs more memory than is free, or than `most` bytes, is
    refused before anything of it is read or downloaded. Raises CheckpointError.
    """
    path = str(path)
    folder = Path(path)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"checkpoint {path!r} has no config.json; a checkpoint is a folder with one.")
        if not any(folder.glob("*.safetensors")):
            raise CheckpointError(f"checkpoint {path!r} has no .safetensors file; other weight formats are not opened.")
    elif not re.fullmatch(HUB_ID, path):
        raise CheckpointError(f"checkpoint {path!r} is neither a folder nor a Hub id such as name/model.")
    transformers_logging.disable_progress_bar()
    dtype = dtype or preferred_dtype()
    try:
        if not folder.is_dir():
            folder = _download(path, dtype, most)
        check_folder(folder)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        kind = DeepseekV3ForCausalLM if config.model_type == "deepseek_v3" else AutoModelForCausalLM
        _check_size(path, folder, config, kind, dtype, most)
        model, info = kind.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, with the tensor's name
        )
    except CheckpointError:
        raise
    except FolderError as error:
        raise CheckpointError(f"checkpoint {path!r} {error}") from error
    except Exception as error:  # damaged json, truncated tensors, wrong shapes, no network: one sentence for all
        raise CheckpointError(f"checkpoint {path!r} cannot be opened: {_first_sentence(error)}") from error
    if info["mismatched_keys"]:
        name, stored, wanted = sorted(info["mismatched_keys"])[0]
        raise CheckpointError(
            f"checkpoint {path!r} holds {name!r} as {list(stored)} where its config.json says {list(wanted)}."
        )
    if info["missing_keys"]:
        raise CheckpointError(f"checkpoint {path!r} lacks the tensor {sorted(info['missing_keys'])[0]!r}.")
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"checkpoint {path!r} has numbers in {name!r} that are not finite; all must be.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception:  # no tokenizer in the folder, or one of a kind that needs more than this package
        tokenizer = None
    if tokenizer is not None and not tokenizer.vocab_size:  # what transformers makes of no files for some models
        tokenizer = None
    if tokenizer is not None and len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        raise CheckpointError(
            f"checkpoint {path!r} has a tokenizer of {len(tokenizer):,} tokens where its config.json says "
            f"{model.config.vocab_size:,}."
        )
    model.name_or_path = path
    return model.eval(), tokenizer


def _download(path: str, dtype: torch.dtype, most: int | None) -> Path:
    """The folder on this machine with the files of a Hub id, fetched if they are not here yet.

    Only weights as safetensors and text files are fetched, after the headers of the weights have told their size.
    """
    try:
        sizes = get_safetensors_metadata(path).parameter_count
    except NotASafetensorsRepoError as error:
        raise CheckpointError(
            f"checkpoint {path!r} has no .safetensors file; other weight formats are not opened."
        ) from error
    except (HfHubHTTPError, SafetensorsParsingError):  # the Hub's own answer: no such model, or not for everyone
        raise
    except Exception as error:  # offline by choice or not, which the HTTP libraries tell in errors of their own
        try:
            return Path(snapshot_download(path, local_files_only=True))
        except LocalEntryNotFoundError:
            raise CheckpointError(
                f"checkpoint {path!r} is not on this machine, and the Hub is out of reach: {_first_sentence(error)}"
            ) from error
    _check_memory(path, sum(sizes.values()) * dtype.itemsize, most)
    return Path(snapshot_download(path, allow_patterns=HUB_FILES))


def _check_size(path: str, folder: Path, config, kind, dtype: torch.dtype, most: int | None) -> None:
    """Refuses weights that config.json does not describe, or that memory cannot hold, before any is allocated."""
    held, names = count_stored_parameters(folder)
    layers = config.get_text_config().num_hidden_layers
    if 4 * layers > names:  # a layer has that many at the least
        raise CheckpointError(f"checkpoint {path!r} has {names} tensors for {layers:,} layers.")
    with torch.device("meta"):
        model = kind._from_config(config) if kind is DeepseekV3ForCausalLM else kind.from_config(config)
    described = sum(parameter.numel() for parameter in model.parameters())
    described += max(0, sum(buffer.numel() for buffer in model.buffers()) - 2**26)  # masks and angles take some
    if described > 2 * held:
        raise CheckpointError(
            f"checkpoint {path!r} holds {held:,} numbers where its config.json describes {described:,}."
        )
    _check_memory(path, described * dtype.itemsize, most)


def _check_memory(path: str, needed: int, most: int | None) -> None:
    """Refuses `needed` bytes where fewer are free, or more than `most` of them."""
    free = free_memory()
    for limit, state in ((free, "are free"), (most, "are allowed here")):
        if limit is not None and needed > limit:
            raise CheckpointError(
                f"checkpoint {path!r} needs {needed / 2**30:.1f} GiB of memory; {limit / 2**30:.1f} GiB {state}."
            )


def count_stored_parameters(folder: Path) -> tuple[int, int]:
    """(numbers, tensors) in the weight files of a folder, read from their headers."""
    numbers, names = 0, 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (not a dict)
                numbers += math.prod(tensors.get_slice(name).get_shape())
                names += 1
    return numbers, names


def free_memory() -> int | None:
    """Bytes that a new program can have: of the machine, or of the container's limit where that leaves less.

    None where the system does not tell.
    """
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None
    for limit, used in CGROUP_MEMORY_FILES:
        with suppress(OSError, ValueError):  # no such file, or no limit
            stat = dict(line.split() for line in (limit.parent / "memory.stat").read_text().splitlines())
            cached = int(stat["inactive_file"]) + int(stat["active_file"])  # given back when it is asked for
            free = min(free, int(limit.read_text()) - int(used.read_text()) + cached)
    return free


def _first_sentence(error: Exception) -> str:
    """The first sentence of what an error says."""
    text = " ".join(str(error).split()) or type(error).__name__
    return re.split(r"(?<=[.!?]) ", text)[0][:300].rstrip(".") + "."


def fingerprint(path) -> str:
    """sha256 over the weight files of a folder, or the commit of a Hub id: two alike hold the same weights.

    "" for what is gone.
    """
    files = sorted(Path(path).glob("*.safetensors"))
    if not files:
        with suppress(OSError):
            return AutoConfig.from_pretrained(str(path))._commit_hash or ""
        return ""
    return hashlib.sha256("".join(sha256(file) for file in files).encode()).hexdigest()


def export(source, target, dtype: torch.dtype = torch.bfloat16) -> None:
    """Copies the model and tokenizer of checkpoint `source` into folder `target`, weights as `dtype`."""
    model, tokenizer = load(source, dtype)  # not .to(dtype), which would round the router's fp32 bias too
    model.save_pretrained(target)
    if tokenizer is not None:
        tokenizer.save_pretrained(target)
