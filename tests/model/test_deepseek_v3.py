"""The model against its definitions, and against transformers' own DeepseekV3ForCausalLM."""

import copy
import json
import math

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors import safe_open

from deepseek.model.config import kv_cache_elements_per_token, preset
from deepseek.model.deepseek_v3 import DeepseekV3Experts, DeepseekV3ForCausalLM
from deepseek.model.mla_cache import MLACache

Stock = transformers.DeepseekV3ForCausalLM
both_attentions = pytest.mark.parametrize("attention", ["sdpa", "eager"])


def randomize(model):
    """Weights large enough that experts, heads and positions all matter, and a bias that changes which experts win."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in sorted(model.state_dict().items()):
        tensor.copy_(torch.empty(tensor.shape).normal_(1.0 if "norm" in name else 0.0, 0.1, generator=generator))
    return model.eval()


def make(model_class=DeepseekV3ForCausalLM, attention="sdpa", **changes):
    return randomize(model_class(preset("tiny", attn_implementation=attention, **changes)))


def tokens(rows, length, seed=0):
    return torch.randint(1, 257, (rows, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits_of(model, ids, **inputs):
    return model(ids, **inputs).logits


def in_chunks(model, ids, chunks, cache=None):
    """The same logits, computed piece by piece over one cache."""
    cache = MLACache(model.config) if cache is None else cache
    return torch.cat([logits_of(model, piece, past_key_values=cache) for piece in ids.split(chunks, 1)], 1)


def assert_close(actual, expected, tolerance=1e-4):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


# One path of the model against the other


@both_attentions
def test_a_later_token_never_changes_an_earlier_logit(attention):
    model, ids = make(attention=attention), tokens(2, 12)
    before = logits_of(model, ids)
    for t in range(1, 12):
        changed = ids.clone()
        changed[:, t] = (ids[:, t] + 1) % 257
        after = logits_of(model, changed)
        assert_close(after[:, :t], before[:, :t], 1e-5)
        assert (after[:, t] - before[:, t]).abs().max() > 1e-2


@both_attentions
@pytest.mark.parametrize("chunks", [1, [5] + [1] * 11, [5, 4, 1, 6]], ids=["decode", "prefill+decode", "chunks"])
def test_decoding_over_the_latent_cache_equals_one_forward_pass(attention, chunks):
    model, ids = make(attention=attention), tokens(2, 16)
    assert_close(in_chunks(model, ids, chunks), logits_of(model, ids))


@both_attentions
def test_absorbed_attention_equals_expanded_attention(attention):
    config = preset("tiny")
    layer = make(attention=attention).model.layers[1].self_attn
    heads, length = config.num_attention_heads, 7
    q_nope = torch.randn(2, heads, length, config.qk_nope_head_dim)
    q_rope = torch.randn(2, heads, length, config.qk_rope_head_dim)
    entries = torch.randn(2, 1, length, config.kv_lora_rank + config.qk_rope_head_dim)
    mask = torch.full((1, 1, length, length), -math.inf).triu(1)
    absorbed, absorbed_weights = layer.absorbed(q_nope, q_rope, entries, mask)
    expanded, expanded_weights = layer.expanded(q_nope, q_rope, entries, mask)
    assert_close(absorbed, expanded)
    if attention == "eager":
        assert_close(absorbed_weights, expanded_weights)


# Our model against the stock one

YARN = dict(rope_type="yarn", rope_theta=10_000.0, factor=4.0, original_max_position_embeddings=64)
SHAPES = dict(num_hidden_layers=2, vocab_size=300)  # the real widths, at a size that a test can afford

VARIANTS = {
    "tiny": preset("tiny"),
    "demo": preset("demo", **SHAPES),
    "seed": preset("seed", **SHAPES),
    "no latent query": preset("tiny", q_lora_rank=None),
    "groups": preset("tiny", n_group=4, topk_group=2),
    "yarn": preset("tiny", rope_parameters=YARN),
    "yarn mscale": preset("tiny", rope_parameters=YARN | dict(mscale=1.0, mscale_all_dim=0.5)),
    "linear rope": preset("tiny", rope_parameters=dict(rope_type="linear", rope_theta=10_000.0, factor=2.0)),
    "rope in halves": preset("tiny", rope_interleave=False),
    "all dense": preset("tiny", first_k_dense_replace=2),
    "all sparse": preset("tiny", first_k_dense_replace=0),
    "attention bias": preset("tiny", attention_bias=True),
    "scaled weights": preset("tiny", norm_topk_prob=False, routed_scaling_factor=2.5),
    "untied": preset("tiny", tie_word_embeddings=False),
    "other norm eps": preset("tiny", rms_norm_eps=1e-2),
    "two shared experts": preset("tiny", n_shared_experts=2),
    "one expert a token": preset("tiny", num_experts_per_tok=1),
}


def reopen(model, folder, model_class):
    """Saves `model` and opens the folder as the other class, with every tensor found and none left over."""
    model.save_pretrained(folder)
    opened, info = model_class.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert type(opened) is model_class
    assert {name: keys for name, keys in info.items() if keys} == {}
    return opened


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_stock_opens_our_folder_and_we_open_stocks_with_the_same_logits(config, tmp_path):
    ours, ids = randomize(DeepseekV3ForCausalLM(copy.deepcopy(config))), tokens(2, 24)
    stock = reopen(ours, tmp_path / "ours", Stock)
    again = reopen(stock, tmp_path / "stock", DeepseekV3ForCausalLM)
    expected = logits_of(stock, ids)
    assert_close(logits_of(ours, ids), expected)
    assert_close(logits_of(again, ids), expected)
    assert_close(in_chunks(again, ids, [20, 1, 1, 1, 1]), expected)


@both_attentions
def test_left_padding_equals_stock_and_no_padding(attention):
    ours, stock, ids = make(attention=attention), make(Stock, attention), tokens(2, 12)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    real = mask.bool()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    padded = logits_of(ours, ids, attention_mask=mask, position_ids=positions)
    assert_close(padded[real], logits_of(stock, ids, attention_mask=mask, position_ids=positions)[real])
    assert_close(padded[0, 5:], logits_of(ours, ids[:1, 5:])[0])
    assert_close(logits_of(ours, ids, attention_mask=mask)[real], logits_of(stock, ids, attention_mask=mask)[real])


def test_a_saved_folder_is_a_stock_checkpoint(tmp_path):
    make().save_pretrained(tmp_path)
    assert type(transformers.AutoModelForCausalLM.from_pretrained(tmp_path)) is Stock
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "deepseek_v3"
    assert config["architectures"] == ["DeepseekV3ForCausalLM"]
    assert config["topk_method"] == "noaux_tc"
    assert config["scoring_func"] == "sigmoid"
    assert "auto_map" not in config
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        keys = set(file.keys())
    experts = {
        f"model.layers.1.mlp.experts.{e}.{part}_proj.weight" for e in range(8) for part in ("gate", "up", "down")
    }
    assert {key for key in keys if ".experts." in key} == experts


def generated(model, rows, **settings):
    """16 tokens after each of `rows` prompts, of which the first is padded on the left when there are several."""
    ids = tokens(rows, 9)
    mask = torch.ones_like(ids)
    if rows > 1:
        mask[0, :4] = ids[0, :4] = 0
    length = dict(max_new_tokens=16, min_new_tokens=16)
    return model.generate(ids, attention_mask=mask, do_sample=False, **length, **settings)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(
    "settings",
    [dict(), dict(num_beams=3), dict(use_cache=False), dict(cache_implementation="static")],
    ids=["greedy", "beams", "no cache", "static cache"],
)
def test_generate_equals_stock(settings, rows):
    assert torch.equal(generated(make(), rows, **settings), generated(make(Stock), rows, **settings))


def test_speculative_decoding_equals_greedy_decoding():
    model = make()
    assert torch.equal(generated(model, 1, prompt_lookup_num_tokens=3), generated(model, 1))


def test_attention_can_be_switched_on_a_model_in_use():
    model, ids = make(attention="sdpa"), tokens(1, 6)
    for attention in ("eager", "sdpa"):
        model.set_attn_implementation(attention)
        weights = model(ids, output_attentions=True).attentions
        assert len(weights) == (model.config.num_hidden_layers if attention == "eager" else 0)


def test_an_unknown_rope_type_is_refused():
    with pytest.raises(ValueError, match="'dynamic'"):
        make(rope_parameters=dict(rope_type="dynamic", rope_theta=10_000.0, factor=2.0))


# The latent cache


def test_cache_holds_one_latent_and_one_rotary_key_a_token_and_layer():
    model, ids = make(), tokens(2, 10)
    cache = MLACache(model.config, capacity=10)
    logits_of(model, ids, past_key_values=cache)
    numbers = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    config = model.config
    assert kv_cache_elements_per_token(config)[0] == config.kv_lora_rank + config.qk_rope_head_dim
    assert numbers == 2 * 10 * config.num_hidden_layers * kv_cache_elements_per_token(config)[0]


@pytest.mark.parametrize("chunks", [1, [3, 9, 1, 7]], ids=["decode", "chunks"])
def test_cache_grows_when_it_is_full(chunks):
    model, ids = make(), tokens(2, 20)
    cache = MLACache(model.config, capacity=4)
    assert_close(in_chunks(model, ids, chunks, cache), logits_of(model, ids))
    assert cache.get_seq_length() == 20


def test_decoding_after_a_crop_equals_fresh_decoding():
    model, ids, other = make(), tokens(1, 12), tokens(1, 5, seed=1)
    cache = MLACache(model.config)
    in_chunks(model, ids, [12], cache)
    cache.crop(-4)
    assert cache.get_seq_length() == 8
    assert_close(in_chunks(model, other, 1, cache), logits_of(model, torch.cat([ids[:, :8], other], 1))[:, 8:])


@pytest.mark.parametrize(
    "change, rows",
    [
        (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
        (lambda cache: cache.batch_select_indices(torch.tensor([2, 0])), [2, 0]),
        (lambda cache: cache.reorder_cache(torch.tensor([1, 1, 0])), [1, 1, 0]),
    ],
    ids=["repeat", "select", "reorder"],
)
def test_cache_rows_can_be_rearranged(change, rows):
    model, ids = make(), tokens(3, 8)
    cache = MLACache(model.config, capacity=9)
    in_chunks(model, ids, [8], cache)
    change(cache)
    new = tokens(len(rows), 4, seed=1)
    assert_close(in_chunks(model, new, 1, cache), logits_of(model, torch.cat([ids[rows], new], 1))[:, 8:])


# Routing and experts


def test_routing_is_computed_in_fp32_whatever_the_model_runs_in():
    model, ids = make().bfloat16(), tokens(1, 8)
    router = model.model.layers[1].mlp.gate
    x = torch.randn(8, model.config.hidden_size, dtype=torch.bfloat16)
    exact = F.linear(x.float(), router.weight.float())
    assert torch.equal(router(x)[0], exact)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(router(x)[0], exact)
        assert model(ids, output_router_logits=True).router_logits[0].dtype == torch.float32
    assert model(ids, output_router_logits=True).router_logits[0].dtype == torch.float32


def test_the_bias_stays_fp32_in_a_bf16_checkpoint(tmp_path):
    make().save_pretrained(tmp_path)
    model = DeepseekV3ForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert model.lm_head.weight.dtype == torch.bfloat16
    assert model.model.layers[1].mlp.gate.e_score_correction_bias.dtype == torch.float32


def test_outputs_name_the_experts_chosen():
    model, ids = make(num_hidden_layers=3), tokens(2, 6)
    output = model(ids, output_router_logits=True, output_router_indices=True)
    assert [tuple(logits.shape) for logits in output.router_logits] == [(12, 8)] * 2
    bias = model.model.layers[1].mlp.gate.e_score_correction_bias
    chosen = (output.router_logits[0].sigmoid() + bias).topk(2).indices
    assert torch.equal(output.router_indices[0], chosen)


def random_experts():
    experts = DeepseekV3Experts(preset("tiny"))
    return randomize(experts), torch.Generator().manual_seed(1)


@pytest.mark.parametrize("rows", [1, 2, 50])
@pytest.mark.parametrize("training", [False, True])
def test_experts_equal_every_expert_on_every_token(rows, training):
    experts, generator = random_experts()
    experts.train(training)
    x = torch.randn(rows, 72, generator=generator)
    indices = torch.rand(rows, 8, generator=generator).topk(2).indices
    weights = torch.rand(rows, 2, generator=generator)
    share = torch.zeros(rows, 8).scatter(1, indices, weights)
    everyone = torch.stack([experts.one(x, *pair) for pair in zip(experts.gate_up_proj, experts.down_proj)], 1)
    assert_close(experts(x, weights, indices), (share.unsqueeze(-1) * everyone).sum(1), 1e-5)


@pytest.mark.parametrize("rows", [1, 20])
def test_an_expert_nobody_chose_is_not_run(rows):
    experts, generator = random_experts()
    experts.down_proj.data[5:] = math.nan
    x, weights = torch.randn(rows, 72, generator=generator), torch.rand(rows, 2, generator=generator)
    idle = torch.rand(rows, 5, generator=generator).topk(2).indices
    assert experts(x, weights, idle).isfinite().all()
    assert experts(x, weights, idle + 3).isnan().any()


def test_every_parameter_gets_a_gradient_though_some_experts_are_idle():
    model, ids = make(num_experts_per_tok=1).train(), tokens(1, 3)
    model(ids, labels=ids).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


# What else a forward pass returns


def test_eager_attention_weights_are_causal_distributions():
    model, ids = make(attention="eager"), tokens(2, 9)
    attentions = model(ids, output_attentions=True).attentions
    assert len(attentions) == model.config.num_hidden_layers
    for weights in attentions:
        assert weights.shape == (2, model.config.num_attention_heads, 9, 9)
        assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]), 1e-5)
        assert (weights.triu(1) == 0).all() and (weights.tril() > 0).any()


def test_dropout_acts_in_training_only():
    plain, dropped, ids = make(), make(hidden_dropout=0.5), tokens(1, 8)
    assert torch.equal(logits_of(dropped, ids), logits_of(plain, ids))
    dropped.train()
    assert not torch.equal(logits_of(dropped, ids), logits_of(dropped, ids))
    assert torch.equal(logits_of(plain.train(), ids), logits_of(plain, ids))


def test_dropout_acts_on_every_branch():
    model, ids = make(hidden_dropout=1.0).train(), tokens(1, 8)
    only_embedded = model.lm_head(model.model.norm(model.model.embed_tokens(ids)))
    assert_close(logits_of(model, ids), only_embedded, 1e-5)


def test_loss_is_language_modelling_plus_weighted_balancing():
    model, ids = make(router_aux_loss_coef=0.3), tokens(2, 10)
    output = model(ids, labels=ids)
    expected = F.cross_entropy(output.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert_close(output.lm_loss, expected, 1e-5)
    assert output.aux_loss > 0
    assert_close(output.loss, output.lm_loss + 0.3 * output.aux_loss, 1e-6)


def test_the_loss_of_training_is_that_of_evaluation_without_the_logits():
    model, ids = make(), tokens(2, 10)
    expected = model(ids, labels=ids)
    output = model.train()(ids, labels=ids)
    assert output.logits is None
    assert_close(output.loss, expected.loss, 1e-6)
    assert model(ids).logits is not None


@torch.no_grad()
def test_a_long_text_is_read_in_fp32_where_bf16_is_slow(monkeypatch):
    """The weights and the cache stay in bf16, and what is computed of them is more exact."""
    exact, ids = make().bfloat16().float(), tokens(1, 80)
    model = make().bfloat16()
    errors = {}
    for fast in (True, False):
        monkeypatch.setattr("deepseek.model.cpu_features.fast_in_bf16", lambda device: fast)  # noqa: B023
        cache = MLACache(model.config)
        logits = logits_of(model, ids, past_key_values=cache)
        assert logits.dtype == (torch.bfloat16 if fast else torch.float32)
        assert cache.layers[0].keys.dtype == torch.bfloat16
        assert logits_of(model, ids[:, :1], past_key_values=cache).dtype == torch.bfloat16, "one token more"
        errors[fast] = float((logits - logits_of(exact, ids)).abs().mean())
    assert errors[False] < errors[True] / 4


def test_autocast_to_bf16_is_left_where_it_is_slow(monkeypatch):
    model, ids = make().train(), tokens(2, 10)
    plain = model(ids, labels=ids).lm_loss
    monkeypatch.setattr("deepseek.model.cpu_features.fast_in_bf16", lambda device: False)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(ids, labels=ids).lm_loss, plain)
        monkeypatch.setattr("deepseek.model.cpu_features.fast_in_bf16", lambda device: True)
        rounded = model(ids, labels=ids).lm_loss
    assert 0 < abs(rounded - plain) < 0.01


def test_padding_and_ignored_labels_do_not_count():
    model, ids = make(), tokens(1, 12)
    alone = model(ids[:, :7], labels=ids[:, :7])
    mask = torch.ones_like(ids)
    mask[:, 7:] = 0
    padded = model(ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100))
    assert_close(padded.aux_loss, alone.aux_loss, 1e-5)
    assert_close(padded.lm_loss, alone.lm_loss, 1e-5)
    unmasked = model(ids, labels=ids)
    assert abs(unmasked.aux_loss - alone.aux_loss) > 1e-4
    assert abs(unmasked.lm_loss - alone.lm_loss) > 1e-2


def test_it_trains_under_the_stock_trainer(tmp_path):
    pytest.importorskip("accelerate")
    ids = tokens(1, 32)[0]
    arguments = transformers.TrainingArguments(
        tmp_path, max_steps=30, learning_rate=3e-3, logging_steps=1, per_device_train_batch_size=2,
        save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    model = DeepseekV3ForCausalLM(preset("tiny"))
    trainer = transformers.Trainer(model, arguments, train_dataset=[{"input_ids": ids, "labels": ids}] * 8)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] / 2
