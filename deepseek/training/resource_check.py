"""Whether memory and disk have room for a run, told before it begins."""

import math
import os
import re
import shutil
from pathlib import Path

import torch
from transformers import AutoConfig

from deepseek.checkpoints import loading, saving
from deepseek.data import dataloader
from deepseek.model.config import preset
from deepseek.model.deepseek_v3 import DeepseekV3ForCausalLM
from deepseek.model.loss import CHUNK_LOGITS
from deepseek.training import job_process
from deepseek.training.config import TrainConfig, TrainingError

PROGRAM = 2**29  # bytes of the training program before it holds a model


def check_resources(config: TrainConfig, last: Path | None) -> None:
    """Refuses a run that memory or the disk cannot hold. Raises TrainingError with both numbers."""
    memory, commit = required_bytes(config, last)
    free = loading.free_memory()
    if free is not None and memory > free and not torch.cuda.is_available():
        raise TrainingError(f"run {config.name!r} needs about {_size(memory)} of memory; {_size(free)} are free.")
    made = math.ceil(config.max_steps / config.save_every)
    disk = commit * max(2, min(config.keep_last, made) + 2 - len(saving.list_checkpoints(config.run)))
    free = shutil.disk_usage(config.root).free
    if disk > free:
        raise TrainingError(f"run {config.name!r} needs about {_size(disk)} of disk; {_size(free)} are free.")


def required_bytes(config: TrainConfig, last: Path | None = None) -> tuple[int, int]:
    """(bytes of memory to train, bytes of one commit) of a new run, or of one that goes on from the commit `last`.

    The memory is that of all the run's processes on this machine. Raises TrainingError for a checkpoint to start from that
    cannot be opened.
    """
    source = last or config.init_from
    if source and Path(source).is_dir():
        try:
            shape = AutoConfig.from_pretrained(source, trust_remote_code=False)
            weights, _ = loading.count_stored_parameters(Path(source))
        except Exception as error:
            raise TrainingError(
                f"from is {str(source)!r}, which cannot be opened: {job_process.explain_error(error)}"
            ) from error
    elif source and not re.fullmatch(loading.HUB_ID, str(source)):
        allowed = "a checkpoint's folder or a Hub id such as name/model"
        raise TrainingError(f"from is {str(source)!r:.80}; it must be {allowed}.")
    else:
        shape = preset(config.preset)
        with torch.device("meta"):
            weights = DeepseekV3ForCausalLM(shape).num_parameters()
    token = 4 * 40 * shape.hidden_size * shape.num_hidden_layers  # what every layer keeps for the backward pass
    here, all_ = (int(os.environ.get(name, 1)) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))  # torchrun's processes
    copies = here / all_ if config.shard else here
    # Weights, gradients and AdamW's two moments in memory, all but the gradients in a commit.
    rows = config.batch_size * here / all_
    logits = min(CHUNK_LOGITS, shape.vocab_size * rows / here * config.max_seq_len)
    loss = 4 * (2 * logits + shape.vocab_size * shape.hidden_size)  # these and the gradient of their weight
    memory = int(here * (PROGRAM + loss) + copies * 16 * weights + token * rows * config.max_seq_len)
    return memory, 12 * weights + 4 * dataloader.PackedDataLoader.BUFFER * config.max_seq_len


def _size(number: int) -> str:
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"
