"""What a run shows of itself beside its losses: held-out loss, samples, and where the experts send a fixed text."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from deepseek.data.dataloader import held_out
from deepseek.data.readers import DataError, documents
from deepseek.data.tokenizer import encode_document
from deepseek.interpret.trace import trace
from deepseek.model.load_balancing import load_shares, max_violation, tokens_per_expert

SAMPLE_PROMPTS = ["Once upon a time", "In the depths of space", "The most interesting scientific discovery"]
PROBE = "Once upon a time there was a fox. Paris is the capital of France. def add(a, b): return a + b"
MAX_PROBE_TOKENS = 128  # tokens
MAX_VALIDATION_CHARACTERS = (
    20_000  # characters: a few books would otherwise take longer to validate on than to train on
)


def validation_texts(config) -> list[str]:
    """The first `valid_documents` held-out documents of every source, the first LONGEST_VALIDATION characters of each.

    Raises DataError for a text of `valid` that cannot be read or is empty.
    """
    if not config.eval_every:
        return []
    texts = []
    for source in config.eval_data or config.data:
        reader = documents(source) if config.eval_data else held_out(source)
        first = [text[:MAX_VALIDATION_CHARACTERS] for text in itertools.islice(reader, config.eval_documents)]
        if config.eval_data and not first:
            raise DataError(f"data {source!r} holds no text to validate on.")
        texts += first
    return texts


def observe(config, record, model, tokenizer, texts, due) -> Iterator[dict]:
    """What a step owes beside its own line, as lines of metrics.jsonl: held-out loss, samples, the probe."""
    if texts and due(config.eval_every):
        result = evaluate(model, tokenizer, texts, config.max_seq_len)
        record.validation = {"val_loss": result.loss, "val_bits_per_byte": result.bits_per_byte}
        yield {"step": record.step, **record.validation}
    if due(config.sample_every):
        record.samples = sample(model, tokenizer, config.seed)
        yield {"step": record.step, "samples": record.samples}
    if config.probe and due(config.save_every):
        yield {"step": record.step, "probe": probe(model, tokenizer, config.probe)}


def sample(model, tokenizer, seed: int, temperature: float = 0.8, new_tokens: int = 100) -> list[dict]:
    """Real continuations of SAMPLE_PROMPTS by the model as it is now."""
    model.eval()
    samples = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for prompt in SAMPLE_PROMPTS:
            ids = torch.tensor([encode_document(tokenizer, prompt)], device=model.device)
            options = dict(do_sample=True, temperature=temperature, top_k=50, max_new_tokens=new_tokens)
            output = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
            samples.append({"prompt": prompt, "text": tokenizer.decode(output[0, 1:], skip_special_tokens=True)})
    model.train()
    return samples


def probe(model, tokenizer, text: str) -> dict:
    """Where each token of `text` (its first LONGEST_PROBE) goes now: "indices" and "weights" are layers x tokens x K."""
    ids = tokenizer(text)["input_ids"][: min(MAX_PROBE_TOKENS, model.config.max_position_embeddings)]
    model.eval()
    seen = trace(model, tokenizer, ids)
    model.train()
    return {
        "tokens": seen.tokens,
        "layers": [layer.layer for layer in seen.routing],
        "experts": model.config.n_routed_experts,
        "indices": [layer.indices.tolist() for layer in seen.routing],
        "weights": [[[round(w, 3) for w in token] for token in layer.weights.tolist()] for layer in seen.routing],
    }


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
        ids = encode_document(tokenizer, text)
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
            batch = torch.stack(
                [tokens_per_expert(layer, experts, mask_BS.flatten()) for layer in output.router_indices]
            )
            counts = batch if counts is None else counts + batch
    model.train(was_training)
    violation, load = [], []
    if counts is not None:
        violation = [round(v, 4) for v in max_violation(counts).tolist()]
        load = [[round(share, 4) for share in row] for row in load_shares(counts).tolist()]
    return Evaluation(nats / tokens, nats / math.log(2) / size, tokens, size, violation, load)
