"""What the experts and their balancing are worth: `python tests/measure/twins.py --data FILE ... --valid FILE ...`.

Trains the same small model on the same batches in five forms, from each of several seeds: as it is; without the KL loss;
without the router's bias; without either; and dense, with feed-forward networks as wide in every layer as what one token
uses of the mixture. A line of JSON for each run, with its loss on every held-out text, Python's own tests among them, and the
expert load of each layer over the first one. Then one for each form: the mean over seeds, and how much less than the dense
twin's of the same seed its loss is, with the standard error.
"""

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
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
from deepseek.training.config import PRESET_DEFAULTS, TrainConfig
from deepseek.training.metrics import DEAD_SHARE
from deepseek.training.trainer import train
from deepseek.training.validation import evaluate

FORMS = {  # changes to the training settings
    "mixture": {},
    "no KL loss": {"balance_weight": 0.0},
    "no bias": {"bias_update_rate": 0.0},
    "no balancing": {"balance_weight": 0.0, "bias_update_rate": 0.0},
    "dense": {},
}

ASKED = {"lr": float, "batch_size": int, "context": int}  # settings in place of the preset's


def dense_changes(config) -> dict:
    """Changes that make `config` dense with as many parameters as a token of the mixture uses."""
    layers, dense = config.num_hidden_layers, config.first_k_dense_replace
    used = (config.num_experts_per_tok + config.n_shared_experts) * config.moe_intermediate_size
    width = (dense * config.intermediate_size + (layers - dense) * used) / layers
    return {"first_k_dense_replace": layers, "intermediate_size": round(width)}


def run(form: str, seed: int, args, root: str) -> dict:
    """Trains one form from one seed and measures it; `root` holds the tokenizer and takes the runs."""
    keep_freed_memory()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // args.jobs))
    name, tokenizer = f"{form.replace(' ', '-')}-{seed}", str(Path(root) / "tokenizer")
    changes = dense_changes(preset(args.preset)) if form == "dense" else {}
    begin = str(Path(root) / f"{name}-begin")
    torch.manual_seed(seed)
    DeepseekV3ForCausalLM(preset(args.preset, **changes)).save_pretrained(begin)
    for file in Path(tokenizer).iterdir():
        (Path(begin) / file.name).write_bytes(file.read_bytes())
    asked = {name: value for name in ASKED if (value := getattr(args, name)) is not None}
    settings = PRESET_DEFAULTS.get(args.preset, {}) | asked | dict(
        root=root, name=name, init_from=begin, seed=seed, max_steps=args.steps, save_every=args.steps,
        data=args.data, mixture_weights=args.shares, eval_data=args.valid, eval_every=0, sample_every=0,
    )  # fmt: skip
    began = time.perf_counter()
    config = TrainConfig(**{**settings, **FORMS[form]})
    *_, step = train(config)
    minutes = (time.perf_counter() - began) / 60
    model, tokenizer = load(step.checkpoint, torch.float32)
    texts = {Path(path).name.split(".")[0]: list(documents(path)) for path in args.valid}
    texts["python_tests"] = python_tests()
    # Not at places that no text of the training reached: there forms differ by chance, and more than by what they are.
    results = [evaluate(model, tokenizer, text, config.max_seq_len) for text in texts.values()]
    total, active = parameter_counts(model)
    return dict(
        form=form, seed=seed, parameters=total, active=active, steps=args.steps, tokens=step.tokens,
        minutes=round(minutes, 1), training_loss=round(step.loss, 3),
        bits_per_byte={name: round(result.bits_per_byte, 4) for name, result in zip(texts, results)},
        load=results[0].load, max_violation=results[0].max_violation,
        dead=sum(share * len(shares) < DEAD_SHARE for shares in results[0].load for share in shares),
    )  # fmt: skip


def summary(form: str, lines: list[dict]) -> dict:
    """The means of a form over its seeds, and of what it is better than the dense twin of the same seed."""
    own = {line["seed"]: line for line in lines if line["form"] == form}
    dense = {line["seed"]: line for line in lines if line["form"] == "dense"}
    found = {"form": form, "seeds": sorted(own), "mean": {}, "less_than_dense": {}}
    for text in next(iter(own.values()))["bits_per_byte"]:
        found["mean"][text] = round(statistics.mean(line["bits_per_byte"][text] for line in own.values()), 4)
        less = [dense[seed]["bits_per_byte"][text] - own[seed]["bits_per_byte"][text] for seed in own if seed in dense]
        if form != "dense" and len(less) > 1:
            error = statistics.stdev(less) / math.sqrt(len(less))
            found["less_than_dense"][text] = [round(statistics.mean(less), 4), round(error, 4)]
    found["max_violation"] = max((max(line["max_violation"], default=0.0) for line in own.values()), default=0.0)
    return found | {"dead": sum(line["dead"] for line in own.values())}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--shares", nargs="+", type=float, default=[])
    parser.add_argument("--valid", nargs="+", required=True)
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--steps", type=int, default=1200)
    for name, kind in ASKED.items():
        parser.add_argument(
            "--" + name.replace("_", "-"), type=kind, help="as in training, if not what suits the preset"
        )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of first weights and the order of the text")
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=list(FORMS))
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, which share the processors")
    args = parser.parse_args()
    lines = []
    with tempfile.TemporaryDirectory() as root:
        tokenizer = train_tokenizer(args.data, preset(args.preset).vocab_size, args.shares)
        tokenizer.save_pretrained(Path(root) / "tokenizer")
        with ProcessPoolExecutor(args.jobs, get_context("spawn")) as pool:
            jobs = [pool.submit(run, form, seed, args, root) for seed in args.seeds for form in args.forms]
            for job in jobs:
                lines.append(job.result())
                print(json.dumps(lines[-1]), flush=True)
    for form in args.forms:
        print(json.dumps(summary(form, lines)), flush=True)


if __name__ == "__main__":
    main()
