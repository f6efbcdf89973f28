"""Seconds of training to a held-out loss, ours beside transformers' Trainer: `python tests/measure/time_to_loss.py`.

The same new model, text (built-in), blocks of tokens and batch size for all: ours with the preset's defaults (Muon, wsd), ours
with AdamW and a cosine, and the Trainer's AdamW with its own defaults, also at our learning rate. Since a learning rate falls
to the end of its run, each trains anew for every number of steps. Prints a line of JSON for each run, then for each trainer the
seconds to the loss that the last of `--steps` gives AdamW, interpolated in the logarithm of time. Validation is not counted.
"""

import argparse
import json
import math
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import torch
from torch.utils.data import IterableDataset
from transformers import DeepseekV3ForCausalLM as StockForCausalLM
from transformers import Trainer, TrainingArguments

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from deepseek.bench import cpu_name
from deepseek.checkpoints.loading import load
from deepseek.data.dataloader import PackedDataLoader
from deepseek.train import keep_freed_memory
from deepseek.training.config import TrainConfig, parse
from deepseek.training.trainer import autocast_dtype, new_model, train
from deepseek.training.validation import evaluate, validation_texts


class Blocks(IterableDataset):
    """The blocks of tokens that our trainer reads, as examples for transformers' Trainer."""

    def __init__(self, config: TrainConfig, tokenizer):
        self.config, self.tokenizer = config, tokenizer

    def __iter__(self):
        sampling = self.config.max_seq_len, self.config.seed, self.config.mixture_weights
        for ids in PackedDataLoader(self.config.data, self.tokenizer, *sampling, skip_held_out=True):
            yield {"input_ids": ids, "labels": ids}


def ours(config: TrainConfig) -> tuple[float, object]:
    """(seconds, trained model) of our loop."""
    steps = list(train(config))
    step_tokens = config.gradient_accumulation_steps * config.batch_size * config.max_seq_len
    # Up to the last step: its validation and its checkpoint come after it.
    elapsed = sum(step_tokens / step.tokens_per_second for step in steps)
    return elapsed, load(steps[-1].checkpoint, torch.float32)[0]


def trainers(config: TrainConfig, lr: float) -> tuple[float, object]:
    """(seconds, trained model) of transformers' Trainer, in the precision and with the batches of ours."""
    model = StockForCausalLM.from_pretrained(config.init_from, dtype=torch.float32, experts_implementation="grouped_mm")
    _, tokenizer = load(config.init_from)
    arguments = TrainingArguments(
        config.root, max_steps=config.max_steps, per_device_train_batch_size=config.batch_size, learning_rate=lr,
        bf16=autocast_dtype(config.precision, "cpu") == torch.bfloat16, use_cpu=True, save_strategy="no", report_to=[],
        disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    start = perf_counter()
    Trainer(model, arguments, train_dataset=Blocks(config, tokenizer)).train()
    elapsed = perf_counter() - start
    model.save_pretrained(config.run)
    tokenizer.save_pretrained(config.run)
    return elapsed, load(config.run, torch.float32)[0]


def seconds_to(loss: float, runs: list[dict]) -> float | None:
    """Seconds at which a trainer's runs reach `loss`, by the line between two of them; None where none brackets it."""
    runs = sorted(runs, key=lambda run: run["seconds"])
    for a, b in zip(runs, runs[1:]):
        if a["val_loss"] >= loss >= b["val_loss"]:
            share = (a["val_loss"] - loss) / (a["val_loss"] - b["val_loss"])
            return round(math.exp(math.log(a["seconds"]) + share * math.log(b["seconds"] / a["seconds"])), 1)
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0], allow_abbrev=False)
    parser.add_argument("--steps", nargs="+", type=int, default=[300, 600, 1200], help="of a run of each trainer")
    args, rest = parser.parse_known_args()
    base, _ = parse(["--preset", "quick", *rest])
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as root:
        model, tokenizer = new_model(base)
        initial = str(Path(root) / "initial")
        model.save_pretrained(initial)
        tokenizer.save_pretrained(initial)
        texts = validation_texts(base, base.read_options)
        print(json.dumps({"machine": cpu_name(), "threads": torch.get_num_threads(), "lr": base.lr}), flush=True)
        base = replace(base, root=root, init_from=initial, sample_every=0, probe="")
        adamw = replace(base, optimizer="adamw", schedule="cosine")
        ways = {
            "ours, muon": lambda config: ours(replace(config, optimizer=base.optimizer, schedule=base.schedule)),
            "ours, adamw": ours,
            "Trainer's defaults": lambda config: trainers(config, 5e-5),
            "Trainer, our rate": lambda config: trainers(config, base.lr),
        }
        runs = {name: [] for name in ways}
        for steps in args.steps:
            for index, (name, way) in enumerate(ways.items()):
                config = replace(
                    adamw, name=f"{index}-{steps}", max_steps=steps, save_every=steps, eval_every=steps + 1
                )
                elapsed, trained = way(config)
                loss = evaluate(trained, tokenizer, texts, base.max_seq_len).loss
                runs[name].append(
                    {"trainer": name, "steps": steps, "seconds": round(elapsed, 1), "val_loss": round(loss, 4)}
                )
                print(json.dumps(runs[name][-1]), flush=True)
        target = runs["ours, adamw"][-1]["val_loss"]
        seconds = {name: seconds_to(target, lines) for name, lines in runs.items()}
        print(json.dumps({"seconds to a held-out loss of": target, **seconds}), flush=True)


if __name__ == "__main__":
    main()
