"""Whether a run can start, checked before it does: its name, its checkpoint, memory and disk."""

import math
import os
import shutil
import tempfile
from pathlib import Path

import torch
from transformers import AutoConfig, PretrainedConfig

from deepseek.checkpoints import hub, loading, saving
from deepseek.checkpoints.memory import free_memory
from deepseek.checkpoints.validation import FolderError
from deepseek.data.dataloader import PackedDataLoader
from deepseek.model.config import preset
from deepseek.model.deepseek_v3 import DeepseekV3ForCausalLM
from deepseek.model.loss import CHUNK_LOGITS
from deepseek.training import job_process
from deepseek.training.config import UPLOADS, TrainConfig, TrainingError

PROGRAM_BYTES = 2**29  # memory of the training process before it has a model

RUN_FILES = {"config.json", "process.json", "metrics.jsonl", "log.txt", UPLOADS}  # of a run without a checkpoint


def resume_point(config: TrainConfig, resume: bool) -> Path | None:
    """The checkpoint that a run resumes from, None for one that begins: new, or ended before its first checkpoint.

    Raises TrainingError where there is nothing to resume, and where a new run's folder holds what it would not have written.
    """
    run = config.run
    checkpoints = saving.list_checkpoints(run)
    if resume:
        last = saving.latest_checkpoint(run)
        if last is None and (checkpoints or not (run / "config.json").is_file()):
            raise TrainingError(f"run {str(run)!r} has no {'undamaged ' * bool(checkpoints)}checkpoint to resume from.")
        if last and (step := int(last.name[5:])) > config.max_steps:
            allowed = f"run {str(run)!r} has taken {step} steps; it must be that at least"
            raise TrainingError(f"max_steps is {config.max_steps}; {allowed}.")
        return last
    if run.exists() and not run.is_dir():
        raise TrainingError(f"name is {config.name!r}, but {str(run)!r} is a file; choose another name.")
    names = {path.name for path in run.iterdir() if path.name[0] != "."} if run.exists() else set()
    if checkpoints and (run / "metrics.jsonl").exists():
        raise TrainingError(f"run {str(run)!r} exists; resume it or choose another name.")
    if others := sorted(names - RUN_FILES):
        raise TrainingError(
            f"name is {config.name!r}, but {str(run)!r} holds {others[0]!r}, of no run; choose another name."
        )
    return None


def check_resources(config: TrainConfig, resume_from: Path | None) -> None:
    """Refuses a run that needs more memory or disk than is free. Raises TrainingError with both numbers."""
    memory, checkpoint = required_bytes(config, resume_from)
    num_checkpoints = min(config.keep_last, math.ceil(config.max_steps / config.save_every))
    # More than `keep_last`: a pinned one, the one being written, and the best one where it is known.
    others = 2 + bool(config.eval_every)
    disk = checkpoint * max(2, num_checkpoints + others - len(saving.list_checkpoints(config.run)))
    free_ram = None if torch.cuda.is_available() else free_memory()
    free_disk = shutil.disk_usage(config.root).free
    for resource, required, free in (("memory", memory, free_ram), ("disk", disk, free_disk)):
        if free is not None and required > free:
            sizes = [f"{n / 2**30:.1f} GiB" if n >= 2**30 else f"{n / 2**20:.0f} MiB" for n in (required, free)]
            raise TrainingError(f"run {config.name!r} needs about {sizes[0]} of {resource}; {sizes[1]} are free.")


def required_bytes(config: TrainConfig, resume_from: Path | None = None) -> tuple[int, int]:
    """(memory, disk per checkpoint) in bytes of a new run, or of one that resumes from a checkpoint.

    The memory is that of all the run's processes on this machine. Raises TrainingError for a checkpoint that cannot be
    opened.
    """
    if source := str(resume_from or config.init_from):
        shape, weights = _checkpoint_shape(source)
    else:
        shape = preset(config.preset)
        with torch.device("meta"):
            weights = DeepseekV3ForCausalLM(shape).num_parameters()
    local_size, world_size = (int(os.environ.get(name, 1)) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))  # torchrun's
    model_copies = local_size / world_size if config.shard else local_size
    tokens = config.batch_size / world_size * config.max_seq_len  # per process
    activations = 4 * 40 * shape.hidden_size * shape.num_hidden_layers * tokens  # kept for the backward pass
    logits = min(CHUNK_LOGITS, shape.vocab_size * tokens)
    loss = 4 * (2 * logits + shape.vocab_size * shape.hidden_size)  # logits, their gradient, the gradient of the head
    # fp32 weights, gradients and AdamW's two moments in memory; all but the gradients in a checkpoint.
    memory = int(local_size * (PROGRAM_BYTES + loss + activations) + model_copies * 16 * weights)
    head = 4 * shape.vocab_size * shape.hidden_size  # stored beside the embedding
    return memory, 12 * weights + head + 4 * PackedDataLoader.BUFFER_BLOCKS * config.max_seq_len


def _checkpoint_shape(source: str) -> tuple[PretrainedConfig, int]:
    """(configuration, number of weights) of a folder or a Hub id, which is not downloaded for that. Raises TrainingError."""
    folder = hub.local_folder(source)
    if not (folder or hub.is_hub_id(source)):
        allowed = "a checkpoint's folder or a Hub id such as name/model"
        raise TrainingError(f"init_from is {source!r:.80}; it must be {allowed}.")
    try:
        with tempfile.TemporaryDirectory() as temporary:
            if folder:
                folder = saving.offered_checkpoint(folder)
                stored = loading.stored_shapes(folder)
            else:
                folder = Path(temporary)
                stored = hub.describe(source, folder)
            shape = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except FolderError as error:
        raise TrainingError(f"init_from is {source!r}, which {error}") from error
    except Exception as error:
        reason = job_process.explain_error(error)
        raise TrainingError(f"init_from is {source!r}, which cannot be opened: {reason}") from error
    if shape.tie_word_embeddings:
        stored.pop("lm_head.weight", None)  # the embedding again
    return shape, sum(map(math.prod, stored.values()))
