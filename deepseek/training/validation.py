"""What a run measures beside its training loss: held-out loss, samples, and the routing of a fixed text (the probe)."""

import itertools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from deepseek.data.dataloader import held_out
from deepseek.data.file_formats import DataError
from deepseek.data.readers import documents
from deepseek.data.tokenizer import encode_document
from deepseek.interpret.trace import trace
from deepseek.model.load_balancing import load_shares, max_violation, tokens_per_expert

SAMPLE_PROMPTS = ["Once upon a time", "In the depths of space", "The most interesting scientific discovery"]
PROBE = "Once upon a time there was a fox. Paris is the capital of France. def add(a, b): return a + b"
MAX_PROBE_TOKENS = 128
MAX_VALIDATION_CHARACTERS = 20_000  # per document: validating on a few whole books would take longer than the training


def validation_texts(config) -> list[str]:
    """The first `eval_documents` held-out documents of every source, each cut to MAX_VALIDATION_CHARACTERS.

    Raises DataError where a source of `eval_data` cannot be read or is empty.
    """
    if not config.eval_every:
        return []
    texts = []
    for source in config.eval_data or config.data:
        reader = documents(source) if config.eval_data else held_out(source)
        source_texts = [text[:MAX_VALIDATION_CHARACTERS] for text in itertools.islice(reader, config.eval_documents)]
        if config.eval_data and not source_texts:
            raise DataError(f"data {source!r} holds no text to validate on.")
        texts += source_texts
    return texts


def sample(model, tokenizer, seed: int) -> list[dict]:
    """Continuations of SAMPLE_PROMPTS: [{"prompt", "text"}], where text includes the prompt."""
    model.eval()
    samples = []
    options = dict(do_sample=True, temperature=0.8, top_k=50, max_new_tokens=100)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for prompt in SAMPLE_PROMPTS:
            ids = torch.tensor([encode_document(tokenizer, prompt)], device=model.device)
            output = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
            samples.append({"prompt": prompt, "text": tokenizer.decode(output[0, 1:], skip_special_tokens=True)})
    model.train()
    return samples


def probe(model, tokenizer, text: str) -> dict:
    """The experts of each token of `text`, up to MAX_PROBE_TOKENS; "indices" and "weights" are (layers, tokens, K)."""
    ids = tokenizer(text)["input_ids"][: min(MAX_PROBE_TOKENS, model.config.max_position_embeddings)]
    model.eval()
    result = trace(model, tokenizer, ids)
    model.train()
    return {
        "tokens": result.tokens,
        "layers": [layer.layer for layer in result.routing],
        "experts": model.config.n_routed_experts,
        "indices": [layer.indices.tolist() for layer in result.routing],
        "weights": [[[round(w, 3) for w in token] for token in layer.weights.tolist()] for layer in result.routing],
    }


@dataclass
class Evaluation:
    """`loss` in nats per token; `bits_per_byte` of the UTF-8 text, which compares across tokenizers."""

    loss: float
    bits_per_byte: float
    tokens: int
    bytes: int
    max_violation: list[float]  # MaxVio of each MoE layer over all tokens
    load: list[list[float]]  # (layers, experts), fractions of the assignments


@torch.no_grad()
def evaluate(model, tokenizer, texts, max_seq_len: int, batch_size: int = 8) -> Evaluation:
    """Loss of `model` on documents, each cut into windows of `max_seq_len` tokens that overlap by one token.

    Every token is predicted exactly once, except the begin-of-text token. Raises ValueError where there is no text.
    """
    windows, num_bytes = [], 0
    for text in texts:
        ids = encode_document(tokenizer, text)
        num_bytes += len(text.encode())
        windows += [ids[start : start + max_seq_len] for start in range(0, len(ids) - 1, max_seq_len - 1)]
    if not windows:
        raise ValueError("there is no text to evaluate on.")
    windows.sort(key=len)  # less padding per batch
    was_training = model.training
    model.eval()
    nats, tokens, batch_counts = 0.0, 0, []
    for start in range(0, len(windows), batch_size):
        rows = [torch.tensor(ids) for ids in windows[start : start + batch_size]]
        labels_BS = pad_sequence(rows, batch_first=True, padding_value=-100).to(model.device)
        mask_BS = (labels_BS != -100).long()
        output = model(labels_BS * mask_BS, attention_mask=mask_BS, use_cache=False, output_router_indices=True)
        logits, labels = output.logits[:, :-1].float().flatten(0, 1), labels_BS[:, 1:].flatten()
        nats += F.cross_entropy(logits, labels, reduction="sum").item()
        tokens += int(mask_BS[:, 1:].sum())
        if output.router_indices:
            num_experts, mask = model.config.n_routed_experts, mask_BS.flatten()
            counts = [tokens_per_expert(layer, num_experts, mask) for layer in output.router_indices]
            batch_counts.append(torch.stack(counts))
    model.train(was_training)
    load = load_statistics(sum(batch_counts)) if batch_counts else dict(load=[], max_violation=[])
    return Evaluation(nats / tokens, nats / math.log(2) / num_bytes, tokens, num_bytes, **load)


def load_statistics(counts_LE: torch.Tensor) -> dict:
    """`load`, (layers, experts) fractions of the assignments, and `max_violation`, per layer, both to 4 digits."""
    return {
        "load": [[round(fraction, 4) for fraction in row] for row in load_shares(counts_LE).tolist()],
        "max_violation": [round(violation, 4) for violation in max_violation(counts_LE).tolist()],
    }
