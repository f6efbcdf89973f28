"""Held-out loss against the plain computation, one document at a time."""

import math

import pytest
import torch

from deepseek.data.tokenizer import encode_document
from deepseek.training.validation import evaluate

TEXTS = ["the fox", "Once upon a time a fox ran over the hill.", "déjà vu 漢字 🦊", "a", "fox " * 30]


def nats(model, ids):
    """Negative log-likelihood of every token after the first."""
    with torch.no_grad():
        log_probabilities = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return -sum(float(log_probabilities[at, token]) for at, token in enumerate(ids[1:]))


def test_loss_and_bits_per_byte_are_those_of_each_document_alone(model, tokenizer):
    documents = [encode_document(tokenizer, text) for text in TEXTS]
    total = sum(nats(model, ids) for ids in documents)
    tokens, size = sum(len(ids) - 1 for ids in documents), sum(len(text.encode()) for text in TEXTS)
    for batch_size in (1, 3):
        result = evaluate(model, tokenizer, TEXTS, context=200, batch_size=batch_size)
        assert (result.tokens, result.bytes) == (tokens, size)
        assert result.loss == pytest.approx(total / tokens, rel=1e-5)
        assert result.bits_per_byte == pytest.approx(total / math.log(2) / size, rel=1e-5)


def test_a_document_longer_than_the_context_has_every_token_predicted_once(model, tokenizer):
    ids = encode_document(tokenizer, TEXTS[1])
    expected, context = 0.0, 8
    for first in range(1, len(ids), context - 1):
        expected += nats(model, ids[first - 1 : first - 1 + context])
    result = evaluate(model, tokenizer, [TEXTS[1]], context)
    assert result.tokens == len(ids) - 1 > 2 * context
    assert result.loss == pytest.approx(expected / (len(ids) - 1), rel=1e-5)


def test_load_is_counted_over_the_text_and_not_over_padding(model, tokenizer):
    """A short text beside a long one is padded."""
    counts = 0
    for text in (TEXTS[0], TEXTS[4]):
        with torch.no_grad():
            chosen = model(torch.tensor([encode_document(tokenizer, text)]), output_router_indices=True).router_indices
        counts = counts + torch.stack([torch.bincount(layer.flatten(), minlength=8) for layer in chosen])
    expected = counts.amax(-1) / counts.float().mean(-1) - 1
    result = evaluate(model, tokenizer, [TEXTS[0], TEXTS[4]], 200, batch_size=2)
    assert result.max_violation == pytest.approx(expected.tolist(), abs=1e-3)


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
