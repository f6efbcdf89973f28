"""The fast way through the weights against the model's own forward."""

import copy

import pytest
import torch
from test_model import VARIANTS, assert_close, logits_of, make, randomize, tokens

from deepseek.config import preset
from deepseek.decode import Decoder
from deepseek.model import DeepseekV3ForCausalLM, LatentCache
from deepseek.product import Product
from deepseek.trace import recorded_routing


def decoded(model, ids, weights="model", prefill=5):
    """Logits (tokens - prefill, vocabulary) after each of `ids` (1, tokens) past the first `prefill`."""
    cache = LatentCache(model.config, capacity=prefill + 1)  # so that it has to grow
    if prefill:
        logits_of(model, ids[:, :prefill], past_key_values=cache)
    decoder = Decoder(model, weights)
    return torch.stack([decoder(token, cache) for token in ids[0, prefill:].tolist()])


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_it_gives_what_one_forward_pass_gives(config):
    model, ids = randomize(DeepseekV3ForCausalLM(copy.deepcopy(config))), tokens(1, 24)
    assert_close(decoded(model, ids), logits_of(model, ids)[0, 5:])


def test_it_needs_no_prefill():
    model, ids = make(), tokens(1, 8)
    assert_close(decoded(model, ids, prefill=0), logits_of(model, ids)[0])


def test_the_model_goes_on_where_it_stopped():
    model, ids, cache = make(), tokens(1, 12), LatentCache(make().config)
    decoder = Decoder(model)
    for token in ids[0, :6].tolist():
        decoder(token, cache)
    with torch.inference_mode():
        rest = model(ids[:, 6:], past_key_values=cache).logits
    assert_close(rest, logits_of(model, ids)[:, 6:])


def test_a_bf16_model_decodes_as_closely_as_its_own_forward():
    exact, ids = make(), tokens(1, 24)
    rounded = copy.deepcopy(exact).bfloat16()
    expected = logits_of(exact, ids)[0, 5:]
    forward = (logits_of(rounded, ids)[0, 5:].float() - expected).abs().mean()
    assert (decoded(rounded, ids) - expected).abs().mean() < 1.2 * forward


@pytest.mark.parametrize("weights, bits", [("bf16", 8), ("int8", 7)])
def test_rounded_weights_cost_their_rounding_and_no_more(weights, bits):
    shape = preset(
        "demo", num_hidden_layers=2, vocab_size=300, first_k_dense_replace=2
    )  # no routers: they flip on a tie
    model, ids = randomize(DeepseekV3ForCausalLM(shape)), tokens(1, 24)
    exact, rounded = decoded(model, ids), decoded(model, ids, weights)
    error = (rounded - exact).norm() / exact.norm()
    assert 0 < error < 8 * 2**-bits


def test_int8_keeps_every_row_within_half_a_step():
    weight = torch.randn(300, 128)
    product, step = Product("int8", weight), weight.abs().amax(1) / 127
    restored = product.matrix * step[:, None]
    assert ((restored - weight).abs() <= step[:, None] * 0.5001).all()


def test_the_experts_that_ran_are_recorded():
    model, ids, cache = make(), tokens(1, 1), LatentCache(make().config)
    with recorded_routing(model) as record:
        Decoder(model)(int(ids), cache)
    with recorded_routing(model) as expected:
        logits_of(model, ids)
    assert record.keys() == expected.keys() == {1}
    assert sorted(record[1][1][0].tolist()) == sorted(expected[1][1][0].tolist())


def test_unknown_weights_are_refused():
    with pytest.raises(ValueError, match="weights is 'int4'"):
        Decoder(make(), "int4")
