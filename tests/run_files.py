"""What the files of a training run hold."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from deepseek.checkpoints.saving import latest_checkpoint
from deepseek.training.distributed import ProcessGroup

ALONE = ProcessGroup(0, 1, torch.device("cpu"))
LINE = {
    "step", "loss", "load_balancing_loss", "lr", "grad_norm", "tokens", "tokens_per_second", "load", "max_violation",
}  # fmt: skip


def metrics(config):
    return [json.loads(line, parse_constant=pytest.fail) for line in (config.run / "metrics.jsonl").open()]


def untimed(config):
    """metrics.jsonl without the one value that depends on time."""
    return re.sub(r'"tokens_per_second": [\d.]+', "", (config.run / "metrics.jsonl").read_text())


def weights(config):
    return load_file(latest_checkpoint(config.run) / "model.safetensors")
