"""The table of docs/families.md: what works for each mixture of experts that transformers has for text.

`python tests/measure/families.py > docs/families.md` builds every family tiny and random from its own configuration class and
runs the checks of tests/family_checks.py on it, the same that tests/interpret/test_families.py runs.
"""

import sys
import tempfile
from pathlib import Path

import torch
import transformers
from transformers.utils import logging

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from families import SEEING, mixtures, tiny_model, tiny_seeing_model
from family_checks import CHECKS, SEEING_CHECKS
from small import STORIES

from deepseek.data.tokenizer import train_tokenizer
from deepseek.interpret.attention import attention_layers
from deepseek.interpret.model_parts import decoder_layers
from deepseek.interpret.moe_layers import moe_layers

HEAD = f"""# Mixtures of experts

Every mixture of experts among the causal language models of transformers {transformers.__version__}, built tiny and random
from its own configuration class, and what the package shows of it held to the model's own modules. Made by
`python tests/measure/families.py`; `tests/interpret/test_families.py` runs the same checks.

- opens: a folder as transformers saves it opens with the same logits.
- maps: with memory for half of its experts they stay in the files, and the logits are the same.
- streams: greedy tokens are those of full passes without a cache.
- traces: experts and weights of every token are those that the experts modules were given.
- intervenes: with an expert barred, choice and weights are those of the model built without that expert.
- steers: at strength 1 a promoted expert runs for every token and a suppressed one for none; without shared experts, a layer is
  what it is with their weights at 0.
- lens: each row is what the model predicts when it is cut off behind that layer.
- attention: maps are those of an eager model's own attention modules, and a layer without says so.

| family | {" | ".join(CHECKS)} | in four layers |
|---|{"---|" * len(CHECKS)}---|"""
NOTES = {
    "deepseek_v4": "the first layers look their experts up by token id: traced, not ablated; layers that attend to compressed "
    "blocks have no map by token",
    "ernie4_5_vl_moe": "its files hold the experts of text and of images as one list, which is not read by the expert",
    "doge": "its experts are rows of a matrix; in a full pass its tokens are routed by later ones too",
    "jetmoe": "experts of the feed-forward network; those of its attention are not shown",
    "longcat_flash": "experts that do nothing count as experts; two attentions a layer, shown as one with twice the heads",
    "minimax": "streams without a cache: transformers' own begins anew at position 0",
    "zaya": "a token may run no expert, shown as expert 0 with weight 0",
}


SEEING_HEAD = """
## Models that also see or hear

Their text part, of models given text alone:

| model | {} | in four layers |
|---|{}---|"""


def row(name: str, model, columns, tokenizer) -> str:
    """A line of a table; what fails is printed as an error."""
    cells = []
    for column in columns:
        try:
            with tempfile.TemporaryDirectory() as folder:
                CHECKS[column](name, model, tokenizer, folder)
            cells.append("yes")
        except Exception as error:
            print(f"{name}, {column}: {error}", file=sys.stderr)
            cells.append("no")
    layers = len(decoder_layers(model))
    facts = [f"experts in {len(moe_layers(model))}", f"attention in {len(attention_layers(model))}"]
    facts[0] += ", one shared" if any(layer.has_shared for layer in moe_layers(model).values()) else ""
    note = f"; {NOTES[name]}" if name in NOTES else ""
    of = "" if layers == 4 else f" of {layers} layers"
    return f"| {name} | {' | '.join(cells)} | {', '.join(facts)}{of}{note} |"


def main():
    torch.set_num_threads(1)  # which so small models run fastest on
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        (file := Path(folder, "stories.txt")).write_text("\n<|endoftext|>\n".join(STORIES), "utf-8")
        tokenizer = train_tokenizer([str(file)], 300)
    print(HEAD)
    for name in mixtures():
        print(row(name, tiny_model(name), CHECKS, tokenizer), flush=True)
    print(SEEING_HEAD.format(" | ".join(SEEING_CHECKS), "---|" * len(SEEING_CHECKS)))
    for name in sorted(SEEING):
        print(row(name, tiny_seeing_model(name), SEEING_CHECKS, tokenizer), flush=True)


if __name__ == "__main__":
    main()
