"""Held-out loss of a checkpoint: `python -m deepseek.evaluate CHECKPOINT SOURCE ...`."""

import argparse
import json
from dataclasses import asdict

import torch

from deepseek.training.validation import evaluate


def main():
    from deepseek.checkpoints.loading import load
    from deepseek.data.readers import documents

    parser = argparse.ArgumentParser(description="Held-out loss of a checkpoint, one JSON line a source.")
    parser.add_argument("checkpoint", help="a folder or a Hub id")
    parser.add_argument("sources", nargs="+", help='files, Hub ids, or "builtin"')
    parser.add_argument("--context", type=int, help="tokens in a window (default: the model's context)")
    args = parser.parse_args()
    model, tokenizer = load(args.checkpoint, torch.float32)
    for source in args.sources:
        result = evaluate(model, tokenizer, documents(source), args.context or model.config.max_position_embeddings)
        print(json.dumps({"source": source.rsplit("/", 1)[-1], **asdict(result)}), flush=True)


if __name__ == "__main__":
    main()
