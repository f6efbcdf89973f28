"""Traces against plain forward passes, on our model, Mixtral, Llama and tiny models of other families."""

import copy
import threading

import pytest
import torch
from small import families
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from deepseek.interpret.trace import trace

TEXT = "Once upon a time a fox 🦊 ran"


def ids_of(tokenizer):
    return torch.tensor([tokenizer(TEXT)["input_ids"]])


@torch.no_grad()
def full_pass(model, ids, **inputs):
    return model(ids, use_cache=False, **inputs)


def by_expert(indices, weights):
    """Both (tokens, K), sorted by expert."""
    order = indices.argsort(-1)
    return indices.gather(-1, order), weights.gather(-1, order)


def assert_routed(routing, indices, weights):
    assert torch.equal(routing.weights, routing.weights.sort(-1, descending=True).values)
    for actual, expected in zip(by_expert(routing.indices, routing.weights), by_expert(indices, weights)):
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def test_routing_is_that_of_the_model(model, tokenizer):
    traced = trace(model, tokenizer, TEXT)
    output = full_pass(model, ids_of(tokenizer), output_router_logits=True, output_router_indices=True)
    assert [routing.layer for routing in traced.routing] == [1, 2]
    for routing, logits, indices in zip(traced.routing, output.router_logits, output.router_indices):
        scores = logits.sigmoid().gather(-1, indices)
        assert_routed(routing, indices, model.config.routed_scaling_factor * scores / scores.sum(-1, keepdim=True))
        assert routing.num_experts == 8


def test_routing_of_mixtral(mixtral, tokenizer):
    traced = trace(mixtral, tokenizer, TEXT)
    output = full_pass(mixtral, ids_of(tokenizer), output_router_logits=True)
    assert [routing.layer for routing in traced.routing] == [0, 1]
    for routing, logits in zip(traced.routing, output.router_logits):
        weights, indices = logits.softmax(-1).topk(2)
        assert_routed(routing, indices, weights / weights.sum(-1, keepdim=True))
        assert routing.num_experts == 4


def test_a_dense_model_has_no_routing(llama, tokenizer):
    assert trace(llama, tokenizer, TEXT).routing == []


def test_tokens_and_their_probabilities(any_model, tokenizer):
    traced = trace(any_model, tokenizer, TEXT)
    ids = ids_of(tokenizer)
    p = full_pass(any_model, ids).logits[0].softmax(-1)
    assert traced.ids == ids[0].tolist() and "".join(traced.tokens) == "<|endoftext|>" + TEXT
    assert traced.probabilities[0] is None
    assert traced.probabilities[1:] == pytest.approx([float(p[i, t]) for i, t in enumerate(traced.ids[1:])], abs=1e-5)


def test_attention_is_that_of_an_eager_model(any_model, tokenizer):
    config = copy.deepcopy(any_model.config)
    config._attn_implementation = "eager"
    eager = type(any_model)(config).eval()
    eager.load_state_dict(any_model.state_dict())
    expected = full_pass(eager, ids_of(tokenizer), output_attentions=True).attentions
    traced = trace(any_model, tokenizer, TEXT)
    for layer, weights in enumerate(expected):
        attention = traced.attention(layer)
        torch.testing.assert_close(attention, weights[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:2]))
        assert attention.triu(1).count_nonzero() == 0


def test_the_model_is_as_it_was_after_tracing(any_model, tokenizer):
    before = full_pass(any_model, ids_of(tokenizer)).logits
    trace(any_model, tokenizer, TEXT).attention(0)
    assert any_model.config._attn_implementation == "sdpa"
    assert torch.equal(full_pass(any_model, ids_of(tokenizer)).logits, before)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_attention_follows_the_weights_of_the_model(model, tokenizer):
    """A model in training is traced with its current weights."""
    changing = copy.deepcopy(model)
    before = trace(changing, tokenizer, TEXT).attention(0)
    with torch.no_grad():
        changing.model.layers[0].self_attn.q_b_proj.weight.mul_(-1)
    assert not torch.equal(trace(changing, tokenizer, TEXT).attention(0), before)


@pytest.mark.parametrize("name", ["model", "mixtral"])
def test_traces_at_once_never_mix(name, request, tokenizer):
    """Eight texts in eight threads, on a model that was never traced."""
    model = copy.deepcopy(request.getfixturevalue(name))
    texts = [TEXT[: 5 + 3 * index] + str(index) for index in range(8)]
    traces, barrier = [None] * 8, threading.Barrier(8)

    def work(index):
        barrier.wait()
        traces[index] = trace(model, tokenizer, texts[index])
        traces[index].attention(1)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for text, concurrent in zip(texts, traces):
        alone = trace(model, tokenizer, text)
        assert concurrent.ids == alone.ids and len(concurrent.routing) == len(alone.routing) > 0
        assert concurrent.probabilities[1:] == pytest.approx(alone.probabilities[1:], abs=1e-5)
        for layer, expected in zip(concurrent.routing, alone.routing):
            assert torch.equal(layer.indices, expected.indices)
            torch.testing.assert_close(layer.weights, expected.weights)
        torch.testing.assert_close(concurrent.attention(1), alone.attention(1))


@pytest.mark.parametrize("name", ["model", "mixtral", "deepseek_v2", "gpt_oss"])
def test_attention_of_a_range_is_that_part_of_the_whole(name, request, tokenizer):
    own = name in ("model", "mixtral")
    model = request.getfixturevalue(name) if own else AutoModelForCausalLM.from_config(families()[name]).eval()
    ids = torch.randint(5, 300, (40,), generator=torch.Generator().manual_seed(0)).tolist()
    whole = trace(model, tokenizer, ids).attention(1)
    for first, last in ((0, 40), (17, 33), (39, 40)):
        part = trace(model, tokenizer, ids).attention(1, first, last)
        torch.testing.assert_close(part, whole[:, first:last, :last], atol=1e-6, rtol=0)


def test_attention_of_a_long_text_comes_in_ranges(llama, tokenizer):
    model = LlamaForCausalLM(LlamaConfig(**{**llama.config.to_dict(), "max_position_embeddings": 1024})).eval()
    traced = trace(model, tokenizer, [5] * 600)
    assert traced.attention(0, 88, 600).shape == (4, 512, 600)
    for first, last in ((0, 600), (0, None), (5, 5), (9, 601), (-1, 4)):
        with pytest.raises(ValueError, match="^tokens are .*(512 at most|within 0 to 600)"):
            traced.attention(0, first, last)


def test_cache_stats_are_those_of_a_filled_cache(any_model, tokenizer):
    """Bytes and norms, against the model's own cache after a prefill."""
    traced = trace(any_model, tokenizer, TEXT)
    cache, count = traced.cache(), len(traced.ids)
    with torch.no_grad():
        layers = any_model(ids_of(tokenizer), use_cache=True).past_key_values.layers
    cached = [tensor[:, :, :count] for layer in layers for tensor in (layer.keys, layer.values)]
    assert cache.bytes * count == sum(tensor.numel() * tensor.element_size() for tensor in cached)
    if any_model.config.model_type != "deepseek_v3":
        assert cache.bytes == cache.uncompressed and cache.raw_norms is cache.cached_norms is None
        return
    assert cache.uncompressed == 4 * 3 * 9 * (8 + 8)  # fp32, layers, heads, and the width of a key and of a value
    assert cache.raw_norms.shape == cache.cached_norms.shape == (3, count)
    for norms, layer in zip(cache.cached_norms, layers):
        torch.testing.assert_close(norms, layer.keys[0, 0, :count, :16].norm(dim=-1))


def test_raw_norms_are_those_of_the_input_of_the_latent_norm(model, tokenizer):
    latents = []
    hooked = copy.deepcopy(model)
    for layer in hooked.model.layers:
        layer.self_attn.kv_a_layernorm.register_forward_pre_hook(lambda _, inputs: latents.append(inputs[0]))
    full_pass(hooked, ids_of(tokenizer))
    expected = torch.stack([latent.flatten(0, -2).norm(dim=-1) for latent in latents])
    torch.testing.assert_close(trace(model, tokenizer, TEXT).cache().raw_norms, expected)


@pytest.mark.parametrize("layer", [-1, 3, 100])
def test_a_layer_outside_the_model_is_refused(model, tokenizer, layer):
    with pytest.raises(ValueError, match=f"^layer is {layer}; it must be from 0 to 2"):
        trace(model, tokenizer, TEXT).attention(layer)


def test_a_text_fills_the_context_and_no_more(model, tokenizer):
    traced = trace(model, tokenizer, [5] * 256)
    assert len(traced.tokens) == 256 and traced.attention(2).shape == (9, 256, 256)
    with pytest.raises(ValueError, match="257 tokens; .* 256 at most"):
        trace(model, tokenizer, [5] * 257)


@pytest.mark.parametrize("text", ["", " \n", []])
def test_an_empty_text_is_refused(model, tokenizer, text):
    with pytest.raises(ValueError, match="empty"):
        trace(model, tokenizer, text)


def test_one_token_is_enough(any_model, tokenizer):
    traced = trace(any_model, tokenizer, [5])
    assert traced.probabilities == [None] and traced.attention(0).flatten().tolist() == [1.0] * len(traced.attention(0))


@pytest.mark.parametrize("name", ["mixtral", "olmoe", "qwen3", "deepseek_v2", "deepseek_v3", "gpt_oss"])
def test_the_traced_experts_are_those_that_ran(name, tokenizer):
    """The indices, against those that the model's own experts were called with."""
    model = AutoModelForCausalLM.from_config(families()[name]).eval()
    ran = {}

    def note(layer):
        def hook(module, arguments, keywords):
            tensors = [a for a in (*arguments, *keywords.values()) if torch.is_tensor(a)]
            ran[layer] = next(a for a in tensors if a.dtype == torch.int64)

        return hook

    for path, module in model.named_modules():
        if path.endswith("mlp.experts") or path.endswith("block_sparse_moe.experts"):
            layer = next(int(part) for part in path.split(".") if part.isdigit())
            module.register_forward_pre_hook(note(layer), with_kwargs=True)
    traced = trace(model, tokenizer, "Once upon a time there was a fox.")
    assert ran and [layer.layer for layer in traced.routing] == sorted(ran)
    for layer in traced.routing:
        chosen = ran[layer.layer].view(len(traced.ids), -1)
        assert layer.indices.sort(-1).values.tolist() == chosen.sort(-1).values.tolist()
        assert layer.weights.shape == layer.indices.shape and (layer.weights.diff(dim=-1) <= 0).all()
    assert traced.attention(0).shape == (4, len(traced.ids), len(traced.ids))
    assert traced.lens().choices.shape == (4, len(traced.ids))


def test_the_lens_applies_norm_and_head_to_every_layer(model, tokenizer):
    traced = trace(model, tokenizer, "Once upon a time")
    lens = traced.lens()
    with torch.no_grad():
        output = model(torch.tensor([traced.ids]), output_hidden_states=True)
        for row, hidden in enumerate(output.hidden_states[:-1]):
            probabilities = model.lm_head(model.model.norm(hidden))[0].softmax(-1)
            assert lens.choices[row].tolist() == probabilities.argmax(-1).tolist()
            assert torch.allclose(lens.probabilities[row], probabilities.amax(-1), atol=1e-5)
        assert lens.choices[-1].tolist() == output.logits[0].argmax(-1).tolist()
    for position, row in enumerate(lens.first_match_layer):
        column = lens.choices[:, position].tolist()
        assert column.index(column[-1]) == row
