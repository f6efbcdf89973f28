"""How much of what a model writes is its training text: `python tests/measure/memorization.py --data FILES --eval-data FILE`.

The first words of held-out stories are continued greedily and by presets, and by the stories themselves. Prints for each, as a
line of JSON, the share of continuations of 50 tokens that stand in the training text word for word, and the tokens of their
longest part that does.
"""

import argparse
import itertools
import json
import sys
from pathlib import Path
from statistics import mean, median

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from deepseek import SamplingParams, load, stream
from deepseek.data.readers import documents
from deepseek.data.tokenizer import encode_document
from deepseek.ui.components.presets import PRESETS

PROMPT_TOKENS, NEW_TOKENS = 12, 50
SETTINGS = "greedy", "stories"  # presets


def words(text: str) -> str:
    """The text with one space between any two words, so that line breaks do not hide a copy."""
    return " ".join(text.split())


def longest_copy(ids: list[int], tokenizer, training_text: str) -> int:
    """Tokens of the longest part of `ids` whose text stands in the training text."""
    longest, end = 0, 0
    for start in range(len(ids)):
        end = max(end, start)
        while end < len(ids) and words(tokenizer.decode(ids[start : end + 1])) in training_text:
            end += 1
        longest = max(longest, end - start)
    return longest


def main():
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("checkpoint", nargs="?", default=str(ROOT / "assets" / "demo"))
    parser.add_argument("--data", nargs="+", required=True, help="files of the training text")
    parser.add_argument("--eval-data", required=True, help="a file of held-out stories")
    parser.add_argument("--stories", type=int, default=100, help="stories to continue (100)")
    args = parser.parse_args()
    model, tokenizer = load(args.checkpoint)
    training_text = "\n".join(words(text) for file in args.data for text in documents(file))
    sequences = (encode_document(tokenizer, text) for text in documents(args.eval_data))
    long_enough = (ids for ids in sequences if len(ids) >= PROMPT_TOKENS + NEW_TOKENS)
    stories = list(itertools.islice(long_enough, args.stories))

    def report(name: str, continuations: list[list[int]]) -> None:
        lengths = [longest_copy(ids, tokenizer, training_text) for ids in continuations]
        share = mean(words(tokenizer.decode(ids)) in training_text for ids in continuations)
        line = {"settings": name, "texts": len(lengths), "copied": share, "longest copy": max(lengths)}
        print(json.dumps({**line, "median longest copy": median(lengths)}), flush=True)

    report("the stories themselves", [ids[PROMPT_TOKENS : PROMPT_TOKENS + NEW_TOKENS] for ids in stories])
    for name in SETTINGS:
        outputs = []
        for seed, ids in enumerate(stories):
            params = SamplingParams(**PRESETS[name], seed=seed, max_new_tokens=NEW_TOKENS)
            outputs.append([token.id for token in stream(model, tokenizer, ids[:PROMPT_TOKENS], params)])
        report(name, [ids for ids in outputs if len(ids) == NEW_TOKENS])


if __name__ == "__main__":
    main()
