"""Folders of weights: opening one safely, and committing a run's so that no crash can lose or corrupt it.

A commit is a folder `step-NNNNNN` that appears whole or not at all: it is written under another name, every file is
hashed into manifest.json and flushed to the disk, then the folder is renamed. The newest commit whose manifest
holds is the one a run goes on from.
"""

import hashlib
import json
import math
import os
import re
import shutil
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

from deepseek.folder import FolderError
from deepseek.folder import check as check_folder
from deepseek.model import DeepseekV3ForCausalLM

HUB_FILES = ["*.json", "model*.safetensors", "*.model", "*.txt", "*.jinja", "README.md"]
HUB_ID = r"[\w-][\w.-]*/[\w-][\w.-]*"
MANIFEST = "manifest.json"
STAGING = ".staging"
OPENED = ".opened"  # in a run: the name of the commit that is not pruned
CGROUP = Path("/sys/fs/cgroup")
CONTAINER = [  # files with a container's limit and use of memory, by the version of control groups
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
            folder = _downloaded(path, dtype, most)
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


def _downloaded(path: str, dtype: torch.dtype, most: int | None) -> Path:
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


def preferred_dtype() -> torch.dtype:
    """bfloat16 on a GPU, or a processor with bfloat16 instructions; elsewhere it is emulated, four times slower."""
    fast = torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast else torch.float32


def _check_size(path: str, folder: Path, config, kind, dtype: torch.dtype, most: int | None) -> None:
    """Refuses weights that config.json does not describe, or that memory cannot hold, before any is allocated."""
    held, names = numbers_held(folder)
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


def numbers_held(folder: Path) -> tuple[int, int]:
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
    for limit, used in CONTAINER:
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
    return hashlib.sha256("".join(_sha256(file) for file in files).encode()).hexdigest()


def export(source, target, dtype: torch.dtype = torch.bfloat16) -> None:
    """Copies the model and tokenizer of checkpoint `source` into folder `target`, weights as `dtype`."""
    model, tokenizer = load(source, dtype)  # not .to(dtype), which would round the router's fp32 bias too
    model.save_pretrained(target)
    if tokenizer is not None:
        tokenizer.save_pretrained(target)


def commit(run, step: int, write, keep: int = 2) -> Path:
    """Makes `run`/step-NNNNNN from what `write(folder)` puts into a folder; then drops all but the newest `keep`.

    What `hold` named stays as well. Commits of later steps go: they are damaged ones, behind which the run had to go back.
    """
    run = Path(run)
    staging, target = run / STAGING, run / f"step-{step:06d}"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        write(staging)
        hashes = {file.name: _sha256(file) for file in sorted(staging.iterdir())}
        (staging / MANIFEST).write_text(json.dumps(hashes, indent=1))
        for file in staging.iterdir():
            _flush(file)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)  # a full disk needs the room
        raise
    _flush(staging)
    shutil.rmtree(target, ignore_errors=True)  # a damaged commit of the same step
    staging.rename(target)
    _flush(run)
    made = commits(run)
    good = made[: made.index(target) + 1]
    for old in made:
        if old not in good[-keep:] and not (old in good and old.name == _held(run)):
            shutil.rmtree(old)
    return target


def hold(folder) -> None:
    """Keeps a commit that somebody has opened from being pruned, until another one of its run is held."""
    folder = Path(folder)
    if (folder / MANIFEST).is_file():
        with suppress(OSError):  # somebody else's folder, or a full disk
            (folder.parent / OPENED).write_text(folder.name)


def _held(run: Path) -> str:
    with suppress(OSError):
        return (run / OPENED).read_text()
    return ""


def commits(run) -> list[Path]:
    """The commit folders of a run, oldest first, damaged ones included."""
    folders = (path for path in Path(run).glob("step-*") if path.name[5:].isdecimal() and path.is_dir())
    return sorted(folders, key=lambda path: int(path.name[5:]))


def latest(run) -> Path | None:
    """The newest commit whose every file is as its manifest says, or None."""
    return next((path for path in reversed(commits(run)) if is_whole(path)), None)


def is_whole(folder: Path) -> bool:
    """Whether a commit holds exactly the files of its manifest, unchanged."""
    try:
        hashes = json.loads((folder / MANIFEST).read_text())
        names = {file.name for file in folder.iterdir()} - {MANIFEST}
        return names == set(hashes) and all(_sha256(folder / name) == value for name, value in hashes.items())
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Waits until a file's, or a folder's, content is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
