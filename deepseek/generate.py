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
from deepseek.checkpoints.progress import on_terminal, reported
from deepseek.data.chat import chat_template, conversation, is_chat, rendered
from deepseek.data.tokenizer import show_invisible
from deepseek.inference import int8_prefill
from deepseek.inference.decode_model import DecodeModel, supports
from deepseek.inference.engine import stream
from deepseek.inference.forced_tokens import parse_forced_tokens
from deepseek.inference.generation_record import make_record, parse_record, replay
from deepseek.inference.packed_linear import WEIGHT_FORMATS, WEIGHTS_HELP
from deepseek.inference.sampling import SamplingParams
from deepseek.inference.sweep import NUM_VALUES, SETTINGS, SharedTokens, sample_batch, sweep_params, token_tree
from deepseek.inference.text_stats import sample_stats
from deepseek.inference.why_not import chain, first_tokens, why_not
from deepseek.interpret.interventions import parse_interventions
from deepseek.settings.aliases import DYNATEMP_RANGE, rename
from deepseek.settings.schema import add_arguments, from_text

DEMO = "assets/demo"
PROMPTS = ["Once upon a time", "In the depths of space", "Music Festivals Across America"]


def parse(arguments: list[str] | None = None) -> tuple[argparse.Namespace, SamplingParams]:
    """(options, settings) of a command line; exits with one sentence if it is wrong."""
    parser = argparse.ArgumentParser(prog="python -m deepseek.generate", description="Print samples from prompts.")
    parser.add_argument(
        "--checkpoint", help=f"a folder, a run or a Hub id ({DEMO}; with --repeat, the record's checkpoint)"
    )
    parser.add_argument("--prompt", action="append", help="text to continue; may be given several times")
    help = "take the prompt as a user's message, by the checkpoint's chat template (where it has one)"
    parser.add_argument("--chat", action=argparse.BooleanOptionalAction, help=help)
    parser.add_argument("--system", default="", metavar="TEXT", help="the system prompt of a chat")
    parser.add_argument("--export", metavar="FILE", help="write the last sample with all its traces as JSON")
    parser.add_argument("--repeat", metavar="FILE", help="only repeat the sample in such a file and compare")
    help = "memory for the model, such as 8GiB; experts beyond it are read from the files as needed (what is free)"
    parser.add_argument("--max-memory", metavar="SIZE", help=help)
    help = f"{WEIGHTS_HELP}; int8 is the fastest, for prompts too, and deepseek.evaluate says what it costs"
    parser.add_argument("--weights", choices=WEIGHT_FORMATS, default="model", help=help)
    parser.add_argument("--samples", type=int, default=1, help="samples per prompt; the seed goes up by 1 each (1)")
    help = (
        "off, force, promote or suppress, an expert, @ with a layer, and a strength: 'promote 3@2 0.5'; may be repeated"
    )
    parser.add_argument("--intervention", action="append", default=[], metavar="TEXT", help=help)
    help = f"one sample for each of 3 to {NUM_VALUES} values of a setting; two are the ends of a range of {NUM_VALUES}"
    parser.add_argument("--sweep", nargs="+", metavar=("SETTING", "VALUE"), help=help)
    help = "put the token of an id at a position of the output, from 0, such as 4-123; may be repeated"
    parser.add_argument("--forced-token", action="append", default=[], metavar="POSITION-ID", help=help)
    help = "print what became of this word in place of each token: its rank and probability after every sampler"
    parser.add_argument("--why-not", metavar="WORD", help=help)
    add_arguments(parser, SamplingParams)
    parser.add_argument(f"--{DYNATEMP_RANGE.replace('_', '-')}", type=float, help=argparse.SUPPRESS)
    names = (*SamplingParams.__dataclass_fields__, DYNATEMP_RANGE)
    parser.set_defaults(**dict.fromkeys(names))  # None: not given
    options = parser.parse_args(arguments)
    try:
        given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
        params = SamplingParams(**rename(given))
        options.interventions = parse_interventions(options.intervention)
        options.forced_tokens = parse_forced_tokens(options.forced_token)
    except ValueError as error:
        parser.error(str(error))
    if options.samples < 1:
        parser.error(f"samples is {options.samples}; it must be 1 or more.")
    if options.weights != "model" and (options.export or options.repeat):
        parser.error(f"weights is {options.weights!r}; a record is of the model's own, without --export and --repeat.")
    for name, given in (("why_not", options.why_not is not None), ("forced_token", options.forced_token)):
        if given and (options.sweep or options.repeat):
            parser.error(f"{name} is given; it must be without --sweep and --repeat.")
    if options.sweep:
        if options.samples > 1 or options.export or options.repeat or options.intervention:
            parser.error("sweep is given; it must be without --samples, --export, --repeat and --intervention.")
        try:
            options.sweep = parse_sweep(options.sweep, with_seed(params))
        except ValueError as error:
            parser.error(str(error))
    return options, params


def with_seed(params: SamplingParams) -> SamplingParams:
    """`params`, with a random seed if they have none."""
    return replace(params, seed=random.randrange(2**31)) if params.seed is None else params


def parse_sweep(words: list[str], params: SamplingParams) -> tuple[str, list[SamplingParams]]:
    """(setting, settings at each value) of the words after --sweep. Raises ValueError."""
    name, *values = words
    name = rename({name.replace("-", "_"): None}).popitem()[0]
    values = [from_text(SETTINGS[name], value) for value in values] if name in SETTINGS else values
    return name, sweep_params(params, name, values)


def to_conversations(tokenizer, prompts: list[str], chat: bool | None, system: str) -> list:
    """The prompts as chats where the tokenizer has a chat template and `chat` is not False. Raises ValueError."""
    if chat_template(tokenizer) is None and (chat or system):
        raise ValueError(f"{'chat' if chat else 'system'} is given; the checkpoint must have a chat template.")
    if chat is False and system:
        raise ValueError(f"system is {system!r:.60}; with --no-chat there must be none.")
    return prompts if chat is False else [conversation(tokenizer, prompt, system) for prompt in prompts]


def print_samples(model, tokenizer, prompts: list, num_samples: int, params: SamplingParams, **options) -> dict:
    """Prints `num_samples` samples of each prompt, text or messages; returns the last one's record.

    `options` are `stream`'s, forced_tokens, interventions and probe among them.
    """
    for number, (prompt, index) in enumerate(product(prompts, range(num_samples)), 1):
        text = rendered(tokenizer, prompt)
        print(f"Sample {number}:\nPrompt: {text}\nGenerated text (temp={params.temperature:g}): ", end="")
        seeded, tokens = replace(params, seed=(params.seed + index) % 2**63), []
        for token in stream(model, tokenizer, prompt, seeded, **options):
            tokens.append(token)
            print(token.text, end="", flush=True)
        print(f"\n[seed {seeded.seed}, ended by {token.ended_by}]\n", flush=True)
        if options["probe"]:
            print_why_not(tokens, options["probe"])
    messages = prompt if is_chat(prompt) else ()
    forced, interventions = options["forced_tokens"], options["interventions"]
    return make_record(model, text, seeded, tokens, forced, interventions=interventions, messages=messages)


def print_why_not(tokens: list, ids: list[int]) -> None:
    """Prints for each token the rank and probability of each of `ids` in its place, after every sampler."""
    print("Why not, with rank (probability) after each sampler; ✕ is where it was removed:")
    for index, token in enumerate(tokens, 1):
        chains = " · ".join(map(chain, why_not(token, ids)))
        print(f"{index} “{show_invisible(token.text)}”, not {chains}")
    print()


def print_sweep(model, tokenizer, prompt, name: str, batch: list[SamplingParams], decode_model=None) -> None:
    """Prints a sample for each of the settings in `batch`, a table of their figures, and where they part."""
    outputs = sample_batch(model, tokenizer, prompt, batch, decode_model)
    labels = [f"{name} {getattr(params, name):g}" if name != "seed" else f"seed {params.seed}" for params in batch]
    print(f"Prompt: {rendered(tokenizer, prompt)}" + ("" if name == "seed" else f"\nSeed: {batch[0].seed}"))
    for label, tokens in zip(labels, outputs):
        print(f"\n[{label}] {''.join(token.text for token in tokens)}")
    stats = [sample_stats(tokens) for tokens in outputs]
    for figures in stats:
        del figures["tokens_per_second"]  # that of one batch
    width = max(map(len, labels))
    print(f"\n{'':{width}}  {'  '.join(stats[0])}")
    for label, figures in zip(labels, stats):
        print(f"{label:{width}}  {'  '.join(f'{value:{len(key)}.4g}' for key, value in figures.items())}")
    print("\nWhere they part:")
    print_tree(token_tree(outputs), labels)
    print()


def print_tree(node: SharedTokens, labels: list[str], depth: int = 0) -> None:
    """Prints a prefix tree, a line for the text of each part, with the labels of the samples that end there."""
    text = json.dumps("".join(token.text for token in node.tokens), ensure_ascii=False)
    end = "" if node.children else f"  [{', '.join(labels[sample] for sample in node.samples)}]"
    print(f"{'  ' * depth}{node.position + 1}: {text}{end}")
    for child in node.children:
        print_tree(child, labels, depth + 1)


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


@reported(on_terminal())
def main():
    options, params = parse()
    try:
        if options.export:  # a wrong path is refused before the work
            Path(options.export).parent.mkdir(parents=True, exist_ok=True)
            Path(options.export).open("a").close()
        record = parse_record(Path(options.repeat).read_text()) if options.repeat else None
        path = options.checkpoint or (record["checkpoint"]["name"] if record else DEMO)
        dtype = getattr(torch, record["checkpoint"]["dtype"]) if record else None
        model, tokenizer = load(path, dtype, max_memory=options.max_memory)
        if tokenizer is None:
            raise CheckpointError(f"checkpoint {path!r} has no tokenizer.")
        prompts = to_conversations(tokenizer, options.prompt or PROMPTS, options.chat, options.system)
        if record:
            print_replay(model, tokenizer, record)
            return
        # Packed once for all samples. One in other weights raises where the model has none.
        decode_model = DecodeModel(model, options.weights) if options.weights != "model" or supports(model) else None
        if options.weights == "int8" and int8_prefill.supports(model):
            int8_prefill.quantize(model)
        if options.sweep:
            name, batch = options.sweep
            for prompt in prompts:
                print_sweep(model, tokenizer, prompt, name, batch, decode_model)
        else:
            ids = [] if options.why_not is None else first_tokens(options.why_not, tokenizer)
            changes = dict(forced_tokens=options.forced_tokens, interventions=options.interventions)
            changes |= dict(decode_model=decode_model, probe=ids)
            last = print_samples(model, tokenizer, prompts, options.samples, with_seed(params), **changes)
            if options.export:
                Path(options.export).write_text(json.dumps(last))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # no terminal that cannot print a sample ends the command
    main()
