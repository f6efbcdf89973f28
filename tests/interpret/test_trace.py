"""Routing and attention of a text against plain passes of the model, on models of three kinds."""

import copy
import threading

import pytest
import torch
from transformers import AutoModelForCausalLM, Llama4ForCausalLM, Llama4TextConfig, LlamaConfig, LlamaForCausalLM

from deepseek.interpret.trace import trace

TEXT = "Once upon a time a fox 🦊 ran"


def ids_of(tokenizer):
    return torch.tensor([tokenizer(TEXT)["input_ids"]])


@torch.no_grad()
def full_pass(model, ids, **inputs):
    return model(ids, use_cache=False, **inputs)


def by_expert(indices, weights):
    """Both (tokens, K), in the order of the experts' numbers."""
    order = indices.argsort(-1)
    return indices.gather(-1, order), weights.gather(-1, order)


def assert_routed(routing, indices, weights):
    assert torch.equal(routing.weights, routing.weights.sort(-1, descending=True).values)
    found = by_expert(routing.indices, routing.weights)
    for actual, expected in zip(found, by_expert(indices, weights)):
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def test_routing_is_that_of_the_model(model, tokenizer):
    seen = trace(model, tokenizer, TEXT)
    output = full_pass(model, ids_of(tokenizer), output_router_logits=True, output_router_indices=True)
    assert [routing.layer for routing in seen.routing] == [1, 2]
    for routing, logits, indices in zip(seen.routing, output.router_logits, output.router_indices):
        scores = logits.sigmoid().gather(-1, indices)
        assert_routed(routing, indices, model.config.routed_scaling_factor * scores / scores.sum(-1, keepdim=True))
        assert routing.experts == 8


def test_routing_of_mixtral(mixtral, tokenizer):
    seen = trace(mixtral, tokenizer, TEXT)
    output = full_pass(mixtral, ids_of(tokenizer), output_router_logits=True)
    assert [routing.layer for routing in seen.routing] == [0, 1]
    for routing, logits in zip(seen.routing, output.router_logits):
        weights, indices = logits.softmax(-1).topk(2)
        assert_routed(routing, indices, weights / weights.sum(-1, keepdim=True))
        assert routing.experts == 4


def test_a_dense_model_has_no_routing(llama, tokenizer):
    assert trace(llama, tokenizer, TEXT).routing == []


def test_tokens_and_their_probabilities(any_model, tokenizer):
    seen = trace(any_model, tokenizer, TEXT)
    ids = ids_of(tokenizer)
    p = full_pass(any_model, ids).logits[0].softmax(-1)
    assert seen.ids == ids[0].tolist() and "".join(seen.tokens) == "<|endoftext|>" + TEXT
    assert seen.probabilities[0] is None
    assert seen.probabilities[1:] == pytest.approx([float(p[i, t]) for i, t in enumerate(seen.ids[1:])], abs=1e-5)


def test_attention_is_that_of_an_eager_model(any_model, tokenizer):
    config = copy.deepcopy(any_model.config)
    config._attn_implementation = "eager"
    eager = type(any_model)(config).eval()
    eager.load_state_dict(any_model.state_dict())
    expected = full_pass(eager, ids_of(tokenizer), output_attentions=True).attentions
    seen = trace(any_model, tokenizer, TEXT)
    for layer, weights in enumerate(expected):
        attention = seen.attention(layer)
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
    """A model that goes on training is seen as it is now, not as it was when first looked at."""
    changing = copy.deepcopy(model)
    before = trace(changing, tokenizer, TEXT).attention(0)
    with torch.no_grad():
        changing.model.layers[0].self_attn.q_b_proj.weight.mul_(-1)
    assert not torch.equal(trace(changing, tokenizer, TEXT).attention(0), before)


@pytest.mark.parametrize("name", ["model", "mixtral"])
def test_traces_at_once_never_mix(name, request, tokenizer):
    """Eight texts in eight threads, on a model that nobody has traced before."""
    model = copy.deepcopy(request.getfixturevalue(name))
    texts = [TEXT[: 5 + 3 * index] + str(index) for index in range(8)]
    found, together = [None] * 8, threading.Barrier(8)

    def work(index):
        together.wait()
        found[index] = trace(model, tokenizer, texts[index])
        found[index].attention(1)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for text, there in zip(texts, found):
        alone = trace(model, tokenizer, text)
        assert there.ids == alone.ids and len(there.routing) == len(alone.routing) > 0
        assert there.probabilities[1:] == pytest.approx(alone.probabilities[1:], abs=1e-5)
        for one, other in zip(there.routing, alone.routing):
            assert torch.equal(one.indices, other.indices)
            torch.testing.assert_close(one.weights, other.weights)
        torch.testing.assert_close(there.attention(1), alone.attention(1))


@pytest.mark.parametrize("name", ["model", "mixtral", "deepseek_v2", "gpt_oss"])
def test_attention_of_a_range_is_that_part_of_the_whole(name, request, tokenizer):
    own = name in ("model", "mixtral")
    model = request.getfixturevalue(name) if own else AutoModelForCausalLM.from_config(families()[name]).eval()
    ids = torch.randint(5, 300, (40,), generator=torch.Generator().manual_seed(0)).tolist()
    whole = trace(model, tokenizer, ids).attention(1)
    for first, last in ((0, 40), (17, 33), (39, 40)):
        part = trace(model, tokenizer, ids).attention(1, first, last)
        torch.testing.assert_close(part, whole[:, first:last, :last], atol=1e-6, rtol=0)


def test_a_long_text_is_attended_to_in_ranges(llama, tokenizer):
    model = LlamaForCausalLM(LlamaConfig(**{**llama.config.to_dict(), "max_position_embeddings": 1024})).eval()
    seen = trace(model, tokenizer, [5] * 600)
    assert seen.attention(0, 88, 600).shape == (4, 512, 600)
    for first, last in ((0, 600), (0, None), (5, 5), (9, 601), (-1, 4)):
        with pytest.raises(ValueError, match="^tokens are .*(512 at most|within 0 to 600)"):
            seen.attention(0, first, last)


def test_cache_figures_are_those_of_a_cache_that_was_filled(any_model, tokenizer):
    """Bytes and norms, against what is in the cache after the model has read the text."""
    seen = trace(any_model, tokenizer, TEXT)
    cache, count = seen.cache(), len(seen.ids)
    with torch.no_grad():
        layers = any_model(ids_of(tokenizer), use_cache=True).past_key_values.layers
    held = [tensor[:, :, :count] for layer in layers for tensor in (layer.keys, layer.values)]
    assert cache.bytes * count == sum(tensor.numel() * tensor.element_size() for tensor in held)
    if any_model.config.model_type != "deepseek_v3":
        assert cache.bytes == cache.uncompressed and cache.raw is cache.kept is None
        return
    assert cache.uncompressed == 4 * 3 * 9 * (8 + 8)  # fp32, layers, heads, and the width of a key and of a value
    assert cache.raw.shape == cache.kept.shape == (3, count)
    for norms, layer in zip(cache.kept, layers):
        torch.testing.assert_close(norms, layer.keys[0, 0, :count, :16].norm(dim=-1))


def test_raw_latents_are_those_that_the_norm_is_given(model, tokenizer):
    given = []
    watched = copy.deepcopy(model)
    for layer in watched.model.layers:
        layer.self_attn.kv_a_layernorm.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    full_pass(watched, ids_of(tokenizer))
    expected = torch.stack([latent.flatten(0, -2).norm(dim=-1) for latent in given])
    torch.testing.assert_close(trace(model, tokenizer, TEXT).cache().raw, expected)


@pytest.mark.parametrize("layer", [-1, 3, 100])
def test_a_layer_that_is_not_there_is_refused(model, tokenizer, layer):
    with pytest.raises(ValueError, match=f"^layer is {layer}; it must be from 0 to 2"):
        trace(model, tokenizer, TEXT).attention(layer)


def test_a_text_fills_the_context_and_no_more(model, tokenizer):
    seen = trace(model, tokenizer, [5] * 256)
    assert len(seen.tokens) == 256 and seen.attention(2).shape == (9, 256, 256)
    with pytest.raises(ValueError, match="257 tokens; .* 256 at most"):
        trace(model, tokenizer, [5] * 257)


@pytest.mark.parametrize("text", ["", " \n", []])
def test_an_empty_text_is_refused(model, tokenizer, text):
    with pytest.raises(ValueError, match="empty"):
        trace(model, tokenizer, text)


def test_one_token_is_a_text(any_model, tokenizer):
    seen = trace(any_model, tokenizer, [5])
    assert seen.probabilities == [None] and seen.attention(0).flatten().tolist() == [1.0] * len(seen.attention(0))


def dense():
    """Two tiny configurations without experts."""
    import transformers as t

    ends = dict(bos_token_id=0, eos_token_id=0)
    return {
        "llama": t.LlamaConfig(vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                               num_attention_heads=4, max_position_embeddings=64, **ends),
        "gpt2": t.GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4, n_positions=64, **ends),
    }  # fmt: skip


def families():
    """Tiny configurations of six mixtures of experts, as transformers builds them."""
    import transformers as t

    common = dict(
        vocab_size=300, hidden_size=32, intermediate_size=48, moe_intermediate_size=24, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=4, head_dim=8, max_position_embeddings=64, pad_token_id=0,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    latent = dict(
        q_lora_rank=16, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8, n_routed_experts=8,
        n_group=4, topk_group=2, num_experts_per_tok=2, first_k_dense_replace=1, n_shared_experts=1,
    )  # fmt: skip
    return {
        "mixtral": t.MixtralConfig(**common, num_local_experts=4),
        "olmoe": t.OlmoeConfig(**common, num_experts=8, num_experts_per_tok=3),
        "qwen3": t.Qwen3MoeConfig(**common, num_experts=8, num_experts_per_tok=2),
        "deepseek_v2": t.DeepseekV2Config(**common, **latent),
        "deepseek_v3": t.DeepseekV3Config(**{**common, "head_dim": 4}, **latent),
        "gpt_oss": t.GptOssConfig(**common, num_local_experts=4, num_experts_per_tok=2),
    }


@pytest.mark.parametrize("name", ["mixtral", "olmoe", "qwen3", "deepseek_v2", "deepseek_v3", "gpt_oss"])
def test_any_mixture_is_traced_with_the_experts_that_it_really_ran(name, tokenizer):
    """The indices are held against those that the model's own experts were called with."""
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
    seen = trace(model, tokenizer, "Once upon a time there was a fox.")
    assert ran and [layer.layer for layer in seen.routing] == sorted(ran)
    for layer in seen.routing:
        chosen = ran[layer.layer].view(len(seen.ids), -1)
        assert layer.indices.sort(-1).values.tolist() == chosen.sort(-1).values.tolist()
        assert layer.weights.shape == layer.indices.shape and (layer.weights.diff(dim=-1) <= 0).all()
    assert seen.attention(0).shape == (4, len(seen.ids), len(seen.ids))
    assert seen.lens().choices.shape == (4, len(seen.ids))


def test_a_router_of_another_kind_is_left_alone(tokenizer):
    """Llama 4's answers (scores, logits) and no choice: its texts are traced without routing."""
    shape = dict(intermediate_size_mlp=48, num_local_experts=4, head_dim=8, attn_temperature_tuning=False)
    plain = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    shape |= {name: getattr(dense()["llama"], name) for name in plain}
    model = Llama4ForCausalLM(Llama4TextConfig(**shape, num_key_value_heads=4, pad_token_id=0)).eval()
    seen = trace(model, tokenizer, TEXT)
    assert seen.routing == [] and seen.attention(0).shape[0] == 4


def test_lens_reads_every_layer_through_norm_and_head(model, tokenizer):
    seen = trace(model, tokenizer, "Once upon a time")
    lens = seen.lens()
    with torch.no_grad():
        output = model(torch.tensor([seen.ids]), output_hidden_states=True)
        for row, hidden in enumerate(output.hidden_states[:-1]):
            probabilities = model.lm_head(model.model.norm(hidden))[0].softmax(-1)
            assert lens.choices[row].tolist() == probabilities.argmax(-1).tolist()
            assert torch.allclose(lens.probabilities[row], probabilities.amax(-1), atol=1e-5)
        assert lens.choices[-1].tolist() == output.logits[0].argmax(-1).tolist()
    for place, row in enumerate(lens.first_match_layer):
        column = lens.choices[:, place].tolist()
        assert column.index(column[-1]) == row
