"""Greedy tokens beside stock transformers, and the held-out loss with rounded weights, as JSON lines.

`python tests/measure/precision.py --eval-data tinystories_valid.txt.xz`: 20 prompts of 200 greedy tokens each by our engine
and by transformers' DeepseekV3ForCausalLM, both in float32; then bits per byte of held-out stories by the decode model, a
token at a time, with weights and cache in float32, bf16 and int8, and of the stories read as prompts in int8. Only a float32
checkpoint shows what bf16 costs: the demo's weights are bf16 already.
"""

import argparse
import itertools
import json
import math
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from deepseek import SamplingParams, load, stream
from deepseek.data.readers import documents
from deepseek.data.tokenizer import encode_document
from deepseek.inference import int8_prefill
from deepseek.inference.decode_model import DecodeModel
from deepseek.model.mla_cache import MLACache
from deepseek.training.validation import evaluate

BATCH_SIZE, PROMPT_TOKENS = 16, 9
FORMATS = {"fp32": (torch.float32, "model"), "bf16": (torch.bfloat16, "model"), "int8": (torch.bfloat16, "int8")}


def greedy(checkpoint: str, texts: list[str], max_new_tokens: int) -> dict:
    """How many of the texts' first words both engines continue alike, and how many tokens agree before they differ."""
    model, tokenizer = load(checkpoint, torch.float32)
    stock = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    stock.generation_config.eos_token_id = model.generation_config.eos_token_id = (
        None  # compare past the end of a story
    )
    params = SamplingParams(temperature=0, max_new_tokens=max_new_tokens)
    equal = num_agreed = 0
    for text in texts:
        ids = encode_document(tokenizer, text)[:PROMPT_TOKENS]
        ours = [token.id for token in stream(model, tokenizer, ids, params, record=False)]
        ids_1S = torch.tensor([ids])  # the mask is needed: without one `generate` takes the first token for padding
        options = dict(attention_mask=torch.ones_like(ids_1S), do_sample=False, repetition_penalty=1.0)
        theirs = stock.generate(ids_1S, max_new_tokens=max_new_tokens, **options)[0, len(ids) :].tolist()
        equal += ours == theirs
        num_agreed += sum(itertools.takewhile(bool, (a == b for a, b in zip(ours, theirs))))
    total = max_new_tokens * len(texts)
    return {"figure": "greedy", "texts": len(texts), "equal": equal, "tokens": total, "agreed": num_agreed}


@torch.inference_mode()
def bits_per_byte(checkpoint: str, texts: list[str], dtype: torch.dtype, weights: str) -> float:
    """Of texts run through the decode model, a token at a time and each cut to the model's context."""
    model, tokenizer = load(checkpoint, dtype)
    decode_model, max_tokens = DecodeModel(model, weights), model.config.max_position_embeddings
    sequences = [encode_document(tokenizer, text)[:max_tokens] for text in texts]
    nats = 0.0
    for start in range(0, len(sequences), BATCH_SIZE):
        batch = [(ids, MLACache(model.config, len(ids))) for ids in sequences[start : start + BATCH_SIZE]]
        for position in range(max(len(ids) for ids, _ in batch) - 1):
            running = [(ids, cache) for ids, cache in batch if position + 1 < len(ids)]
            logits_RV, _ = decode_model([ids[position] for ids, _ in running], [cache for _, cache in running])
            next_ids_R = torch.tensor([ids[position + 1] for ids, _ in running])
            nats += F.cross_entropy(logits_RV, next_ids_R, reduction="sum").item()
    return nats / math.log(2) / sum(len(tokenizer.decode(ids[1:]).encode()) for ids in sequences)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split(", as")[0])
    parser.add_argument("checkpoint", nargs="?", default=str(ROOT / "assets" / "demo"))
    parser.add_argument("--eval-data", "--valid", required=True, help="a file of held-out stories")
    parser.add_argument("--prompts", type=int, default=20, help="stories whose first words are continued (20)")
    parser.add_argument("--max-new-tokens", "--new", type=int, default=200, help="greedy tokens per prompt (200)")
    parser.add_argument("--documents", type=int, default=200, help="stories whose bits per byte are measured (200)")
    args = parser.parse_args()
    texts = list(itertools.islice(documents(args.eval_data), max(args.documents, args.prompts)))
    print(json.dumps(greedy(args.checkpoint, texts[: args.prompts], args.max_new_tokens)), flush=True)
    exact = None
    for name, (dtype, weights) in FORMATS.items():
        bits = bits_per_byte(args.checkpoint, texts[: args.documents], dtype, weights)
        exact = bits if exact is None else exact
        values = {"bits_per_byte": round(bits, 5), "over_fp32": round(bits - exact, 5)}
        print(json.dumps({"figure": "bits per byte", "weights": name, **values}), flush=True)
    model, tokenizer = load(args.checkpoint, torch.bfloat16)
    window = texts[: args.documents], model.config.max_position_embeddings
    exact = evaluate(model, tokenizer, *window).bits_per_byte
    int8_prefill.quantize(model)
    bits = evaluate(model, tokenizer, *window).bits_per_byte
    values = {"bits_per_byte": round(bits, 5), "over_bf16": round(bits - exact, 5)}
    print(json.dumps({"figure": "bits per byte, read as prompts", "weights": "int8", **values}), flush=True)


if __name__ == "__main__":
    main()
