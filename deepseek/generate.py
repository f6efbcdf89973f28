"""Samples from prompts: `python -m deepseek.generate --prompt "Once upon a time" --temperature 0.8 --seed 7`."""

import argparse
import random
import sys
from dataclasses import fields, replace

from deepseek.checkpoint import CheckpointError, load
from deepseek.engine import stream
from deepseek.sampling import LIMITS, SamplingParams

PROMPTS = ["Once upon a time", "In the depths of space", "Music Festivals Across America"]


def parse(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(prog="python -m deepseek.generate", description="Print samples from prompts.")
    parser.add_argument("--checkpoint", default="assets/demo", help="a folder or a Hub id (assets/demo)")
    parser.add_argument("--prompt", action="append", help="text to continue; may be given several times")
    parser.add_argument("--samples", type=int, default=1, help="samples of each prompt, seeds counted up (1)")
    for field in fields(SamplingParams):
        limit = LIMITS[field.name]
        flag = "--" + field.name.replace("_", "-")
        if limit[0] is bool:
            parser.add_argument(flag, action="store_true")
        elif isinstance(limit[0], str):
            parser.add_argument(flag, choices=limit, default=field.default, help=f"({field.default})")
        else:
            allowed = f"{limit[1]} to {limit[2]}" if field.name != "seed" else "a new one each time"
            parser.add_argument(flag, type=float if limit[0] is float else int, default=field.default,
                                help=f"{allowed} ({field.default})")  # fmt: skip
    values = vars(parser.parse_args(arguments))
    options = {name: values.pop(name) for name in ("checkpoint", "prompt", "samples")}
    try:
        params = SamplingParams(**values)
    except ValueError as error:
        parser.error(str(error))
    if options["samples"] < 1:
        parser.error(f"samples is {options['samples']}; it must be 1 or more.")
    return options, params


def main():
    options, params = parse()
    if params.seed is None:
        params = replace(params, seed=random.randrange(2**31))
    try:
        model, tokenizer = load(options["checkpoint"])
        if tokenizer is None:
            raise CheckpointError(f"checkpoint {options['checkpoint']!r} has no tokenizer.")
        number = 0
        for prompt in options["prompt"] or PROMPTS:
            for count in range(options["samples"]):
                number += 1
                print(f"Sample {number}:\nPrompt: {prompt}\nGenerated text (temp={params.temperature:g}): ", end="")
                seeded = replace(params, seed=(params.seed + count) % 2**63)
                for token in stream(model, tokenizer, prompt, seeded, record=False):
                    print(token.text, end="", flush=True)
                print(f"\n[seed {seeded.seed}, {token.finish}]\n", flush=True)
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
