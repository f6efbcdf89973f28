"""Held-out loss against the plain computation, one document at a time."""

import math

import pytest
import torch

from deepseek.data import encode
from deepseek.evaluate import evaluate

TEXTS = ["the fox", "Once upon a time a fox ran over the hill.", "déjà vu 漢字 🦊", "a", "fox " * 30]


def nats(model, ids):
    """Negative log-likelihood of every token after the first."""
    with torch.no_grad():
        log_probabilities = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return -sum(float(log_probabilities[at, token]) for at, token in enumerate(ids[1:]))


def test_loss_and_bits_per_byte_are_those_of_each_document_alone(model, tokenizer):
    documents = [encode(tokenizer, text) for text in TEXTS]
    total = sum(nats(model, ids) for ids in documents)
    tokens, size = sum(len(ids) - 1 for ids in documents), sum(len(text.encode()) for text in TEXTS)
    for batch_size in (1, 3):
        result = evaluate(model, tokenizer, TEXTS, context=200, batch_size=batch_size)
        assert (result.tokens, result.bytes) == (tokens, size)
        assert result.loss == pytest.approx(total / tokens, rel=1e-5)
        assert result.bits_per_byte == pytest.approx(total / math.log(2) / size, rel=1e-5)


def test_a_document_longer_than_the_context_has_every_token_predicted_once(model, tokenizer):
    ids = encode(tokenizer, TEXTS[1])
    expected, context = 0.0, 8
    for first in range(1, len(ids), context - 1):
        expected += nats(model, ids[first - 1 : first - 1 + context])
    result = evaluate(model, tokenizer, [TEXTS[1]], context)
    assert result.tokens == len(ids) - 1 > 2 * context
    assert result.loss == pytest.approx(expected / (len(ids) - 1), rel=1e-5)


def test_load_is_counted_over_the_text_and_not_over_padding(model, tokenizer):
    alone = [evaluate(model, tokenizer, [text], 200).max_violation for text in TEXTS[:2]]
    with torch.no_grad():
        chosen = model(torch.tensor([encode(tokenizer, TEXTS[0])]), output_router_indices=True).router_indices
    counts = [torch.bincount(indices.flatten(), minlength=8) for indices in chosen]
    assert alone[0] == pytest.approx([float(count.max() / count.float().mean() - 1) for count in counts], abs=1e-3)
    # The same short text beside a long one is padded; if padding counted, four of it would not be as one of it.
    padded = evaluate(model, tokenizer, [TEXTS[0]] * 4, 200, batch_size=4).max_violation
    assert padded == alone[0]


def test_the_model_is_left_in_the_mode_it_was_in(model, tokenizer):
    evaluate(model, tokenizer, TEXTS[:1], 200)
    assert not model.training
    model.train()
    evaluate(model, tokenizer, TEXTS[:1], 200)
    assert model.training
    model.eval()


@pytest.mark.parametrize("texts", [[], [""]])
def test_no_text_is_refused(model, tokenizer, texts):
    with pytest.raises(ValueError, match="no text"):
        evaluate(model, tokenizer, texts, 200)
