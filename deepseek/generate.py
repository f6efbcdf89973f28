"""Samples from prompts: `python -m deepseek.generate --prompt "Once upon a time" --temperature 0.8 --seed 7`."""

import argparse
import json
import random
import sys
from dataclasses import replace
from pathlib import Path

import torch

from deepseek.checkpoints.loading import CheckpointError, load
from deepseek.inference import generation_record
from deepseek.inference.engine import stream
from deepseek.inference.sampling import SamplingParams
from deepseek.settings.schema import add_arguments

DEMO = "assets/demo"
PROMPTS = ["Once upon a time", "In the depths of space", "Music Festivals Across America"]


def parse(arguments: list[str] | None = None) -> tuple[dict, SamplingParams]:
    """(options, settings) of a command line; exits with one sentence where it is wrong."""
    parser = argparse.ArgumentParser(prog="python -m deepseek.generate", description="Print samples from prompts.")
    parser.add_argument("--checkpoint", help=f"a folder or a Hub id ({DEMO}; with --repeat the file's own)")
    parser.add_argument("--prompt", action="append", help="text to continue; may be given several times")
    parser.add_argument("--export", metavar="FILE", help="write the last sample with all its traces as JSON")
    parser.add_argument("--repeat", metavar="FILE", help="generate such a file's text anew and compare; nothing else")
    parser.add_argument("--samples", type=int, default=1, help="samples of each prompt, seeds counted up (1)")
    add_arguments(parser, SamplingParams)
    values = vars(parser.parse_args(arguments))
    options = {name: values.pop(name) for name in ("checkpoint", "prompt", "samples", "export", "repeat")}
    try:
        params = SamplingParams(**values)
    except ValueError as error:
        parser.error(str(error))
    if options["samples"] < 1:
        parser.error(f"samples is {options['samples']}; it must be 1 or more.")
    return options, params


def print_samples(model, tokenizer, prompts, samples: int, params: SamplingParams) -> dict:
    """Prints `samples` texts of each prompt; returns the record of the last."""
    number = 0
    for prompt in prompts:
        for count in range(samples):
            number += 1
            print(f"Sample {number}:\nPrompt: {prompt}\nGenerated text (temp={params.temperature:g}): ", end="")
            seeded = replace(params, seed=(params.seed + count) % 2**63)
            tokens = []
            for token in stream(model, tokenizer, prompt, seeded):
                tokens.append(token)
                print(token.text, end="", flush=True)
            print(f"\n[seed {seeded.seed}, ended by {token.finish_reason}]\n", flush=True)
    return generation_record.make_record(model, prompt, seeded, tokens, {})


def check_repeat(model, tokenizer, known: dict) -> None:
    """Prints a record's text as it comes again; exits with 1 where it differs or ends early."""
    place, count = 0, len(known["tokens"])
    print(known["prompt"], end="")
    for place, (token, same) in enumerate(generation_record.replay(known, model, tokenizer), 1):
        print(token.text, end="", flush=True)
        if not same:
            sys.exit(f"\ndiffers at token {place} of {count}")
    if place < count:
        sys.exit(f"\nends after token {place} of {count}")
    print(f"\n[{count} tokens, all as recorded]")


def main():
    options, params = parse()
    if params.seed is None:
        params = replace(params, seed=random.randrange(2**31))
    try:
        known = generation_record.parse_record(Path(options["repeat"]).read_text()) if options["repeat"] else None
        source = known["checkpoint"] if known else {"name": DEMO}
        path = options["checkpoint"] or source["name"]
        model, tokenizer = load(path, getattr(torch, source["dtype"]) if known else None)
        if tokenizer is None:
            raise CheckpointError(f"checkpoint {path!r} has no tokenizer.")
        if known:
            return check_repeat(model, tokenizer, known)
        last = print_samples(model, tokenizer, options["prompt"] or PROMPTS, options["samples"], params)
        if options["export"]:
            Path(options["export"]).write_text(json.dumps(last))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
