"""AdamW of a run: learning rate, parameter groups, and its state as tensors of a checkpoint."""

import math

import torch

from deepseek.training.config import TrainConfig
from deepseek.training.distributed import full_tensor, shard_like


def learning_rate(config: TrainConfig, step: int) -> float:
    """Rate of step `step` (from 1): linear warm-up, then constant, or half a cosine (SGDR, arXiv 1608.03983).

    The cosine reaches 0 one step after the last, so that the last step still trains.
    """
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    progress = (step - config.warmup_steps) / (config.max_steps - config.warmup_steps + 1)
    return config.lr * 0.5 * (1 + math.cos(math.pi * progress))


def parameter_groups(model, weight_decay: float) -> list[dict]:
    """AdamW groups: matrices decay; vectors (norms and biases) do not."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


def state_tensors(optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's state as named tensors, gathered where they are sharded."""
    state = optimizer.state_dict()["state"]
    named = ((f"optimizer.{i}.{key}", tensor) for i, values in state.items() for key, tensor in values.items())
    return {name: full_tensor(tensor) for name, tensor in named}


def load_state_tensors(optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Restores the optimizer's state from `state_tensors`, sharded as its parameters are."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    values: dict[int, dict] = {}
    for name, tensor in tensors.items():
        _, index, key = name.split(".")
        values.setdefault(int(index), {})[key] = shard_like(tensor, parameters[int(index)])
    optimizer.load_state_dict({**optimizer.state_dict(), "state": values})
