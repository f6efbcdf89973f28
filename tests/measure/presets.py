"""Samples under different sampler settings beside real stories: `python tests/measure/presets.py --eval-data FILE`.

Statistics of samples that continue the first words of held-out stories, a line of JSON for each of the page's presets and of
a grid around them; before them the same statistics of the stories themselves. Samples are best where they come near those.
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
import torch.nn.functional as F

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from deepseek import SamplingParams, load
from deepseek.data.readers import documents
from deepseek.data.tokenizer import encode_document
from deepseek.inference.decode_model import DecodeModel
from deepseek.inference.engine import Request, decode_step
from deepseek.inference.text_stats import repetition
from deepseek.ui.components.presets import PRESETS

PROMPT_TOKENS, MAX_NEW_TOKENS = 12, 150
GRID = {
    "temperature": [0.5, 0.6, 0.7, 0.8, 0.9, 1.0],
    "top_p": [0.9, 0.95, 1.0],
}
CARD_GRID = {  # the ranges that the card of the preset names
    "temperature": [0.7, 1.0],
    "repetition_penalty": [1.05, 1.1, 1.3],
    "presence_penalty": [0.0, 0.5],
}
CREATIVE_GRID = {  # high temperatures that min-p holds together, and XTC against the likeliest words
    "temperature": [1.0, 1.25, 1.5],
    "min_p": [0.02, 0.05, 0.1],
    "xtc_probability": [0.0, 0.5],
}
DRY_GRID = {"temperature": [0.7, 0.9], "min_p": [0.05, 0.1], "dry_multiplier": [0.8]}
GRIDS = {"nucleus": GRID, "card": CARD_GRID, "creative": CREATIVE_GRID, "dry": DRY_GRID}


def settings(grids: list[str]) -> Iterator[tuple[str, dict]]:
    """(name, settings) of each line."""
    yield from PRESETS.items()
    for grid in (GRIDS[name] for name in grids):
        for values in itertools.product(*grid.values()):
            point = dict(zip(grid, values))
            name = " ".join(f"{name} {value}" for name, value in point.items())
            if grid is CARD_GRID:
                point |= dict(top_p=0.9, top_k=40, frequency_penalty=point["presence_penalty"])
            yield name, point


def statistics(texts: list[tuple[list[int], float, int]]) -> dict:
    """The means over texts, each (ids, bits under the model, bytes)."""
    ids, bits, num_bytes = zip(*texts)
    rows = [repetition(sequence) for sequence in ids]
    return {
        "tokens": round(mean(map(len, ids)), 1),
        "bits_per_byte": round(sum(bits) / sum(num_bytes), 3),
        **{name: round(mean(row[name] for row in rows), 4) for name in rows[0]},
    }


@torch.no_grad()
def story_statistics(model, tokenizer, stories) -> dict:
    """The statistics of what follows the prompts in the stories themselves."""
    texts = []
    for ids in stories:
        ids_S = torch.tensor(ids[: PROMPT_TOKENS + MAX_NEW_TOKENS])
        logits_SV, rest_S = model(ids_S[None], use_cache=False).logits[0].float(), ids_S[PROMPT_TOKENS:]
        nats = F.cross_entropy(logits_SV[PROMPT_TOKENS - 1 : -1], rest_S, reduction="sum").item()
        texts.append((rest_S.tolist(), nats / math.log(2), len(tokenizer.decode(rest_S).encode())))
    return statistics(texts)


def sample_statistics(model, tokenizer, stories, settings: dict) -> dict:
    """The statistics of samples that continue the prompts; the seed of each is its index."""
    params = [SamplingParams(**settings, seed=seed, max_new_tokens=MAX_NEW_TOKENS) for seed in range(len(stories))]
    requests = [Request(model, tokenizer, ids[:PROMPT_TOKENS], p, record=False) for ids, p in zip(stories, params)]
    outputs, decode_model = {request: [] for request in requests}, DecodeModel(model)
    while running := [request for request in requests if not request.finish_reason]:
        for request, token in zip(running, decode_step(running, decode_model)):
            outputs[request].append(token)
    texts = []
    for tokens in outputs.values():
        bits = -sum(math.log2(token.probability) for token in tokens)
        texts.append(([t.id for t in tokens], bits, len("".join(t.text for t in tokens).encode())))
    return statistics(texts)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("checkpoint", nargs="?", default=str(ROOT / "assets" / "demo"))
    parser.add_argument("--eval-data", "--valid", required=True, help="a file of held-out stories")
    parser.add_argument("--stories", type=int, default=20, help="samples for each line (20)")
    parser.add_argument("--grids", nargs="*", default=list(GRIDS), choices=GRIDS, help="around the presets (all)")
    args = parser.parse_args()
    model, tokenizer = load(args.checkpoint, torch.float32)
    sequences = (encode_document(tokenizer, text) for text in documents(args.eval_data))
    long_enough = (ids for ids in sequences if len(ids) >= PROMPT_TOKENS + MAX_NEW_TOKENS)
    stories = list(itertools.islice(long_enough, args.stories))
    print(json.dumps({"settings": "the stories themselves", **story_statistics(model, tokenizer, stories)}), flush=True)
    for name, values in settings(args.grids):
        print(json.dumps({"settings": name, **sample_statistics(model, tokenizer, stories, values)}), flush=True)


if __name__ == "__main__":
    main()
