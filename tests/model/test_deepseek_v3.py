"""The model against its definitions, and against transformers' own DeepseekV3ForCausalLM."""

import copy

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file
from small import randomized
from tiny_model import assert_close, logits_in_chunks, logits_of, make_model, random_ids

from deepseek.model.config import preset
from deepseek.model.deepseek_v3 import DeepseekV3ForCausalLM
from deepseek.model.mla_cache import MLACache

Stock = transformers.DeepseekV3ForCausalLM


both_attentions = pytest.mark.parametrize("attention", ["sdpa", "eager"])


@both_attentions
def test_a_later_token_does_not_change_earlier_logits(attention):
    model, ids = make_model(attention=attention), random_ids(2, 12)
    before = logits_of(model, ids)
    for t in range(1, 12):
        changed = ids.clone()
        changed[:, t] = (ids[:, t] + 1) % 257
        after = logits_of(model, changed)
        assert_close(after[:, :t], before[:, :t], 1e-5)
        assert (after[:, t] - before[:, t]).abs().max() > 1e-2


@both_attentions
@pytest.mark.parametrize("chunks", [1, [5] + [1] * 11, [5, 4, 1, 6]], ids=["decode", "prefill+decode", "chunks"])
def test_decoding_over_the_cache_equals_one_forward_pass(attention, chunks):
    model, ids = make_model(attention=attention), random_ids(2, 16)
    assert_close(logits_in_chunks(model, ids, chunks), logits_of(model, ids))


YARN = dict(rope_type="yarn", rope_theta=10_000.0, factor=4.0, original_max_position_embeddings=64)


SHAPES = dict(num_hidden_layers=2, vocab_size=300)  # the real widths, with fewer layers and a smaller vocabulary


VARIANTS = {
    "tiny": preset("tiny"),
    "demo": preset("demo", **SHAPES),
    "seed": preset("seed", **SHAPES),
    "no latent query": preset("tiny", q_lora_rank=None),
    "groups": preset("tiny", n_group=4, topk_group=2),
    "yarn": preset("tiny", rope_parameters=YARN),
    "yarn mscale": preset("tiny", rope_parameters=YARN | dict(mscale=1.0, mscale_all_dim=0.5)),
    "linear rope": preset("tiny", rope_parameters=dict(rope_type="linear", rope_theta=10_000.0, factor=2.0)),
    "non-interleaved rope": preset("tiny", rope_interleave=False),
    "all dense": preset("tiny", first_k_dense_replace=2),
    "all sparse": preset("tiny", first_k_dense_replace=0),
    "attention bias": preset("tiny", attention_bias=True),
    "scaled weights": preset("tiny", norm_topk_prob=False, routed_scaling_factor=2.5),
    "untied": preset("tiny", tie_word_embeddings=False),
    "large norm eps": preset("tiny", rms_norm_eps=1e-2),
    "two shared experts": preset("tiny", n_shared_experts=2),
    "one expert per token": preset("tiny", num_experts_per_tok=1),
}


def reopen(model, folder, model_class):
    """Saves `model` and opens the folder as `model_class`; no tensor is missing and none is unexpected."""
    model.save_pretrained(folder)
    opened, info = model_class.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert type(opened) is model_class
    assert {name: keys for name, keys in info.items() if keys} == {}
    return opened


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_folders_open_in_both_classes_with_the_same_logits(config, tmp_path):
    ours, ids = randomized(DeepseekV3ForCausalLM(copy.deepcopy(config))), random_ids(2, 24)
    stock = reopen(ours, tmp_path / "ours", Stock)
    reopened = reopen(stock, tmp_path / "stock", DeepseekV3ForCausalLM)
    expected = logits_of(stock, ids)
    assert_close(logits_of(ours, ids), expected)
    assert_close(logits_of(reopened, ids), expected)
    # Every engine finds the head; where it is the embedding's, it is so again when the folder is opened, also without it.
    saved, without = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "stock"))
    assert torch.equal(saved["lm_head.weight"], ours.lm_head.weight)
    assert ("lm_head.weight" in without) == (not config.tie_word_embeddings)
    for model in (stock, reopened):
        assert (model.lm_head.weight is model.model.embed_tokens.weight) == config.tie_word_embeddings
    assert_close(logits_in_chunks(reopened, ids, [20, 1, 1, 1, 1]), expected)


@both_attentions
def test_left_padding_equals_stock_and_unpadded(attention):
    ours, stock, ids = make_model(attention=attention), make_model(Stock, attention), random_ids(2, 12)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    is_token = mask.bool()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    padded = logits_of(ours, ids, attention_mask=mask, position_ids=positions)
    assert_close(padded[is_token], logits_of(stock, ids, attention_mask=mask, position_ids=positions)[is_token])
    assert_close(padded[0, 5:], logits_of(ours, ids[:1, 5:])[0])
    assert_close(
        logits_of(ours, ids, attention_mask=mask)[is_token], logits_of(stock, ids, attention_mask=mask)[is_token]
    )


def test_routing_is_computed_in_fp32_whatever_the_model_runs_in():
    model, ids = make_model().bfloat16(), random_ids(1, 8)
    router = model.model.layers[1].mlp.gate
    x = torch.randn(8, model.config.hidden_size, dtype=torch.bfloat16)
    exact = F.linear(x.float(), router.weight.float())
    assert torch.equal(router(x)[0], exact)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(router(x)[0], exact)
        assert model(ids, output_router_logits=True).router_logits[0].dtype == torch.float32
    assert model(ids, output_router_logits=True).router_logits[0].dtype == torch.float32


def test_every_parameter_gets_a_gradient_though_some_experts_are_idle():
    model, ids = make_model(num_experts_per_tok=1).train(), random_ids(1, 3)
    model(ids, labels=ids).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_dropout_acts_in_training_only():
    plain, with_dropout, ids = make_model(), make_model(hidden_dropout=0.5), random_ids(1, 8)
    assert torch.equal(logits_of(with_dropout, ids), logits_of(plain, ids))
    with_dropout.train()
    assert not torch.equal(logits_of(with_dropout, ids), logits_of(with_dropout, ids))
    assert torch.equal(logits_of(plain.train(), ids), logits_of(plain, ids))


def test_dropout_acts_on_every_branch():
    model, ids = make_model(hidden_dropout=1.0).train(), random_ids(1, 8)
    embedding_only = model.lm_head(model.model.norm(model.model.embed_tokens(ids)))
    assert_close(logits_of(model, ids), embedding_only, 1e-5)


def test_loss_is_cross_entropy_plus_weighted_balancing():
    model, ids = make_model(router_aux_loss_coef=0.3), random_ids(2, 10)
    output = model(ids, labels=ids)
    expected = F.cross_entropy(output.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert_close(output.lm_loss, expected, 1e-5)
    assert output.aux_loss > 0
    assert_close(output.loss, output.lm_loss + 0.3 * output.aux_loss, 1e-6)


def test_training_mode_returns_the_same_loss_without_logits():
    model, ids = make_model(), random_ids(2, 10)
    expected = model(ids, labels=ids)
    output = model.train()(ids, labels=ids)
    assert output.logits is None
    assert_close(output.loss, expected.loss, 1e-6)
    assert model(ids).logits is not None


@torch.no_grad()
def test_prefill_runs_in_fp32_where_bf16_is_slow(monkeypatch):
    """The weights and the cache stay in bf16, and the logits are more exact."""
    exact, ids = make_model().bfloat16().float(), random_ids(1, 80)
    model = make_model().bfloat16()
    errors = {}
    for fast in (True, False):
        monkeypatch.setattr("deepseek.model.cpu_features.fast_in_bf16", lambda device: fast)  # noqa: B023
        cache = MLACache(model.config)
        logits = logits_of(model, ids, past_key_values=cache)
        assert logits.dtype == (torch.bfloat16 if fast else torch.float32)
        assert cache.layers[0].keys.dtype == torch.bfloat16
        assert logits_of(model, ids[:, :1], past_key_values=cache).dtype == torch.bfloat16, "decode"
        errors[fast] = float((logits - logits_of(exact, ids)).abs().mean())
    assert errors[False] < errors[True] / 4


def test_autocast_to_bf16_computes_in_bf16_on_any_cpu(monkeypatch):
    model, ids = make_model().train(), random_ids(2, 10)
    plain = model(ids, labels=ids).lm_loss
    for fast in (True, False):
        monkeypatch.setattr("deepseek.model.cpu_features.fast_in_bf16", lambda device: fast)  # noqa: B023
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(ids, labels=ids).lm_loss
        assert 0 < abs(rounded - plain) < 0.01


def test_padding_and_ignored_labels_are_left_out_of_the_losses():
    model, ids = make_model(), random_ids(1, 12)
    unpadded = model(ids[:, :7], labels=ids[:, :7])
    mask = torch.ones_like(ids)
    mask[:, 7:] = 0
    padded = model(ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100))
    assert_close(padded.aux_loss, unpadded.aux_loss, 1e-5)
    assert_close(padded.lm_loss, unpadded.lm_loss, 1e-5)
    unmasked = model(ids, labels=ids)
    assert abs(unmasked.aux_loss - unpadded.aux_loss) > 1e-4
    assert abs(unmasked.lm_loss - unpadded.lm_loss) > 1e-2
