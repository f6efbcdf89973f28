"""Opens untrusted checkpoints: no code of theirs runs, and what memory cannot hold is refused before it is read."""

import hashlib
import math
import re
from contextlib import suppress
from pathlib import Path

import torch
from huggingface_hub import errors, get_safetensors_metadata, snapshot_download
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from deepseek.checkpoints.saving import sha256
from deepseek.checkpoints.validation import FolderError, validate_folder
from deepseek.model.cpu_features import preferred_dtype
from deepseek.model.deepseek_v3 import DeepseekV3ForCausalLM

HUB_FILES = ["*.json", "model*.safetensors", "*.model", "*.txt", "*.jinja", "README.md"]
HUB_ID = r"[\w-][\w.-]*/[\w-][\w.-]*"
NO_SAFETENSORS = "has no .safetensors file; other weight formats are not opened."
CGROUP_MEMORY_FILES = [  # (limit, usage) of a container's memory, in versions 2 and 1 of control groups
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
]


class CheckpointError(ValueError):
    """A folder or Hub id that cannot be opened; the message is one sentence that says why."""


def load(path, dtype: torch.dtype | None = None, max_bytes: int | None = None):
    """Opens a folder or a Hub id; returns (model in eval mode, tokenizer or None if the folder has none).

    Only safetensors weights are read. A DeepSeek-V3 checkpoint opens in this package's own model, any other in the
    class that transformers has for it. `dtype` defaults to bfloat16 where the CPU computes in it, else to float32.
    Raises CheckpointError, also for a model that needs more memory than is free, or more than `max_bytes`, before any of
    it is read or downloaded.
    """
    path = str(path)
    transformers_logging.disable_progress_bar()
    try:
        model, tokenizer = _load(path, dtype or preferred_dtype(), max_bytes)
    except FolderError as error:
        raise CheckpointError(f"checkpoint {path!r} {error}") from error
    except Exception as error:  # damaged JSON, truncated tensors, no network: one sentence for all
        raise CheckpointError(f"checkpoint {path!r} cannot be opened: {_first_sentence(error)}") from error
    model.name_or_path = path
    return model.eval(), tokenizer


def _load(path: str, dtype: torch.dtype, max_bytes: int | None):
    folder = Path(path)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise FolderError("has no config.json; a checkpoint is a folder with one.")
        if not any(folder.glob("*.safetensors")):
            raise FolderError(NO_SAFETENSORS)
    elif re.fullmatch(HUB_ID, path):
        folder = _download(path, dtype, max_bytes)
    else:
        raise FolderError("is neither a folder nor a Hub id such as name/model.")
    validate_folder(folder)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    model_class = DeepseekV3ForCausalLM if config.model_type == "deepseek_v3" else AutoModelForCausalLM
    _check_size(folder, config, model_class, dtype, max_bytes)
    options = dict(config=config, dtype=dtype, use_safetensors=True, trust_remote_code=False)
    options |= dict(output_loading_info=True, ignore_mismatched_sizes=True)  # refused below, with the tensor's name
    model, info = model_class.from_pretrained(folder, **options)
    if info["mismatched_keys"]:
        name, stored, expected = sorted(info["mismatched_keys"])[0]
        raise FolderError(f"holds {name!r} as {list(stored)} where its config.json says {list(expected)}.")
    if info["missing_keys"]:
        raise FolderError(f"lacks the tensor {sorted(info['missing_keys'])[0]!r}.")
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise FolderError(f"has values in {name!r} that are not finite; all must be.")
    tokenizer = None
    with suppress(Exception):  # no tokenizer in the folder, or one that needs more than this package
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if tokenizer is None or not tokenizer.vocab_size:  # transformers makes an empty one for some models without files
        return model, None
    num_tokens = len(tokenizer)
    if num_tokens > model.get_input_embeddings().weight.shape[0]:
        raise FolderError(f"has a tokenizer of {num_tokens:,} tokens where its config.json says {config.vocab_size:,}.")
    return model, tokenizer


def _download(hub_id: str, dtype: torch.dtype, max_bytes: int | None) -> Path:
    """The local folder of a Hub id; downloads what is missing, after the headers of the weights show that it fits."""
    try:
        counts = get_safetensors_metadata(hub_id).parameter_count
    except errors.NotASafetensorsRepoError as error:
        raise FolderError(NO_SAFETENSORS) from error
    except (errors.HfHubHTTPError, errors.SafetensorsParsingError):  # the Hub's answer: no such model, or a gated one
        raise
    except Exception as error:  # offline, which every HTTP library reports with an error of its own
        try:
            return Path(snapshot_download(hub_id, local_files_only=True))
        except errors.LocalEntryNotFoundError:
            reason = _first_sentence(error)
            raise FolderError(f"is not on this machine, and the Hub is out of reach: {reason}") from error
    _check_memory(sum(counts.values()) * dtype.itemsize, max_bytes)
    return Path(snapshot_download(hub_id, allow_patterns=HUB_FILES))


def _check_size(folder: Path, config, model_class, dtype: torch.dtype, max_bytes: int | None) -> None:
    """Refuses a config.json that does not fit the weights or the memory, before anything is allocated."""
    stored, num_tensors = count_stored_parameters(folder)
    num_layers = config.get_text_config().num_hidden_layers
    if 4 * num_layers > num_tensors:  # the fewest that a layer has
        raise FolderError(f"has {num_tensors} tensors for {num_layers:,} layers.")
    with torch.device("meta"):
        ours = model_class is DeepseekV3ForCausalLM
        model = model_class._from_config(config) if ours else model_class.from_config(config)
    described = sum(parameter.numel() for parameter in model.parameters())
    described += max(0, sum(buffer.numel() for buffer in model.buffers()) - 2**26)  # masks and angles take some
    if described > 2 * stored:
        raise FolderError(f"holds {stored:,} parameters where its config.json describes {described:,}.")
    _check_memory(described * dtype.itemsize, max_bytes)


def _check_memory(num_bytes: int, max_bytes: int | None) -> None:
    for limit, state in ((free_memory(), "are free"), (max_bytes, "are allowed here")):
        if limit is not None and num_bytes > limit:
            raise FolderError(f"needs {num_bytes / 2**30:.1f} GiB of memory; {limit / 2**30:.1f} GiB {state}.")


def count_stored_parameters(folder: Path) -> tuple[int, int]:
    """(parameters, tensors) in the safetensors files of a folder, read from their headers."""
    num_parameters, num_tensors = 0, 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (not a dict)
                num_parameters += math.prod(tensors.get_slice(name).get_shape())
                num_tensors += 1
    return num_parameters, num_tensors


def free_memory() -> int | None:
    """Bytes that a new process can allocate on this machine or in this container; None if the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None
    for limit, usage in CGROUP_MEMORY_FILES:
        with suppress(OSError, ValueError):  # no such file, or no limit
            stat = dict(line.split() for line in (limit.parent / "memory.stat").read_text().splitlines())
            file_cache = int(stat["inactive_file"]) + int(stat["active_file"])  # freed on demand
            free = min(free, int(limit.read_text()) - int(usage.read_text()) + file_cache)
    return free


def _first_sentence(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return re.split(r"(?<=[.!?]) ", text)[0][:300].rstrip(".") + "."


def fingerprint(path) -> str:
    """Identifies the weights: a SHA-256 over the weight files of a folder, or the commit of a Hub id; "" if missing."""
    files = sorted(Path(path).glob("*.safetensors"))
    if not files:
        with suppress(OSError):
            return AutoConfig.from_pretrained(str(path))._commit_hash or ""
        return ""
    return hashlib.sha256("".join(sha256(file) for file in files).encode()).hexdigest()


def export(source, target, dtype: torch.dtype = torch.bfloat16) -> None:
    """Saves the model and tokenizer of checkpoint `source` into folder `target`, weights as `dtype`."""
    model, tokenizer = load(source, dtype)  # not .to(dtype), which would round the router's float32 bias too
    model.save_pretrained(target)
    if tokenizer is not None:
        tokenizer.save_pretrained(target)
