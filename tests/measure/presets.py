"""How texts read under different sampler settings: `python tests/measure/presets.py [CHECKPOINT] --valid FILE`.

For the page's presets and a grid around them: figures of texts begun with the openings of held-out stories, a line of
JSON each, and first the same figures of how those stories really go on. Settings read best where they come near that.
"""

import argparse
import itertools
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import mean

import torch

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from deepseek import SamplingParams, load, stream
from deepseek.data.readers import documents
from deepseek.data.tokenizer import encode_document
from deepseek.ui.components.sampler_controls import PRESETS
from deepseek.ui.tabs.compare import repetition

OPENING, LENGTH = 12, 150  # tokens given, and tokens written or read
GRID = {
    "temperature": [0.5, 0.6, 0.7, 0.8, 0.9, 1.0],
    "top_p": [0.9, 0.95, 1.0],
}
CARD = {  # the ranges that the card of the preset names
    "temperature": [0.7, 1.0],
    "repetition_penalty": [1.05, 1.1, 1.3],
    "presence_penalty": [0.0, 0.5],
}


def settings() -> Iterator[tuple[str, dict]]:
    """(name, settings) of each line."""
    yield from PRESETS.items()
    for values in itertools.product(*GRID.values()):
        changes = dict(zip(GRID, values))
        yield " ".join(f"{name} {value}" for name, value in changes.items()), changes
    for values in itertools.product(*CARD.values()):
        changes = dict(zip(CARD, values))
        name = " ".join(f"{name} {value}" for name, value in changes.items())
        yield name, dict(top_p=0.9, top_k=40, frequency_penalty=changes["presence_penalty"]) | changes


def figures(texts: list[tuple[list[int], float, int]]) -> dict:
    """The mean over texts of (ids, bits under the model, bytes)."""
    parts = [repetition(ids) for ids, _, _ in texts]
    return {
        "tokens": round(mean(len(ids) for ids, _, _ in texts), 1),
        "bits_per_byte": round(sum(bits for _, bits, _ in texts) / sum(size for _, _, size in texts), 3),
        **{name: round(mean(part[name] for part in parts), 4) for name in parts[0]},
    }


@torch.no_grad()
def real(model, tokenizer, stories) -> dict:
    """The figures of what follows the openings in the stories themselves."""
    texts = []
    for ids in stories:
        logits = model(torch.tensor([ids[: OPENING + LENGTH]]), use_cache=False).logits[0].float()
        after = ids[OPENING : OPENING + LENGTH]
        nats = (
            -logits.log_softmax(-1)[OPENING - 1 : OPENING - 1 + len(after)]
            .gather(1, torch.tensor(after)[:, None])
            .sum()
        )
        texts.append((after, float(nats) / math.log(2), len(tokenizer.decode(after).encode())))
    return figures(texts)


def written(model, tokenizer, stories, params: dict) -> dict:
    """The figures of texts written after the openings, the seed of each its number."""
    texts = []
    for seed, ids in enumerate(stories):
        made = SamplingParams(**params, seed=seed, max_new_tokens=LENGTH)
        tokens = list(stream(model, tokenizer, ids[:OPENING], made, record=False))
        bits = -sum(math.log2(token.probability) for token in tokens)
        texts.append(([t.id for t in tokens], bits, len("".join(t.text for t in tokens).encode())))
    return figures(texts)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("checkpoint", nargs="?", default=str(ROOT / "assets" / "demo"))
    parser.add_argument("--valid", required=True, help="a file of held-out stories")
    parser.add_argument("--stories", type=int, default=20, help="texts for each line (20)")
    args = parser.parse_args()
    model, tokenizer = load(args.checkpoint, torch.float32)
    ids = (encode_document(tokenizer, text) for text in documents(args.valid))
    stories = list(itertools.islice((story for story in ids if len(story) >= OPENING + LENGTH), args.stories))
    print(json.dumps({"settings": "the stories themselves", **real(model, tokenizer, stories)}), flush=True)
    for name, params in settings():
        print(json.dumps({"settings": name, **written(model, tokenizer, stories, params)}), flush=True)


if __name__ == "__main__":
    main()
