"""Held-out loss against the plain computation, one document at a time."""

import math

import pytest
import torch
from chatting import WHOLE
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from deepseek.data.text_lines import note
from deepseek.data.tokenizer import encode_document
from deepseek.training.validation import MAX_PROBE_TOKENS, evaluate, probe

TEXTS = ["the fox", "Once upon a time a fox ran over the hill.", "déjà vu 漢字 🦊", "a", "fox " * 30]


def nats(model, ids):
    """Negative log-likelihood of every token after the first."""
    with torch.no_grad():
        log_probs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return -sum(float(log_probs[position, token]) for position, token in enumerate(ids[1:]))


def test_loss_and_bits_per_byte_are_those_of_each_document_alone(model, tokenizer):
    documents = [encode_document(tokenizer, text) for text in TEXTS]
    total = sum(nats(model, ids) for ids in documents)
    tokens, num_bytes = sum(len(ids) - 1 for ids in documents), sum(len(text.encode()) for text in TEXTS)
    for batch_size in (1, 3):
        result = evaluate(model, tokenizer, TEXTS, max_seq_len=200, batch_size=batch_size)
        assert (result.tokens, result.bytes) == (tokens, num_bytes)
        assert result.loss == pytest.approx(total / tokens, rel=1e-5)
        assert result.bits_per_byte == pytest.approx(total / math.log(2) / num_bytes, rel=1e-5)


def test_bits_per_byte_counts_the_characters_that_the_model_was_given(model, caplog):
    """A tokenizer of the letters a to z drops the others."""
    words = Tokenizer(models.BPE({"[UNK]": 0, **{chr(97 + i): i + 1 for i in range(26)}}, [], unk_token="[UNK]"))
    words.decoder = decoders.Fuse()
    lossy = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", bos_token="[UNK]")
    caplog.set_level("INFO", "deepseek")
    note.cache_clear()
    result, whole = (evaluate(model, lossy, [text], 200) for text in ("fo 漢字 x", "fox"))
    assert (result.bytes, whole.bytes) == (3, 3)
    assert result.bits_per_byte == pytest.approx(result.loss * result.tokens / math.log(2) / 3)
    assert caplog.messages == [
        "the tokenizer drops characters: the model is given 3 of the text's 11 bytes, and bits per byte counts those."
    ]


def test_bits_per_byte_counts_the_special_tokens_of_a_chat(chat_model, chat_tokenizer, caplog):
    caplog.set_level("INFO", "deepseek")
    assert evaluate(chat_model, chat_tokenizer, [WHOLE], 200).bytes == len(WHOLE) and not caplog.messages


def test_every_token_of_a_document_longer_than_the_window_is_predicted_once(model, tokenizer):
    ids, window = encode_document(tokenizer, TEXTS[1]), 8
    expected = sum(nats(model, ids[start : start + window]) for start in range(0, len(ids) - 1, window - 1))
    result = evaluate(model, tokenizer, [TEXTS[1]], window)
    assert result.tokens == len(ids) - 1 > 2 * window
    assert result.loss == pytest.approx(expected / (len(ids) - 1), rel=1e-5)


def test_load_counts_tokens_and_not_padding(model, tokenizer):
    """A short document beside a long one is padded."""
    counts = 0
    for text in (TEXTS[0], TEXTS[4]):
        with torch.no_grad():
            indices = model(torch.tensor([encode_document(tokenizer, text)]), output_router_indices=True).router_indices
        counts = counts + torch.stack([torch.bincount(layer.flatten(), minlength=8) for layer in indices])
    result = evaluate(model, tokenizer, [TEXTS[0], TEXTS[4]], 200, batch_size=2)
    assert result.max_violation == pytest.approx((counts.amax(-1) / counts.float().mean(-1) - 1).tolist(), abs=1e-3)
    torch.testing.assert_close(torch.tensor(result.load), counts / counts.sum(-1, keepdim=True), atol=1e-4, rtol=0)


def test_the_model_keeps_its_mode(model, tokenizer):
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


def test_a_probe_is_the_routing_of_its_first_tokens(model, tokenizer):
    text = "the fox " * 100
    ids = tokenizer(text)["input_ids"][:MAX_PROBE_TOKENS]
    result = probe(model, tokenizer, text)
    model.eval()
    with torch.no_grad():
        indices = model(torch.tensor([ids]), output_router_indices=True).router_indices
    assert (result["layers"], result["experts"], len(result["tokens"])) == ([1, 2], 8, MAX_PROBE_TOKENS)
    assert [[set(k) for k in layer] for layer in result["indices"]] == [[set(k) for k in t.tolist()] for t in indices]
    assert all(len(layer) == MAX_PROBE_TOKENS for layer in result["weights"])
