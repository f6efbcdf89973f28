"""DecodeModel against the model's own forward."""

import copy

import pytest
import torch
from families import tiny_model
from model.test_deepseek_v3 import VARIANTS
from small import randomized
from tiny_model import assert_close, logits_of, make_model, random_ids
from transformers import MixtralConfig, MixtralForCausalLM

from deepseek.inference.decode_model import DecodeModel, new_cache, supports
from deepseek.interpret.moe_layers import recorded_experts
from deepseek.model.config import preset
from deepseek.model.deepseek_v3 import DeepseekV3ForCausalLM
from deepseek.model.mla_cache import MLACache

UNSUPPORTED = {"groups"}


@pytest.fixture(scope="module")
def tiny():
    return make_model()


def decode(model, ids, weights="model", prefill=5):
    """Logits (tokens - prefill, vocabulary) after each of `ids` (1, tokens) past the first `prefill`."""
    cache = new_cache(model, prefill + 1)  # so that it has to grow
    if prefill:
        logits_of(model, ids[:, :prefill], past_key_values=cache)
    decode_model = DecodeModel(model, weights)
    return torch.cat([decode_model([token], [cache])[0] for token in ids[0, prefill:].tolist()])


def test_supports_names_the_models_it_can_decode(mixtral, tiny):
    assert {name for name, config in VARIANTS.items() if not supports(DeepseekV3ForCausalLM(config))} == UNSUPPORTED
    assert supports(mixtral) and not supports(copy.deepcopy(tiny).half())


def test_an_empty_cache_needs_no_prefill(tiny):
    ids = random_ids(1, 8)
    assert_close(decode(tiny, ids, prefill=0), logits_of(tiny, ids)[0])


def test_the_models_own_forward_continues_over_the_same_cache(tiny):
    ids, cache, decode_model = random_ids(1, 12), MLACache(tiny.config), DecodeModel(tiny)
    for token in ids[0, :6].tolist():
        decode_model([token], [cache])
    with torch.inference_mode():  # the cache holds inference tensors now
        logits = tiny(ids[:, 6:], past_key_values=cache).logits
    assert_close(logits, logits_of(tiny, ids)[:, 6:])


def test_a_bf16_model_is_as_accurate_as_its_own_forward(tiny):
    rounded, ids = copy.deepcopy(tiny).bfloat16(), random_ids(1, 24)
    expected = logits_of(tiny, ids)[0, 5:]
    forward_error = (logits_of(rounded, ids)[0, 5:].float() - expected).abs().mean()
    assert (decode(rounded, ids) - expected).abs().mean() < 1.2 * forward_error


@pytest.mark.parametrize("weights, bits", [("bf16", 8), ("int8", 7)])
def test_rounded_weights_err_by_their_rounding_alone(weights, bits):
    # Without routers, which flip on a tie.
    config = preset("demo", num_hidden_layers=2, vocab_size=300, first_k_dense_replace=2)
    model, ids = randomized(DeepseekV3ForCausalLM(config)), random_ids(1, 24)
    exact = decode(model, ids)
    error = (decode(model, ids, weights) - exact).norm() / exact.norm()
    assert 0 < error < 8 * 2**-bits


@pytest.mark.parametrize("weights", ["model", "bf16", "int8"])
@pytest.mark.parametrize("name", ["ours", "deepseek_v2", "qwen2_moe", "qwen3_moe"])
def test_a_batch_gives_each_sequence_what_it_gets_alone_to_the_last_bit(tiny, name, weights):
    model = tiny if name == "ours" else tiny_model(name)
    decode_model = DecodeModel(model, weights)
    sequences = [random_ids(1, 4 + 5 * row + 6)[0].tolist() for row in range(9)]

    def prefilled_caches():
        caches = [new_cache(model, 8) for _ in sequences]  # some of them will grow
        for ids, cache in zip(sequences, caches):
            logits_of(model, torch.tensor([ids[:-6]]), past_key_values=cache)
        return caches

    batch_caches, single_caches = prefilled_caches(), prefilled_caches()
    for index in range(-6, 0):
        logits_RV, routing = decode_model([ids[index] for ids in sequences], batch_caches)
        for row, (ids, cache) in enumerate(zip(sequences, single_caches)):
            expected, expected_routing = decode_model([ids[index]], [cache])
            assert torch.equal(logits_RV[row], expected[0]) and routing.keys() == expected_routing.keys()
            for layer, (indices, weights_RK) in expected_routing.items():
                assert routing[layer][0][row].tolist() == indices[0].tolist()
                assert routing[layer][1][row].tolist() == weights_RK[0].tolist()


LARGE = dict(hidden_size=256, vocab_size=3000, num_attention_heads=8, intermediate_size=512, num_hidden_layers=2)


@pytest.mark.parametrize("config", [preset("demo", num_hidden_layers=2, vocab_size=3000), MixtralConfig(**LARGE)])
def test_the_number_of_threads_changes_nothing(config):
    """The models are large enough for two threads, as is the prompt."""
    model_type = DeepseekV3ForCausalLM if config.model_type == "deepseek_v3" else MixtralForCausalLM
    model, ids = randomized(model_type(config)), random_ids(1, 220)
    decode_model, logits = DecodeModel(model), []
    for num_threads in (1, 2):
        cache = new_cache(model, 256)
        logits_of(model, ids[:, :-4], past_key_values=cache)
        torch.set_num_threads(num_threads)
        logits.append(torch.cat([decode_model([token], [cache])[0] for token in ids[0, -4:].tolist()]))
        assert torch.get_num_threads() == num_threads
        torch.set_num_threads(1)
    assert torch.equal(*logits)


def test_it_returns_the_experts_that_ran(tiny):
    ids = random_ids(1, 1)
    _, routing = DecodeModel(tiny)([int(ids)], [MLACache(tiny.config)])
    with recorded_experts(tiny) as expected:
        logits_of(tiny, ids)
    assert routing.keys() == expected.keys() == {1}
    assert sorted(routing[1][0][0].tolist()) == sorted(expected[1].indices[0].tolist())


def test_unknown_weights_are_refused(tiny):
    with pytest.raises(ValueError, match="weights is 'int4'"):
        DecodeModel(tiny, "int4")


def test_a_model_that_is_not_supported_is_refused(llama):
    assert new_cache(llama, 8) is None
    with pytest.raises(ValueError, match="model is of type 'llama'"):
        DecodeModel(llama)
