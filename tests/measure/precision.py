"""Whether what decodes is the model: greedy tokens beside stock transformers, and what rounded weights cost. JSON lines.

`python tests/measure/precision.py --valid tinystories_valid.txt.xz`: 20 prompts of 200 greedy tokens each by our decoder and
by transformers' DeepseekV3ForCausalLM, both in float32; then bits a byte of held-out stories by the decoder, a token at a
time, with weights and cache in float32, bf16 and int8. Give a checkpoint in float32 to see what bf16 costs: the demo's
weights were rounded to it when it was made.
"""

import argparse
import itertools
import json
import math
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from deepseek import SamplingParams, load, stream
from deepseek.data.readers import documents
from deepseek.data.tokenizer import encode_document
from deepseek.inference.decode_model import DecodeModel
from deepseek.model.mla_cache import MLACache

TOGETHER = 16  # texts in a step


def greedy(checkpoint: str, texts: list[str], new: int) -> dict:
    """How many of the texts' first words both engines go on from alike, and how many tokens they agree on."""
    model, tokenizer = load(checkpoint, torch.float32)
    stock = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    stock.generation_config.eos_token_id = None  # past the end of a story they are to agree too
    model.generation_config.eos_token_id = None
    same = tokens = 0
    for text in texts:
        ids = encode_document(tokenizer, text)[:9]
        params = SamplingParams(temperature=0, max_new_tokens=new)
        ours = [token.id for token in stream(model, tokenizer, ids, params, record=False)]
        given = torch.tensor([ids])  # with a mask of ones: without one `generate` takes the first token for padding
        made = stock.generate(given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=new)
        theirs = made[0, len(ids) :].tolist()
        agreed = next((place for place, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
        same, tokens = same + (ours == theirs), tokens + agreed
    return {"figure": "greedy", "texts": len(texts), "the same": same, "tokens": new * len(texts), "agreed": tokens}


@torch.inference_mode()
def bits_per_byte(checkpoint: str, texts: list[str], dtype: torch.dtype, weights: str) -> float:
    """Of texts read by the decoder, a token at a time; what goes beyond the model's context is left out."""
    model, tokenizer = load(checkpoint, dtype)
    decoder, longest = DecodeModel(model, weights), model.config.max_position_embeddings
    rows = [(encode_document(tokenizer, text)[:longest], text) for text in texts]
    nats, size = 0.0, 0
    for start in range(0, len(rows), TOGETHER):
        part = rows[start : start + TOGETHER]
        caches = [MLACache(model.config, len(ids)) for ids, _ in part]
        for place in range(max(len(ids) for ids, _ in part) - 1):
            going = [number for number, (ids, _) in enumerate(part) if place + 1 < len(ids)]
            logits, _ = decoder([part[number][0][place] for number in going], [caches[number] for number in going])
            following = torch.tensor([part[number][0][place + 1] for number in going])
            nats += torch.nn.functional.cross_entropy(logits, following, reduction="sum").item()
        size += sum(len(tokenizer.decode(ids[1:]).encode()) for ids, _ in part)
    return nats / math.log(2) / size


def main():
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("checkpoint", nargs="?", default=str(ROOT / "assets" / "demo"))
    parser.add_argument("--valid", required=True, help="a file of held-out stories")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--new", type=int, default=200)
    parser.add_argument("--documents", type=int, default=200, help="stories whose bits a byte are measured (200)")
    args = parser.parse_args()
    texts = list(itertools.islice(documents(args.valid), max(args.documents, args.prompts)))
    print(json.dumps(greedy(args.checkpoint, texts[: args.prompts], args.new)), flush=True)
    exact = None
    for dtype, weights in ((torch.float32, "model"), (torch.bfloat16, "model"), (torch.bfloat16, "int8")):
        bits = bits_per_byte(args.checkpoint, texts[: args.documents], dtype, weights)
        exact = bits if exact is None else exact
        name = "fp32" if dtype == torch.float32 else "bf16" if weights == "model" else weights
        line = {
            "figure": "bits a byte",
            "weights": name,
            "bits_per_byte": round(bits, 5),
            "over_fp32": round(bits - exact, 5),
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
