"""The loss by parts against torch's own over all logits at once."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from deepseek.model import loss

TOKENS, WIDTH, VOCABULARY = 37, 24, 301


@pytest.fixture
def given(monkeypatch):
    """(hidden, weight, labels), some of them left out, and parts of seven tokens."""
    monkeypatch.setattr(loss, "PART", 7 * VOCABULARY)
    generator = torch.Generator().manual_seed(0)
    hidden = (3 * torch.randn(TOKENS, WIDTH, generator=generator)).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator).requires_grad_()
    labels = torch.randint(0, VOCABULARY, (TOKENS,), generator=generator)
    labels[[0, 5, 20, 36]] = -100
    return hidden, weight, labels


@pytest.mark.parametrize("count", [None, 50, torch.tensor(50)])
def test_value_and_gradients_are_those_of_all_logits_at_once(given, count):
    hidden, weight, labels = given
    ours = loss.cross_entropy(hidden, weight, labels, count)
    (2 * ours).backward()
    found = [hidden.grad, weight.grad]
    hidden.grad = weight.grad = None
    expected = F.cross_entropy(hidden @ weight.T, labels, reduction="sum") / (33 if count is None else 50)
    torch.testing.assert_close(ours, expected)
    (2 * expected).backward()
    torch.testing.assert_close(found, [hidden.grad, weight.grad])


def test_logits_of_any_size_have_a_loss(given):
    hidden, weight, labels = given
    ours = loss.cross_entropy(1e4 * hidden, weight, labels)
    torch.testing.assert_close(ours, F.cross_entropy(1e4 * hidden @ weight.T, labels))


def test_a_number_that_is_not_one_is_seen(given):
    hidden, weight, labels = given
    hidden.data[3, 3] = torch.nan
    assert loss.cross_entropy(hidden, weight, labels).isnan()


def test_no_tensor_holds_more_logits_than_a_part(given):
    hidden, weight, labels = given
    sizes = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), named=None):
            made = function(*arguments, **(named or {}))
            sizes.extend(tensor.numel() for tensor in [made] if isinstance(tensor, torch.Tensor))
            return made

    with Sizes():
        loss.cross_entropy(hidden, weight, labels).backward()
    assert max(sizes) == max(7 * VOCABULARY, VOCABULARY * WIDTH) < TOKENS * VOCABULARY
