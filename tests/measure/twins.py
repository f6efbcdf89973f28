"""The experts and their balancing against a dense twin: `python tests/measure/twins.py --data FILE ... --eval-data FILE ...`.

Trains the same small model on the same batches in five variants, from each of several seeds: as it is; without the KL loss;
without the router's bias; without either; and dense, with feed-forward networks as wide in every layer as what one token
uses of the mixture. Prints a line of JSON for each run, with its loss on every held-out text, Python's own tests among them,
and the expert load of each layer on the first. Then a line for each variant: the mean over seeds, and by how much its loss
is below that of the dense model of the same seed, with the standard error.
"""

import argparse
import json
import math
import os
import shutil
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from measure.demo import python_tests

from deepseek import load, preset
from deepseek.data.readers import documents
from deepseek.data.tokenizer import train_tokenizer
from deepseek.model.config import parameter_counts
from deepseek.model.deepseek_v3 import DeepseekV3ForCausalLM
from deepseek.train import keep_freed_memory
from deepseek.training.config import TrainConfig, parse
from deepseek.training.metrics import dead_experts
from deepseek.training.trainer import train
from deepseek.training.validation import evaluate

VARIANTS = {  # changes to the training settings
    "mixture": {},
    "no KL loss": {"balance_weight": 0.0},
    "no bias": {"bias_update_rate": 0.0},
    "no balancing": {"balance_weight": 0.0, "bias_update_rate": 0.0},
    "dense": {},
}


def dense_changes(config) -> dict:
    """Changes that make `config` dense with as many parameters as a token of the mixture uses."""
    layers, dense = config.num_hidden_layers, config.first_k_dense_replace
    used = (config.num_experts_per_tok + config.n_shared_experts) * config.moe_intermediate_size
    width = (dense * config.intermediate_size + (layers - dense) * used) / layers
    return {"first_k_dense_replace": layers, "intermediate_size": round(width)}


def run(variant: str, seed: int, config: TrainConfig, num_threads: int) -> dict:
    """Trains a variant from a seed and evaluates it; `config.root` holds the tokenizer and takes the runs."""
    keep_freed_memory()
    torch.set_num_threads(num_threads)
    name = f"{variant.replace(' ', '-')}-{seed}"
    initial = Path(config.root) / f"{name}-initial"
    torch.manual_seed(seed)
    changes = dense_changes(preset(config.preset)) if variant == "dense" else {}
    DeepseekV3ForCausalLM(preset(config.preset, **changes)).save_pretrained(initial)
    shutil.copytree(config.tokenizer, initial, dirs_exist_ok=True)
    start = time.perf_counter()
    *_, step = train(replace(config, name=name, init_from=str(initial), seed=seed, **VARIANTS[variant]))
    minutes = (time.perf_counter() - start) / 60
    model, tokenizer = load(step.checkpoint, torch.float32)
    texts = {Path(path).name.split(".")[0]: documents(path) for path in config.eval_data}
    texts["python_tests"] = python_tests()
    # Not beyond the sequence length of the training: untrained positions differ by chance, by more than the variants do.
    results = {name: evaluate(model, tokenizer, text, config.max_seq_len) for name, text in texts.items()}
    total, active = parameter_counts(model)
    first = next(iter(results.values()))
    return dict(
        variant=variant, seed=seed, parameters=total, active=active, steps=step.step, tokens=step.tokens,
        minutes=round(minutes, 1), training_loss=round(step.loss, 3),
        bits_per_byte={name: round(result.bits_per_byte, 4) for name, result in results.items()},
        load=first.load, max_violation=first.max_violation,
        dead_experts=len(dead_experts([first.load], window=1)) if first.load else 0,
    )  # fmt: skip


def summary(variant: str, lines: list[dict]) -> dict:
    """The means of a variant over its seeds, and [mean, standard error] of how far it is below the dense model."""
    own = {line["seed"]: line for line in lines if line["variant"] == variant}
    dense = {line["seed"]: line for line in lines if line["variant"] == "dense"}
    means, below = {}, {}
    for text in next(iter(own.values()))["bits_per_byte"]:
        bits = {seed: line["bits_per_byte"][text] for seed, line in own.items()}
        means[text] = round(statistics.mean(bits.values()), 4)
        differences = [dense[seed]["bits_per_byte"][text] - bits[seed] for seed in own if seed in dense]
        if variant != "dense" and len(differences) > 1:
            error = statistics.stdev(differences) / math.sqrt(len(differences))
            below[text] = [round(statistics.mean(differences), 4), round(error, 4)]
    return dict(
        variant=variant, seeds=sorted(own), mean=means, below_dense=below,
        max_violation=max(max(line["max_violation"], default=0.0) for line in own.values()),
        dead_experts=sum(line["dead_experts"] for line in own.values()),
    )  # fmt: skip


def main():
    epilog = "All settings of `python -m deepseek.train` are taken too; the default preset is quick."
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0], epilog=epilog, allow_abbrev=False)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of the initial weights and the data order")
    parser.add_argument("--variants", "--forms", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; they divide the processors among them")
    args, rest = parser.parse_known_args()
    config, _ = parse(["--preset", "quick", *rest])
    num_threads, lines = max(1, (os.cpu_count() or 1) // args.jobs), []
    with tempfile.TemporaryDirectory() as root:
        folder = str(Path(root) / "tokenizer")
        train_tokenizer(config.data, preset(config.preset).vocab_size, config.mixture_weights).save_pretrained(folder)
        config = replace(config, root=root, tokenizer=folder, save_every=config.max_steps, eval_every=0, sample_every=0)
        with ProcessPoolExecutor(args.jobs, get_context("spawn")) as pool:
            jobs = [pool.submit(run, v, seed, config, num_threads) for seed in args.seeds for v in args.variants]
            for job in jobs:
                lines.append(job.result())
                print(json.dumps(lines[-1]), flush=True)
    for variant in args.variants:
        print(json.dumps(summary(variant, lines)), flush=True)


if __name__ == "__main__":
    main()
