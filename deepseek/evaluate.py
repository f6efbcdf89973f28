"""Held-out loss of a checkpoint: `python -m deepseek.evaluate CHECKPOINT SOURCE ...`."""

import argparse
import json
from dataclasses import asdict

import torch

from deepseek.checkpoints.loading import load
from deepseek.data.readers import documents
from deepseek.training.validation import evaluate


def main():
    parser = argparse.ArgumentParser(description="Held-out loss of a checkpoint, one line of JSON per source.")
    parser.add_argument("checkpoint", help="folder or Hub id")
    parser.add_argument("sources", nargs="+", help='files, Hub ids, or "builtin"')
    parser.add_argument("--max-seq-len", type=int, help="tokens per window (default: the model's context length)")
    parser.add_argument("--context", dest="max_seq_len", type=int, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    model, tokenizer = load(args.checkpoint, torch.float32)
    for source in args.sources:
        result = evaluate(model, tokenizer, documents(source), args.max_seq_len or model.config.max_position_embeddings)
        print(json.dumps({"source": source.rsplit("/", 1)[-1], **asdict(result)}), flush=True)


if __name__ == "__main__":
    main()
