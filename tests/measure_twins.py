"""What the experts and their balancing are worth: `python tests/measure_twins.py --data FILE ... --valid FILE`.

Trains the same small model on the same batches in five forms and prints a line of JSON for each, with its held-out loss
and expert load: as it is; without the KL loss; without the router's bias; without either; and dense, with feed-forward
networks as wide in every layer as what one token uses of the mixture.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from deepseek import load, preset  # noqa: E402
from deepseek.config import parameter_counts  # noqa: E402
from deepseek.data import learn_tokenizer  # noqa: E402
from deepseek.evaluate import evaluate  # noqa: E402
from deepseek.history import DEAD  # noqa: E402
from deepseek.model import DeepseekV3ForCausalLM  # noqa: E402
from deepseek.settings import SUITED, TrainConfig  # noqa: E402
from deepseek.sources import documents  # noqa: E402
from deepseek.train import keep_freed_memory, train  # noqa: E402

FORMS = {  # changes to the training settings
    "mixture": {},
    "no KL loss": {"balance_weight": 0.0},
    "no bias": {"bias_rate": 0.0},
    "no balancing": {"balance_weight": 0.0, "bias_rate": 0.0},
    "dense": {},
}


def dense_changes(config) -> dict:
    """Changes that make `config` dense with as many parameters as a token of the mixture uses."""
    layers, dense = config.num_hidden_layers, config.first_k_dense_replace
    used = (config.num_experts_per_tok + config.n_shared_experts) * config.moe_intermediate_size
    width = (dense * config.intermediate_size + (layers - dense) * used) / layers
    return {"first_k_dense_replace": layers, "intermediate_size": round(width)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--shares", nargs="+", type=float, default=[])
    parser.add_argument("--valid", required=True)
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=0, help="of the first weights and of the order of the text")
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=list(FORMS))
    args = parser.parse_args()
    keep_freed_memory()
    shape = preset(args.preset)
    tokenizer = learn_tokenizer(args.data, shape.vocab_size, args.shares)
    texts = list(documents(args.valid))
    settings = {**SUITED.get(args.preset, {}), "steps": args.steps, "checkpoint_every": args.steps}
    settings |= dict(
        seed=args.seed, data=args.data, shares=args.shares, valid=[args.valid], valid_every=0, sample_every=0
    )
    with tempfile.TemporaryDirectory() as root:
        for form in args.forms:
            torch.manual_seed(args.seed)
            begin = Path(root) / f"begin-{form}"
            DeepseekV3ForCausalLM(
                preset(args.preset, **(dense_changes(shape) if form == "dense" else {}))
            ).save_pretrained(begin)
            tokenizer.save_pretrained(begin)
            run = dict(root=root, name=form.replace(" ", "-"), start_from=str(begin))
            began = time.perf_counter()
            *_, step = train(TrainConfig(**{**settings, **run, **FORMS[form]}))
            minutes = (time.perf_counter() - began) / 60
            model, _ = load(step.checkpoint, torch.float32)
            result = evaluate(model, tokenizer, texts, model.config.max_position_embeddings)
            dead = sum(share * len(shares) < DEAD for shares in result.load for share in shares)
            total, active = parameter_counts(model)
            figures = dict(
                parameters=total, active=active, steps=args.steps, tokens=step.tokens, minutes=round(minutes, 1)
            )
            figures |= dict(training_loss=round(step.loss, 3), bits_per_byte=round(result.bits_per_byte, 4))
            print(
                json.dumps({"form": form, **figures, "max_violation": result.max_violation, "dead": dead}), flush=True
            )


if __name__ == "__main__":
    main()
