"""Samples from prompts: `python -m deepseek.generate --prompt "Once upon a time" --temperature 0.8 --seed 7`."""

import argparse
import json
import random
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch

from deepseek.checkpoints.loading import CheckpointError, load
from deepseek.inference.engine import stream
from deepseek.inference.generation_record import make_record, parse_record, replay
from deepseek.inference.sampling import SamplingParams
from deepseek.settings.schema import add_arguments

DEMO = "assets/demo"
PROMPTS = ["Once upon a time", "In the depths of space", "Music Festivals Across America"]


def parse(arguments: list[str] | None = None) -> tuple[argparse.Namespace, SamplingParams]:
    """(options, settings) of a command line; exits with one sentence if it is wrong."""
    parser = argparse.ArgumentParser(prog="python -m deepseek.generate", description="Print samples from prompts.")
    parser.add_argument("--checkpoint", help=f"a folder or a Hub id ({DEMO}; with --repeat, the record's checkpoint)")
    parser.add_argument("--prompt", action="append", help="text to continue; may be given several times")
    parser.add_argument("--export", metavar="FILE", help="write the last sample with all its traces as JSON")
    parser.add_argument("--repeat", metavar="FILE", help="only repeat the sample in such a file and compare")
    parser.add_argument("--samples", type=int, default=1, help="samples per prompt; the seed goes up by 1 each (1)")
    add_arguments(parser, SamplingParams)
    options = parser.parse_args(arguments)
    try:
        params = SamplingParams(**{name: getattr(options, name) for name in SamplingParams.__dataclass_fields__})
    except ValueError as error:
        parser.error(str(error))
    if options.samples < 1:
        parser.error(f"samples is {options.samples}; it must be 1 or more.")
    return options, params


def print_samples(model, tokenizer, prompts: list[str], num_samples: int, params: SamplingParams) -> dict:
    """Prints `num_samples` samples of each prompt; returns the record of the last one."""
    for number, (prompt, index) in enumerate(product(prompts, range(num_samples)), 1):
        print(f"Sample {number}:\nPrompt: {prompt}\nGenerated text (temp={params.temperature:g}): ", end="")
        seeded, tokens = replace(params, seed=(params.seed + index) % 2**63), []
        for token in stream(model, tokenizer, prompt, seeded):
            tokens.append(token)
            print(token.text, end="", flush=True)
        print(f"\n[seed {seeded.seed}, ended by {token.ended_by}]\n", flush=True)
    return make_record(model, prompt, seeded, tokens, {})


def print_replay(model, tokenizer, record: dict) -> None:
    """Prints a record's text as it is generated again; exits with 1 where it differs or ends early."""
    index, num_tokens = 0, len(record["tokens"])
    print(record["prompt"], end="")
    for index, (token, same) in enumerate(replay(record, model, tokenizer), 1):
        print(token.text, end="", flush=True)
        if not same:
            sys.exit(f"\ndiffers at token {index} of {num_tokens}")
    if index < num_tokens:
        sys.exit(f"\nends after token {index} of {num_tokens}")
    print(f"\n[{num_tokens} tokens, all as recorded]")


def main():
    options, params = parse()
    if params.seed is None:
        params = replace(params, seed=random.randrange(2**31))
    try:
        record = parse_record(Path(options.repeat).read_text()) if options.repeat else None
        path = options.checkpoint or (record["checkpoint"]["name"] if record else DEMO)
        model, tokenizer = load(path, getattr(torch, record["checkpoint"]["dtype"]) if record else None)
        if tokenizer is None:
            raise CheckpointError(f"checkpoint {path!r} has no tokenizer.")
        if record:
            print_replay(model, tokenizer, record)
        else:
            last = print_samples(model, tokenizer, options.prompt or PROMPTS, options.samples, params)
            if options.export:
                Path(options.export).write_text(json.dumps(last))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
