"""What a run shows of itself beside its losses: held-out loss, samples, and where the experts send a fixed text."""

import itertools
from collections.abc import Iterator

import torch

from deepseek.data import DataError, documents, encode, held_out
from deepseek.evaluate import evaluate
from deepseek.trace import trace

SAMPLE_PROMPTS = ["Once upon a time", "In the depths of space", "The most interesting scientific discovery"]
PROBE = "Once upon a time there was a fox. Paris is the capital of France. def add(a, b): return a + b"
LONGEST_PROBE = 128  # tokens
LONGEST_VALIDATION = 20_000  # characters: a few books would otherwise take longer to validate on than to train on


def validation_texts(config) -> list[str]:
    """The first `valid_documents` held-out documents of every source, the first LONGEST_VALIDATION characters of each.

    Raises DataError for a text of `valid` that cannot be read or is empty.
    """
    if not config.valid_every:
        return []
    texts = []
    for source in config.valid or config.data:
        reader = documents(source) if config.valid else held_out(source)
        first = [text[:LONGEST_VALIDATION] for text in itertools.islice(reader, config.valid_documents)]
        if config.valid and not first:
            raise DataError(f"data {source!r} holds no text to validate on.")
        texts += first
    return texts


def observe(config, record, model, tokenizer, texts, due) -> Iterator[dict]:
    """What a step owes beside its own line, as lines of metrics.jsonl: held-out loss, samples, the probe."""
    if texts and due(config.valid_every):
        result = evaluate(model, tokenizer, texts, config.context)
        record.validation = {"val_loss": result.loss, "val_bits_per_byte": result.bits_per_byte}
        yield {"step": record.step, **record.validation}
    if due(config.sample_every):
        record.samples = sample(model, tokenizer, config.seed)
        yield {"step": record.step, "samples": record.samples}
    if config.probe and due(config.checkpoint_every):
        yield {"step": record.step, "probe": probe(model, tokenizer, config.probe)}


def sample(model, tokenizer, seed: int, temperature: float = 0.8, new_tokens: int = 100) -> list[dict]:
    """Real continuations of SAMPLE_PROMPTS by the model as it is now."""
    model.eval()
    samples = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for prompt in SAMPLE_PROMPTS:
            ids = torch.tensor([encode(tokenizer, prompt)], device=model.device)
            options = dict(do_sample=True, temperature=temperature, top_k=50, max_new_tokens=new_tokens)
            output = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
            samples.append({"prompt": prompt, "text": tokenizer.decode(output[0, 1:], skip_special_tokens=True)})
    model.train()
    return samples


def probe(model, tokenizer, text: str) -> dict:
    """Where each token of `text` (its first LONGEST_PROBE) goes now: "indices" and "weights" are layers x tokens x K."""
    ids = tokenizer(text)["input_ids"][: min(LONGEST_PROBE, model.config.max_position_embeddings)]
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
