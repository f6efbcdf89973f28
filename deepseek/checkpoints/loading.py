"""Opens untrusted checkpoints: no code of theirs runs, and what memory cannot hold is refused before it is read."""

import hashlib
import json
import math
import re
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
import transformers
from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer
from transformers.utils import logging as transformers_logging

from deepseek.checkpoints import hub
from deepseek.checkpoints.mapped_experts import ExpertCache, expert_stacks, mapped_class
from deepseek.checkpoints.memory import available_memory, loading_bytes, parse_bytes, release_memory, reserved_memory
from deepseek.checkpoints.saving import offered_checkpoint, sha256
from deepseek.checkpoints.validation import (
    FolderError,
    check_quantization,
    check_weights,
    first_sentence,
    validate_folder,
)
from deepseek.model.cpu_features import preferred_dtype
from deepseek.model.deepseek_v3 import DeepseekV3ForCausalLM

TIED = ("model.embed_tokens.weight", "lm_head.weight")
WEIGHTS = "[!.]*.safetensors"  # macOS leaves a ._model.safetensors beside each on some disks
MISMATCH = "holds {!r} as {} where its config.json says {}."


class CheckpointError(ValueError):
    """A folder or Hub id that cannot be opened; the message is one sentence that says why."""


def load(
    path,
    dtype: torch.dtype | None = None,
    max_bytes: int | None = None,
    local_files_only: bool = False,
    num_workers: int = 0,
    max_memory: str | int | None = None,
):
    """Opens a folder or a Hub id; returns (model in eval mode, tokenizer or None if the folder has none).

    The folder of a run opens as its best checkpoint, by validation loss, or as its newest if none was validated.

    Only safetensors weights are read. A DeepSeek-V3 checkpoint opens in this package's own model, any other in the
    class that transformers has for it. `dtype` defaults to bfloat16 where the CPU computes in it, else to float32.
    With `local_files_only` a Hub id is not looked up on the Hub, but opens as it was downloaded.

    A model that takes more than `max_memory` (such as "8GiB" or a number of bytes; default: what is free) opens in its
    files' own precision, unless `dtype` is given; if that is still too much its routed experts stay in the files and are
    read when a token is routed to them (mapped_experts.py), in one process. `model.expert_cache` is then their cache, else
    None. A model for which a `dtype` is given and no `max_memory` lies in memory whole.
    Raises ValueError for a wrong `max_memory`, and CheckpointError, also for a model that is larger than `max_bytes`, or whose
    other weights need more memory than there is with `num_workers` processes that will share it, before any of it is read or
    downloaded. Each of these copies what lies outside the experts at most, to decode with it.
    """
    path, max_memory = str(path), parse_bytes(max_memory) if max_memory is not None else None
    transformers_logging.disable_progress_bar()
    with checkpoint_errors(path):
        if hub.is_hub_id(path) and not local_files_only:
            folder = hub.download(path, (dtype or preferred_dtype()).itemsize, max_bytes, num_workers)
        else:
            folder = hub.local_folder(path)
            if folder and (offered := offered_checkpoint(folder)) != folder:
                folder, path = offered, str(offered)
        if folder is None and hub.is_hub_id(path):
            raise FolderError("is not on this machine; open it first, which downloads it.")
        if folder is None:
            raise FolderError("is neither a folder nor a Hub id such as name/model.")
        model, tokenizer = _load(folder, dtype, max_bytes, num_workers, max_memory)
    model.name_or_path = path
    return model.eval(), tokenizer


@contextmanager
def checkpoint_errors(path: str):
    """Raises CheckpointError, with the checkpoint's name, in place of every other error."""
    try:
        yield
    except FolderError as error:
        raise CheckpointError(f"checkpoint {path!r} {error}") from error
    except Exception as error:  # damaged JSON, truncated tensors: one sentence for all
        raise CheckpointError(f"checkpoint {path!r} cannot be opened: {first_sentence(error)}") from error


def _load(folder: Path, dtype: torch.dtype | None, max_bytes: int | None, num_workers: int, max_memory: int | None):
    if not (folder / "config.json").is_file():
        raise FolderError("has no config.json; a checkpoint is a folder with one.")
    check_weights({file.name for file in folder.iterdir()})
    validate_folder(folder)
    stored_config = json.loads((folder / "config.json").read_text("utf-8"))
    method, model_type = check_quantization(stored_config), stored_config.get("model_type")
    if isinstance(model_type, str) and model_type not in transformers.CONFIG_MAPPING:
        raise FolderError(f"is a model of type {model_type!r:.40}, which needs code of its own; that stays off.")
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    # A model that also sees images opens whole and is given text: some families' class for text alone wants a configuration
    # of the text part.
    mappings = transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    model_class = next((mapping[type(config)] for mapping in mappings if type(config) in mapping), None)
    if model_class is None or config.is_encoder_decoder:
        raise FolderError(f"is a model of type {config.model_type!r}; it must be one that continues text.")
    if config.model_type == "deepseek_v3":
        model_class = DeepseekV3ForCausalLM
    described, in_experts = _check_size(folder, config, model_class)
    stored_bytes = sum(file.stat().st_size for file in folder.glob("model*.safetensors"))
    largest = described * (dtype or preferred_dtype()).itemsize
    sizes = (described, in_experts, stored_bytes)
    dtype, needed, cache = _placement(folder, sizes, dtype, num_workers, max_memory)
    with reserved_memory(needed, largest, max_bytes):
        options = dict(config=config, dtype=dtype, use_safetensors=True, trust_remote_code=False)
        options |= dict(output_loading_info=True, ignore_mismatched_sizes=True)  # refused below, with the tensor's name
        if cache:
            model, info = mapped_class(model_class, folder, cache).from_pretrained(folder, **options)
            model.__class__ = model_class
            for module in model.modules():
                if hasattr(module, "config"):
                    module.config._experts_implementation = "eager"  # expert by expert
        else:
            model, info = model_class.from_pretrained(folder, **options)
        model.expert_cache = cache
        if method:  # what transformers dequantizes is bf16 in part, and fp32 in part
            _convert(model, dtype)
            model._weight_conversions = None  # what dequantized cannot be undone when the model is saved
    release_memory()
    if info["mismatched_keys"]:
        name, stored, expected = sorted(info["mismatched_keys"])[0]
        raise FolderError(MISMATCH.format(name, list(stored), list(expected)))
    if info["missing_keys"]:
        raise FolderError(f"lacks the tensor {sorted(info['missing_keys'])[0]!r}.")
    for name, tensor in model.state_dict().items():
        if tensor.numel() and not all(
            each.isfinite() for each in tensor.aminmax()
        ):  # isfinite() takes 30 times as long
            raise FolderError(f"has values in {name!r} that are not finite; all must be.")
    try:  # what config.json says beyond the weights' shapes, such as more experts for a token than there are
        with torch.inference_mode():
            model(torch.zeros(1, 1, dtype=torch.int64, device=model.device))
    except Exception as error:
        raise FolderError(f"cannot read a token: {first_sentence(error)}") from error
    tokenizer = None
    with suppress(Exception):  # no tokenizer in the folder, or one that needs more than this package
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if tokenizer is None or not tokenizer.vocab_size:  # transformers makes an empty one for some models without files
        return model, None
    num_tokens = len(tokenizer)
    if num_tokens > model.get_input_embeddings().weight.shape[0]:
        raise FolderError(f"has a tokenizer of {num_tokens:,} tokens where its config.json says {config.vocab_size:,}.")
    return model, tokenizer


def _placement(folder: Path, sizes: tuple, dtype: torch.dtype | None, num_workers: int, max_memory: int | None):
    """(dtype, memory needed in bytes, ExpertCache or None): how a model of these `sizes` opens within memory; see `load`."""
    parameters, in_experts, stored_bytes = sizes
    limit = min(max_memory or math.inf, available_memory())
    for candidate in [dtype] if dtype else [preferred_dtype(), stored_dtype(folder)]:
        copied = num_workers * (parameters - in_experts) * candidate.itemsize
        needed, cache = loading_bytes(parameters * candidate.itemsize, stored_bytes, copied), None
        if needed <= limit:
            return candidate, needed, None
    if in_experts and (dtype is None or max_memory):  # they stay in the files
        needed = loading_bytes((parameters - in_experts) * candidate.itemsize, 0)
        cache = ExpertCache(int(max(0, limit - needed)))
    if max_memory is not None and needed > max_memory:
        what = "of memory beside its experts" if in_experts else "of memory"
        raise FolderError(f"needs {needed / 2**30:.1f} GiB {what}; max_memory is {max_memory / 2**30:.1f} GiB.")
    return candidate, needed, cache


def _convert(model, dtype: torch.dtype) -> None:
    """Converts all parameters, but for those that the model's class keeps in float32."""
    kept = {*(model._keep_in_fp32_modules or ()), *(model._keep_in_fp32_modules_strict or ())}
    for name, parameter in model.named_parameters():
        if not kept & set(name.split(".")):
            parameter.data = parameter.data.to(dtype)


def _check_size(folder: Path, config, model_class) -> tuple[int, int]:
    """The numbers of parameters that config.json describes: all, and those of routed experts that can stay in the files.

    Refuses one that does not fit the weights, before anything is allocated.
    """
    shapes = stored_shapes(folder)
    stored, num_tensors = sum(map(math.prod, shapes.values())), len(shapes)
    num_layers = config.get_text_config().num_hidden_layers
    if 4 * num_layers > num_tensors:  # the fewest that a layer has
        raise FolderError(f"has {num_tensors} tensors for {num_layers:,} layers.")
    with torch.device("meta"):
        model = model_class._from_config(config)
    described = sum(parameter.numel() for parameter in model.parameters())
    described += max(0, sum(buffer.numel() for buffer in model.buffers()) - 2**26)  # masks and angles take some
    if described > 2 * stored:
        raise FolderError(f"holds {stored:,} parameters where its config.json describes {described:,}.")
    for name, tensor in model.state_dict().items():  # before transformers compares a tied head with its embedding
        if name in TIED and shapes.get(name, list(tensor.shape)) != list(tensor.shape):
            raise FolderError(MISMATCH.format(name, shapes[name], list(tensor.shape)))
    return described, sum(parameter.numel() for parameter in expert_stacks(model).values())


def stored_dtype(folder: Path) -> torch.dtype:
    """The dtype in which most numbers of a folder's safetensors files were meant to be computed: float32 or bfloat16."""
    sizes = Counter()
    for file in folder.glob(WEIGHTS):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                tensor = tensors.get_slice(name)
                sizes[tensor.get_dtype()] += math.prod(tensor.get_shape())
    return torch.float32 if sizes.most_common(1)[0][0] == "F32" else torch.bfloat16


def stored_shapes(folder: Path) -> dict[str, list[int]]:
    """{name: shape} of the tensors in the safetensors files of a folder, read from their headers."""
    shapes = {}
    for file in folder.glob(WEIGHTS):
        with safe_open(file, "pt") as tensors:
            shapes |= {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
    return shapes


def is_digest(name: str) -> bool:
    """Whether a file has its SHA-256 for a name, as the Hub's cache calls large files."""
    return bool(re.fullmatch("[0-9a-f]{64}", name))


def fingerprint(path) -> str:
    """Identifies the weights: a SHA-256 over the weight files of a folder or of a downloaded Hub id; "" if there are none."""
    folder = hub.local_folder(path)
    files = sorted(folder.glob(WEIGHTS)) if folder else []
    digests = [file.resolve().name if is_digest(file.resolve().name) else sha256(file) for file in files]
    return hashlib.sha256("".join(digests).encode()).hexdigest() if files else ""
