"""Attention in blocks against its definition, in float64."""

import pytest
import torch

from deepseek.model import attention
from deepseek.model.attention import BLOCK, causal_attention


def inputs(tokens, dtype=torch.float32, texts=2, heads=3, width=24, value=16):
    generator = torch.Generator().manual_seed(tokens)
    shapes = [(texts, heads, tokens, width)] * 2 + [(texts, heads, tokens, value)]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def defined(query, key, value, scale):
    query, key, value = (x.detach().double().requires_grad_() for x in (query, key, value))
    scores = scale * query @ key.mT
    later = torch.ones_like(scores, dtype=torch.bool).triu(1)
    output = scores.masked_fill(later, -torch.inf).softmax(-1) @ value
    output.square().sum().backward()
    return [output, query.grad, key.grad, value.grad]


def found(query, key, value, scale):
    output = causal_attention(query, key, value, scale)
    output.square().sum().backward()
    return [output, query.grad, key.grad, value.grad]


@pytest.mark.parametrize("tokens", [2, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 3 * BLOCK + 50])
@pytest.mark.parametrize("dtype, close", [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_output_and_gradients_are_those_of_the_definition(tokens, dtype, close):
    query, key, value = inputs(tokens, dtype)
    for mine, exact in zip(found(query, key, value, 0.2), defined(query, key, value, 0.2)):
        assert mine.dtype == dtype and mine.shape == exact.shape
        assert (mine - exact).abs().max() <= close * exact.abs().max()


def test_bfloat16_scores_are_not_rounded():
    """Scores near 512 lie 2 to 4 apart in bfloat16: rounded, they would give weights of 0 and 1 in place of a half each."""
    query, key = torch.full((1, 1, 2, 64), 2.0), torch.full((1, 1, 2, 64), 4.0)
    key[0, 0, 1, 0] += 0.125
    value = torch.eye(2)[None, None]
    output = causal_attention(*(x.bfloat16() for x in (query, key, value)), 1.0)
    expected = torch.softmax(torch.tensor([512.0, 512.25]), 0)
    assert torch.allclose(output[0, 0, 1].float(), expected, atol=4e-3)


def test_under_an_autocast_it_computes_in_its_precision():
    query, key, value = inputs(100)
    with torch.autocast("cpu", torch.bfloat16):
        output = causal_attention(query, key, value, 0.2)
    assert output.dtype == torch.bfloat16
    rounded = [x.detach().bfloat16() for x in (query, key, value)]
    assert torch.equal(output, causal_attention(*rounded, 0.2))


def test_a_later_token_changes_nothing_before_it():
    query, key, value = (x.detach() for x in inputs(2 * BLOCK))
    before = causal_attention(query, key, value, 0.2)
    for changed in (query, key, value):
        changed[:, :, BLOCK + 10 :] += 1
    after = causal_attention(query, key, value, 0.2)
    same = (before == after).all(-1).all(0).all(0)
    assert same[: BLOCK + 10].all() and not same[BLOCK + 10 :].any()


def test_room_for_more_tokens_is_not_looked_at():
    query, key, value = inputs(20)
    longer = [torch.cat([x, torch.full_like(x, torch.nan)], 2) for x in (key, value)]
    assert torch.equal(causal_attention(query, *longer, 0.2), causal_attention(query, key, value, 0.2))


def test_the_fused_kernel_keeps_processors_with_tiles(monkeypatch):
    query = torch.ones(1)
    for tiles in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda tiles=tiles: tiles)
        assert attention.suits(query) is not tiles
    assert not attention.suits(torch.ones(1, device="meta"))
