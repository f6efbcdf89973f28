"""What test_parallel.py runs under torchrun: several short runs, and what each of the two processes saw of them."""

import dataclasses
import gc
import json
import sys
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from deepseek.model.deepseek_v3 import DeepseekV3ForCausalLM
from deepseek.training.config import TrainConfig, TrainingError
from deepseek.training.distributed import process_group
from deepseek.training.trainer import train


def models():
    """Every model in this process."""
    gc.collect()
    return [thing for thing in gc.get_objects() if issubclass(type(thing), DeepseekV3ForCausalLM)]


def sharded(config):
    """Trains with --shard; returns the kinds of its parameters and the share of their numbers that lies here."""
    seen = {}
    for step in train(dataclasses.replace(config, name="sharded", shard=True)):
        if step.step == 1:
            (model,) = models()
            parameters = list(model.parameters())
            seen["all are DTensor"] = all(isinstance(parameter, DTensor) for parameter in parameters)
            local = sum(parameter.to_local().numel() for parameter in parameters)
            seen["share"] = local / sum(parameter.numel() for parameter in parameters)
    return seen


def resumed(config):
    """Goes on with a run that one process began; returns the first step made."""
    return next(step.step for step in list(train(dataclasses.replace(config, name="one-then-two"), resume=True)))


def stopped(config, rank):
    """Asks the second process alone to stop after step 3; returns the steps made."""
    done = []
    for step in train(dataclasses.replace(config, name="stopped"), stopped=lambda: rank == 1 and len(done) == 2):
        done.append(step.step)
    return done


def broken(config, rank):
    """Breaks a weight of the second process alone after step 2; returns the reason that this process gave."""
    try:
        for step in train(dataclasses.replace(config, name="broken")):
            if step.step == 2 and rank == 1:
                for model in models():
                    model.model.norm.weight.data.fill_(torch.nan)
    except TrainingError as error:
        return str(error)


def main():
    config = TrainConfig(**json.loads(Path(sys.argv[1]).read_text()))
    with process_group() as group:
        seen = {"sharded": sharded(config), "resumed": resumed(config)}
        seen |= {"stopped": stopped(config, group.rank), "broken": broken(config, group.rank)}
        Path(config.root, f"seen-{group.rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
