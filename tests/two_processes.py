"""What test_distributed.py runs under torchrun: several short runs, and what each of the two processes observes of them."""

import contextlib
import dataclasses
import gc
import io
import json
import sys
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from deepseek import train as command_line
from deepseek.model.deepseek_v3 import DeepseekV3ForCausalLM
from deepseek.training.config import TrainConfig, TrainingError
from deepseek.training.distributed import process_group
from deepseek.training.runs import command
from deepseek.training.trainer import train


def train_main(config):
    """Runs the command line in this process; returns what it prints."""
    sys.argv = command(config, False)[2:]
    with contextlib.redirect_stdout(io.StringIO()) as output:
        command_line.main()
    return output.getvalue()


def models():
    """Every model in this process."""
    gc.collect()
    return [item for item in gc.get_objects() if issubclass(type(item), DeepseekV3ForCausalLM)]


def sharded(config):
    """Trains with --shard; returns whether all parameters are sharded, and the fraction of their elements stored here."""
    result = {}
    for step in train(dataclasses.replace(config, name="sharded", shard=True)):
        if step.step == 1:
            (model,) = models()
            parameters = list(model.parameters())
            result["all are DTensor"] = all(isinstance(parameter, DTensor) for parameter in parameters)
            local = sum(parameter.to_local().numel() for parameter in parameters)
            result["fraction"] = local / sum(parameter.numel() for parameter in parameters)
    return result


def stopped(config, rank):
    """Asks the second process alone to stop after step 3; returns the steps taken."""
    steps = []
    for step in train(dataclasses.replace(config, name="stopped"), stopped=lambda: rank == 1 and len(steps) == 2):
        steps.append(step.step)
    return steps


def broken(config, rank):
    """Breaks a weight of the second process alone after step 2; returns the error of this process."""
    try:
        for step in train(dataclasses.replace(config, name="broken")):
            if step.step == 2 and rank == 1:
                for model in models():
                    model.model.norm.weight.data.fill_(torch.nan)
    except TrainingError as error:
        return str(error)


def main():
    config = TrainConfig(**json.loads(Path(sys.argv[1]).read_text()))
    long = dataclasses.replace(config, name="long", max_steps=10**6, save_every=10**6, eval_every=0)
    with process_group() as group:
        result = {
            "printed": train_main(dataclasses.replace(config, name="copied")),
            "sharded": sharded(config),
            "resumed": [step.step for step in train(dataclasses.replace(config, name="one-then-two"), resume=True)],
            "stopped": stopped(config, group.rank),
            "broken": broken(config, group.rank),
        }
        Path(config.root, f"result-{group.rank}.json").write_text(json.dumps(result))
        train_main(long)  # until torchrun is terminated


if __name__ == "__main__":
    main()
