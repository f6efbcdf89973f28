"""Blocked causal attention against its definition in float64."""

import pytest
import torch

from deepseek.model.attention import BLOCK, causal_attention, supports


def random_inputs(num_tokens, dtype=torch.float32):
    """(query, key, value) of 2 sequences and 3 heads; keys are 24 wide and values 16."""
    generator = torch.Generator().manual_seed(num_tokens)
    shapes = [(2, 3, num_tokens, 24)] * 2 + [(2, 3, num_tokens, 16)]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def reference(query, key, value, scale):
    scores = scale * query @ key.mT
    masked = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
    return masked.softmax(-1) @ value


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_the_output_equals_the_definition(dtype, tolerance):
    for num_tokens in (2, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 3 * BLOCK + 50):
        inputs = random_inputs(num_tokens, dtype)
        output, expected = causal_attention(*inputs, 0.2), reference(*(x.double() for x in inputs), 0.2)
        assert output.dtype == dtype and output.shape == expected.shape
        assert (output - expected).abs().max() <= tolerance * expected.abs().max()


def test_bfloat16_scores_are_not_rounded():
    """bfloat16 near 512 has steps of 2 to 4: rounded scores would give weights of 0 and 1 instead of about a half each."""
    query, key = torch.full((1, 1, 2, 64), 2.0), torch.full((1, 1, 2, 64), 4.0)
    key[0, 0, 1, 0] += 0.125
    value = torch.eye(2)[None, None]
    output = causal_attention(*(x.bfloat16() for x in (query, key, value)), 1.0)
    expected = torch.softmax(torch.tensor([512.0, 512.25]), 0)
    assert torch.allclose(output[0, 0, 1].float(), expected, atol=4e-3)


def test_scores_in_bfloat16_cost_as_much_as_values_in_it():
    inputs = [x.bfloat16() for x in random_inputs(3 * BLOCK + 50)]
    output, expected = causal_attention(*inputs, 0.2, torch.bfloat16), reference(*(x.double() for x in inputs), 0.2)
    assert output.dtype == torch.bfloat16
    assert (output - expected).abs().max() <= 3e-2 * expected.abs().max()


def test_a_later_token_does_not_change_earlier_outputs():
    query, key, value = random_inputs(2 * BLOCK)
    before = causal_attention(query, key, value, 0.2)
    for changed in (query, key, value):
        changed[:, :, BLOCK + 10 :] += 1
    equal = (before == causal_attention(query, key, value, 0.2)).all(-1).all(0).all(0)
    assert equal[: BLOCK + 10].all() and not equal[BLOCK + 10 :].any()


def test_keys_and_values_beyond_the_queries_are_ignored():
    query, key, value = random_inputs(20)
    longer = [torch.cat([x, torch.full_like(x, torch.nan)], 2) for x in (key, value)]
    assert torch.equal(causal_attention(query, *longer, 0.2), causal_attention(query, key, value, 0.2))


def test_it_is_for_inference_on_cpus_without_amx_tiles(monkeypatch):
    for has_tiles in (True, False):
        monkeypatch.setattr(
            "deepseek.model.cpu_features.cpu_flags", lambda has_tiles=has_tiles: {"amx-tile": has_tiles}
        )
        with torch.no_grad():
            assert supports(torch.ones(1)) is not has_tiles
            assert not supports(torch.ones(1, device="meta"))
            with torch.autocast("cpu", torch.bfloat16):
                assert not supports(torch.ones(1))
        assert not supports(torch.ones(1))
