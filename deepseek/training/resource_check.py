"""Whether memory and disk suffice for a run, checked before it starts."""

import math
import os
import re
import shutil
from pathlib import Path

import torch
from transformers import AutoConfig

from deepseek.checkpoints import loading, saving
from deepseek.data.dataloader import PackedDataLoader
from deepseek.model.config import preset
from deepseek.model.deepseek_v3 import DeepseekV3ForCausalLM
from deepseek.model.loss import CHUNK_LOGITS
from deepseek.training import job_process
from deepseek.training.config import TrainConfig, TrainingError

PROGRAM_BYTES = 2**29  # memory of the training process before it has a model


def check_resources(config: TrainConfig, resume_from: Path | None) -> None:
    """Refuses a run that needs more memory or disk than is free. Raises TrainingError with both numbers."""
    memory, checkpoint = required_bytes(config, resume_from)
    num_checkpoints = min(config.keep_last, math.ceil(config.max_steps / config.save_every))
    # Two more than `keep_last`: a pinned one, and the one being written.
    disk = checkpoint * max(2, num_checkpoints + 2 - len(saving.list_checkpoints(config.run)))
    free_memory = None if torch.cuda.is_available() else loading.free_memory()
    free_disk = shutil.disk_usage(config.root).free
    for resource, required, free in (("memory", memory, free_memory), ("disk", disk, free_disk)):
        if free is not None and required > free:
            sizes = [f"{n / 2**30:.1f} GiB" if n >= 2**30 else f"{n / 2**20:.0f} MiB" for n in (required, free)]
            raise TrainingError(f"run {config.name!r} needs about {sizes[0]} of {resource}; {sizes[1]} are free.")


def required_bytes(config: TrainConfig, resume_from: Path | None = None) -> tuple[int, int]:
    """(memory, disk per checkpoint) in bytes of a new run, or of one that resumes from a checkpoint.

    The memory is that of all the run's processes on this machine. Raises TrainingError for a checkpoint that cannot be
    opened.
    """
    source = resume_from or config.init_from
    if source and Path(source).is_dir():
        try:
            shape = AutoConfig.from_pretrained(source, trust_remote_code=False)
            weights, _ = loading.count_stored_parameters(Path(source))
        except Exception as error:
            reason = job_process.explain_error(error)
            raise TrainingError(f"init_from is {str(source)!r}, which cannot be opened: {reason}") from error
    elif source and not re.fullmatch(loading.HUB_ID, str(source)):
        allowed = "a checkpoint's folder or a Hub id such as name/model"
        raise TrainingError(f"init_from is {str(source)!r:.80}; it must be {allowed}.")
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
    return memory, 12 * weights + 4 * PackedDataLoader.BUFFER_BLOCKS * config.max_seq_len
