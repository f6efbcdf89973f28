"""What a run measures beside its training loss: held-out loss, samples, and the routing of fixed texts."""

import itertools
import math
import zlib
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from deepseek.data.dataloader import held_out
from deepseek.data.file_formats import DataError
from deepseek.data.readers import documents
from deepseek.data.text_lines import ReadOptions, note
from deepseek.data.tokenizer import encode_document, token_texts, with_start
from deepseek.interpret.moe_layers import moe_layers
from deepseek.interpret.trace import trace
from deepseek.model.load_balancing import load_shares, max_violation, tokens_per_expert
from deepseek.training.config import SAMPLE_TOKENS

SAMPLE_PROMPTS = ["Once upon a time", "In the depths of space", "The most interesting scientific discovery"]
MAX_PROBE_TOKENS = 128
MAX_ROUTER_TOKENS = 256  # of all texts of a router record
MAX_ROW_TOKENS = 64  # of each of them
MAX_VALIDATION_CHARACTERS = 20_000  # per document: validating on a few whole books would take longer than the training


def validation_texts(config, options: ReadOptions) -> list[str]:
    """The first `eval_documents` held-out texts of every source, read with `options`, each cut to MAX_VALIDATION_CHARACTERS.

    Raises DataError where a source of `eval_data` cannot be read or is empty.
    """
    if not config.eval_every:
        return []
    texts = []
    for source in config.eval_data or config.data:
        if config.eval_data:
            source_texts = list(itertools.islice(documents(source, options), config.eval_documents))
            if not source_texts:
                raise DataError(f"data {source!r} holds no text to validate on.")
        else:
            source_texts = held_out(source, config.eval_documents, options)
        texts += [text[:MAX_VALIDATION_CHARACTERS] for text in source_texts]
    return texts


def texts_id(texts: list[str]) -> str:
    """Identifies validation texts: losses on other texts do not compare."""
    return f"{zlib.crc32(chr(0).join(texts).encode('utf-8', 'replace')):08x}"


@contextmanager
def eval_mode(model):
    """Within this context the model is in eval mode, afterwards in the mode that it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def sample(model, tokenizer, seed: int) -> list[dict]:
    """Continuations of SAMPLE_PROMPTS: [{"prompt", "text"}], where text includes the prompt.

    A sample ends at the model's context. A prompt has half of that at most, or of SAMPLE_TOKENS.
    """
    samples, max_tokens = [], min(SAMPLE_TOKENS, model.config.max_position_embeddings)
    options = dict(do_sample=True, temperature=0.8, top_k=50, top_p=1.0, repetition_penalty=1.0, max_length=max_tokens)
    with eval_mode(model), torch.random.fork_rng():
        torch.manual_seed(seed)
        for prompt in SAMPLE_PROMPTS:
            ids = torch.tensor([encode_document(tokenizer, prompt)[: max_tokens // 2]], device=model.device)
            output = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
            prompt, text = (tokenizer.decode(row[0], skip_special_tokens=True) for row in (ids, output))
            samples.append({"prompt": prompt, "text": text})
    return samples


def probe(model, tokenizer, text: str) -> dict:
    """The experts of each token of `text`, up to MAX_PROBE_TOKENS; "indices" and "weights" are (layers, tokens, K)."""
    ids = tokenizer(text)["input_ids"][: min(MAX_PROBE_TOKENS, model.config.max_position_embeddings)]
    with eval_mode(model):
        result = trace(model, tokenizer, ids)
    return {
        "tokens": result.tokens,
        "layers": [layer.layer for layer in result.routing],
        "experts": model.config.n_routed_experts,
        "indices": [layer.indices.tolist() for layer in result.routing],
        "weights": [[[round(w, 3) for w in token] for token in layer.weights.tolist()] for layer in result.routing],
    }


def routing_records(model, tokenizer, text: str, texts: list[str]) -> dict[str, dict]:
    """What metrics.jsonl holds on a checkpoint's routing: the `probe` of a text, and the `router_record` of it and others.

    {} for an empty text and for a model without experts.
    """
    if not text or not moe_layers(model):
        return {}
    return {"probe": probe(model, tokenizer, text), "routing": router_record(model, tokenizer, text, texts)}


@torch.no_grad()
def router_record(model, tokenizer, text: str, texts: list[str]) -> dict:
    """The experts of up to MAX_ROUTER_TOKENS tokens: the beginning of `text`, then those of `texts`, evenly spread over them.

    "tokens" are their texts, "layers" those with experts, "experts" how many each has, "indices" (layers, tokens, K), the
    largest weight first, and "bias" (layers, experts) the balancing bias. Recorded at every checkpoint, it outlives them.
    """
    length, stride = min(MAX_ROW_TOKENS, model.config.max_position_embeddings), max(1, len(texts) // 4)
    rows, left = [], MAX_ROUTER_TOKENS
    for each in itertools.chain([text], *(texts[start::stride] for start in range(stride))):
        ids = encode_document(tokenizer, each[: 20 * length])[: min(length, left)]
        rows, left = [*rows, torch.tensor(ids)], left - len(ids)
        if not left:
            break
    ids_BS = pad_sequence(rows, batch_first=True).to(model.device)
    mask_BS = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).to(model.device)
    options, mask = dict(use_cache=False, logits_to_keep=1), mask_BS.flatten().bool()
    with eval_mode(model):
        output = model(ids_BS, attention_mask=mask_BS, output_router_indices=True, output_router_logits=True, **options)
    layers, indices = moe_layers(model), []
    for logits, chosen in zip(output.router_logits, output.router_indices):
        order = logits.gather(-1, chosen).argsort(-1, descending=True)  # a weight grows with its logit
        indices.append(chosen.gather(-1, order)[mask].tolist())
    return {
        "tokens": [token for row in rows for token in token_texts(tokenizer, row.tolist())],
        "layers": list(layers),
        "experts": model.config.n_routed_experts,
        "indices": indices,
        "bias": [[round(b, 6) for b in layer.router.e_score_correction_bias.tolist()] for layer in layers.values()],
    }


@dataclass
class Evaluation:
    """`loss` in nats per token; `bits_per_byte` of the UTF-8 text that the tokens hold, which compares across tokenizers."""

    loss: float
    bits_per_byte: float
    tokens: int
    bytes: int
    max_violation: list[float]  # MaxVio of each MoE layer over all tokens
    load: list[list[float]]  # (layers, experts), fractions of the assignments


@torch.no_grad()
def evaluate(model, tokenizer, texts, max_seq_len: int, batch_size: int = 8) -> Evaluation:
    """Loss of `model` on documents, each cut into windows of `max_seq_len` tokens that overlap by one token.

    Every token is predicted exactly once, except the first of a document. Raises ValueError where there is no text.
    """
    windows, num_bytes, num_text_bytes = [], 0, 0
    for text in texts:
        text_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = with_start(tokenizer, text_ids)
        known = [token for token in text_ids if token != tokenizer.unk_token_id]
        given = tokenizer.decode(known, clean_up_tokenization_spaces=False)
        num_text_bytes += len(text.encode())
        num_bytes += min(len(text.encode()), len(given.encode()))
        windows += [ids[start : start + max_seq_len] for start in range(0, len(ids) - 1, max_seq_len - 1)]
    if not windows:
        raise ValueError("there is no text to evaluate on.")
    if num_bytes < num_text_bytes:
        share = f"{num_bytes:,} of the text's {num_text_bytes:,} bytes"
        note(f"the tokenizer drops characters: the model is given {share}, and bits per byte counts those.")
    windows.sort(key=len)  # less padding per batch
    nats, tokens, batch_counts = 0.0, 0, []
    with eval_mode(model):
        for start in range(0, len(windows), batch_size):
            rows = [torch.tensor(ids) for ids in windows[start : start + batch_size]]
            labels_BS = pad_sequence(rows, batch_first=True, padding_value=-100).to(model.device)
            mask_BS = (labels_BS != -100).long()
            output = model(labels_BS * mask_BS, attention_mask=mask_BS, use_cache=False, output_router_indices=True)
            logits, labels = output.logits[:, :-1].float().flatten(0, 1), labels_BS[:, 1:].flatten()
            nats += F.cross_entropy(logits, labels, reduction="sum").item()
            tokens += int(mask_BS[:, 1:].sum())
            if getattr(output, "router_indices", None):  # no other family records them
                num_experts, mask = model.config.n_routed_experts, mask_BS.flatten()
                counts = [tokens_per_expert(layer, num_experts, mask) for layer in output.router_indices]
                batch_counts.append(torch.stack(counts))
    load = load_statistics(sum(batch_counts)) if batch_counts else dict(load=[], max_violation=[])
    return Evaluation(nats / tokens, nats / math.log(2) / max(1, num_bytes), tokens, num_bytes, **load)


def load_statistics(counts_LE: torch.Tensor) -> dict:
    """`load`, (layers, experts) fractions of the assignments, and `max_violation`, per layer, both to 4 digits."""
    return {
        "load": [[round(fraction, 4) for fraction in row] for row in load_shares(counts_LE).tolist()],
        "max_violation": [round(violation, 4) for violation in max_violation(counts_LE).tolist()],
    }
