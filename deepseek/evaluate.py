"""Held-out loss of a checkpoint: `python -m deepseek.evaluate CHECKPOINT SOURCE ...`."""

import argparse
import json
import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F

from deepseek.balance import expert_counts, load_shares, max_violation
from deepseek.data import encode


@dataclass
class Evaluation:
    """`loss` in nats a token; `bits_per_byte` of the UTF-8 text, which does not depend on the tokenizer."""

    loss: float
    bits_per_byte: float
    tokens: int
    bytes: int
    max_violation: list[float]  # hard load of each MoE layer over the whole text
    load: list[list[float]]  # and its shares, layer x expert


@torch.no_grad()
def evaluate(model, tokenizer, texts, context: int, batch_size: int = 8) -> Evaluation:
    """Loss of `model` on documents, each cut into windows of `context` tokens that share one token.

    The begin-of-text token is given and not predicted; every other token of the text is predicted exactly once.
    Raises ValueError where there is no text.
    """
    windows, size = [], 0
    for text in texts:
        ids = encode(tokenizer, text)
        size += len(text.encode())
        windows += [ids[at : at + context] for at in range(0, len(ids) - 1, context - 1)]
    if not windows:
        raise ValueError("there is no text to evaluate on.")
    windows.sort(key=len)  # so that a batch holds little padding
    was_training = model.training
    model.eval()
    nats, tokens, counts = 0.0, 0, None
    for start in range(0, len(windows), batch_size):
        rows = windows[start : start + batch_size]
        longest = max(map(len, rows))
        ids_BS = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=model.device)
        mask_BS = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=model.device)
        output = model(ids_BS, attention_mask=mask_BS, use_cache=False, output_router_indices=True)
        labels = ids_BS[:, 1:].masked_fill(mask_BS[:, 1:] == 0, -100)
        nats += F.cross_entropy(output.logits[:, :-1].float().flatten(0, 1), labels.flatten(), reduction="sum").item()
        tokens += int(mask_BS[:, 1:].sum())
        if output.router_indices:
            experts = model.config.n_routed_experts
            batch = torch.stack([expert_counts(layer, experts, mask_BS.flatten()) for layer in output.router_indices])
            counts = batch if counts is None else counts + batch
    model.train(was_training)
    violation, load = [], []
    if counts is not None:
        violation = [round(v, 4) for v in max_violation(counts).tolist()]
        load = [[round(share, 4) for share in row] for row in load_shares(counts).tolist()]
    return Evaluation(nats / tokens, nats / math.log(2) / size, tokens, size, violation, load)


def main():
    from deepseek.checkpoint import load
    from deepseek.data import documents

    parser = argparse.ArgumentParser(description="Held-out loss of a checkpoint, one JSON line a source.")
    parser.add_argument("checkpoint", help="a folder or a Hub id")
    parser.add_argument("sources", nargs="+", help='files, Hub ids, or "builtin"')
    parser.add_argument("--context", type=int, help="tokens in a window (default: the model's context)")
    args = parser.parse_args()
    model, tokenizer = load(args.checkpoint, torch.float32)
    for source in args.sources:
        result = evaluate(model, tokenizer, documents(source), args.context or model.config.max_position_embeddings)
        print(json.dumps({"source": source.rsplit("/", 1)[-1], **asdict(result)}), flush=True)


if __name__ == "__main__":
    main()
