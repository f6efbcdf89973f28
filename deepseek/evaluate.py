"""Held-out loss of a checkpoint: `python -m deepseek.evaluate CHECKPOINT SOURCE ...`."""

import argparse
import json
import logging
import sys
from dataclasses import asdict
from itertools import chain

import torch

from deepseek.checkpoints.loading import CheckpointError, load
from deepseek.checkpoints.progress import on_terminal, reported
from deepseek.data.chat import document_renderer
from deepseek.data.readers import documents
from deepseek.data.text_lines import ENCODINGS, DataError, ReadOptions
from deepseek.inference import int8_prefill
from deepseek.inference.packed_linear import WEIGHT_FORMATS, WEIGHTS_HELP
from deepseek.inference.stepwise import StepwiseModel
from deepseek.training.validation import evaluate


@reported(on_terminal())
def main():
    parser = argparse.ArgumentParser(description="Held-out loss of a checkpoint, one line of JSON per source.")
    parser.add_argument("checkpoint", help="folder, run or Hub id")
    parser.add_argument("sources", nargs="+", help='files, Hub ids, or "builtin"')
    parser.add_argument("--max-seq-len", type=int, help="tokens per window (default: the model's context length)")
    parser.add_argument("--text-column", default="", help="text column of tables (default: chosen by name)")
    parser.add_argument("--encoding", choices=ENCODINGS, default="auto", help="encoding of text files")
    help = f"{WEIGHTS_HELP}; other than model, as deepseek.generate decodes with them, a token at a time; "
    help += "int8 adds the loss of text read as a prompt, prefill_bits_per_byte, where the CPU has instructions for it"
    parser.add_argument("--weights", choices=WEIGHT_FORMATS, default="model", help=help)
    parser.add_argument("--context", dest="max_seq_len", type=int, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    logging.basicConfig(format="Note: %(message)s")
    logging.getLogger("deepseek").setLevel(logging.INFO)
    try:
        model, tokenizer = load(args.checkpoint, torch.float32)
        if tokenizer is None:
            raise CheckpointError(f"checkpoint {args.checkpoint!r} has no tokenizer.")
        context = model.config.get_text_config().max_position_embeddings
        max_seq_len = context if args.max_seq_len is None else args.max_seq_len
        if not 2 <= max_seq_len <= context:
            raise ValueError(f"max_seq_len is {max_seq_len}; this model reads 2 to {context:,} tokens.")
        options = ReadOptions(args.text_column, args.encoding, document_renderer(tokenizer))
        decoded = model if args.weights == "model" else StepwiseModel(model, args.weights)
        if prompts_in_int8 := args.weights == "int8" and int8_prefill.supports(model):
            int8_prefill.quantize(model)
        for source in args.sources:
            texts = filter(None, documents(source, options))
            if (first := next(texts, None)) is None:
                raise DataError(f"data {source!r} holds no text to evaluate on.")
            result = asdict(evaluate(decoded, tokenizer, chain([first], texts), max_seq_len))
            if prompts_in_int8:
                texts = filter(None, documents(source, options))
                result["prefill_bits_per_byte"] = evaluate(model, tokenizer, texts, max_seq_len).bits_per_byte
            print(json.dumps({"source": source.rsplit("/", 1)[-1], **result}), flush=True)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
