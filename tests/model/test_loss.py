"""The chunked cross-entropy against torch's own over all logits at once."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from deepseek.model import loss

NUM_TOKENS, WIDTH, VOCAB_SIZE, CHUNK_ROWS = 37, 24, 301, 7


@pytest.fixture
def inputs(monkeypatch):
    """(hidden, weight, labels), four labels ignored, in chunks of seven tokens."""
    monkeypatch.setattr(loss, "CHUNK_LOGITS", CHUNK_ROWS * VOCAB_SIZE)
    generator = torch.Generator().manual_seed(0)
    hidden = (3 * torch.randn(NUM_TOKENS, WIDTH, generator=generator)).requires_grad_()
    weight = torch.randn(VOCAB_SIZE, WIDTH, generator=generator).requires_grad_()
    labels = torch.randint(0, VOCAB_SIZE, (NUM_TOKENS,), generator=generator)
    labels[[0, 5, 20, 36]] = -100
    return hidden, weight, labels


@pytest.mark.parametrize("num_items", [None, 50, torch.tensor(50)])
def test_value_and_gradients_equal_those_of_all_logits_at_once(inputs, num_items):
    hidden, weight, labels = inputs
    actual = loss.cross_entropy(hidden, weight, labels, num_items)
    expected = F.cross_entropy(hidden @ weight.T, labels, reduction="sum") / (33 if num_items is None else 50)
    torch.testing.assert_close(actual, expected)
    gradients, expected_gradients = (torch.autograd.grad(2 * value, (hidden, weight)) for value in (actual, expected))
    torch.testing.assert_close(gradients, expected_gradients)


def test_large_logits_do_not_overflow(inputs):
    hidden, weight, labels = inputs
    actual = loss.cross_entropy(1e4 * hidden, weight, labels)
    torch.testing.assert_close(actual, F.cross_entropy(1e4 * hidden @ weight.T, labels))


def test_nan_propagates(inputs):
    hidden, weight, labels = inputs
    hidden.data[3, 3] = torch.nan
    assert loss.cross_entropy(hidden, weight, labels).isnan()


def test_no_tensor_holds_more_logits_than_a_chunk(inputs):
    hidden, weight, labels = inputs
    sizes = []

    class RecordSizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), named=None):
            result = function(*arguments, **(named or {}))
            sizes.extend(tensor.numel() for tensor in [result] if isinstance(tensor, torch.Tensor))
            return result

    with RecordSizes():
        loss.cross_entropy(hidden, weight, labels).backward()
    chunk, gradient = CHUNK_ROWS * VOCAB_SIZE, VOCAB_SIZE * WIDTH
    assert max(sizes) == max(chunk, gradient) < NUM_TOKENS * VOCAB_SIZE
