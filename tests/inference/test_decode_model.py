"""The fast way through the weights against the model's own forward."""

import copy

import pytest
import torch
from test_model import VARIANTS, assert_close, logits_of, make, randomize, tokens

from deepseek.inference.decode_model import DecodeModel, supports
from deepseek.interpret.trace import recorded_routing
from deepseek.model.config import preset
from deepseek.model.deepseek_v3 import DeepseekV3ForCausalLM
from deepseek.model.mla_cache import MLACache


def decoded(model, ids, weights="model", prefill=5):
    """Logits (tokens - prefill, vocabulary) after each of `ids` (1, tokens) past the first `prefill`."""
    cache = MLACache(model.config, capacity=prefill + 1)  # so that it has to grow
    if prefill:
        logits_of(model, ids[:, :prefill], past_key_values=cache)
    decoder = DecodeModel(model, weights)
    return torch.cat([decoder([token], [cache])[0] for token in ids[0, prefill:].tolist()])


OTHERS = {"groups", "scaled weights"}  # what it does not take on
TAKEN = {name: config for name, config in VARIANTS.items() if name not in OTHERS}


def test_it_says_which_models_it_suits(mixtral):
    assert {name for name, config in VARIANTS.items() if not supports(DeepseekV3ForCausalLM(config))} == OTHERS
    assert not supports(mixtral) and not supports(make().half())


@pytest.mark.parametrize("config", TAKEN.values(), ids=TAKEN.keys())
def test_it_gives_what_one_forward_pass_gives(config):
    model, ids = randomize(DeepseekV3ForCausalLM(copy.deepcopy(config))), tokens(1, 24)
    assert_close(decoded(model, ids), logits_of(model, ids)[0, 5:])


def test_it_needs_no_prefill():
    model, ids = make(), tokens(1, 8)
    assert_close(decoded(model, ids, prefill=0), logits_of(model, ids)[0])


def test_the_model_goes_on_where_it_stopped():
    model, ids, cache = make(), tokens(1, 12), MLACache(make().config)
    decoder = DecodeModel(model)
    for token in ids[0, :6].tolist():
        decoder([token], [cache])
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


@pytest.mark.parametrize("weights", ["model", "bf16", "int8"])
def test_texts_that_step_together_get_what_each_gets_alone_to_the_last_bit(weights):
    model, decoder = make(), DecodeModel(make(), weights)
    ids = [tokens(1, 4 + 5 * row + 6)[0].tolist() for row in range(9)]

    def caches():
        made = [MLACache(model.config, 8) for _ in ids]  # some of them will grow
        for row, cache in zip(ids, made):
            logits_of(model, torch.tensor([row[:-6]]), past_key_values=cache)
        return made

    together, alone = caches(), caches()
    for place in range(-6, 0):
        logits, routing = decoder([row[place] for row in ids], together)
        for r, (row, cache) in enumerate(zip(ids, alone)):
            expected, routed = decoder([row[place]], [cache])
            assert torch.equal(logits[r], expected[0])
            for layer, (indices, weights_RK) in routed.items():
                assert routing[layer][0][r].tolist() == indices[0].tolist()
                assert routing[layer][1][r].tolist() == weights_RK[0].tolist()


def test_the_number_of_threads_changes_nothing():
    shape = preset("demo", num_hidden_layers=2, vocab_size=3000)  # large enough to be shared out
    decoder, ids = DecodeModel(randomize(DeepseekV3ForCausalLM(shape))), tokens(1, 80)[0].tolist()
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        cache = MLACache(shape)
        found.append(torch.cat([decoder([token], [cache])[0] for token in ids]))
        assert torch.get_num_threads() == threads
    torch.set_num_threads(1)
    assert torch.equal(*found)


def test_the_experts_that_ran_are_told():
    model, ids, cache = make(), tokens(1, 1), MLACache(make().config)
    _, routing = DecodeModel(model)([int(ids)], [cache])
    with recorded_routing(model) as expected:
        logits_of(model, ids)
    assert routing.keys() == expected.keys() == {1}
    assert sorted(routing[1][0][0].tolist()) == sorted(expected[1][1][0].tolist())


def test_unknown_weights_are_refused():
    with pytest.raises(ValueError, match="weights is 'int4'"):
        DecodeModel(make(), "int4")
