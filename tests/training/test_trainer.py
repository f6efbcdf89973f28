"""Training runs: they learn, each setting does what it says, and a broken run ends."""

import functools
import json
import math

import pytest
import torch
import transformers
from chatting import CHAT, WHOLE
from run_files import ALONE, LINE, metrics, weights
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from deepseek.checkpoints.loading import load
from deepseek.checkpoints.saving import latest_checkpoint, list_checkpoints
from deepseek.data.chat import document_renderer
from deepseek.data.file_formats import DataError
from deepseek.model.deepseek_v3 import DeepseekV3ForCausalLM
from deepseek.model.load_balancing import mean_router_probs, sequence_balance_loss
from deepseek.training.config import TrainingError
from deepseek.training.trainer import Trainer, autocast_dtype, train
from deepseek.training.validation import SAMPLE_PROMPTS

# A run


def test_the_loss_falls(uninterrupted):
    losses = [step.loss for step in uninterrupted[1]]
    assert losses[0] == pytest.approx(math.log(257), rel=0.05), "a new model predicts every token alike"
    assert sum(losses[-3:]) / 3 < 0.85 * losses[0]


def test_metrics_contain_every_step(uninterrupted):
    config, steps = uninterrupted
    lines = metrics(config)
    assert all(set(line) == LINE for line in lines)
    assert lines == [step.line() for step in steps]
    assert [line["step"] for line in lines] == list(range(1, 21))
    assert [line["tokens"] for line in lines] == list(range(128, 128 * 21, 128))
    for line in lines:
        assert len(line["load"]) == len(line["max_violation"]) == 1
        assert sum(line["load"][0]) == pytest.approx(1, abs=1e-3)
        assert line["max_violation"][0] == pytest.approx(8 * max(line["load"][0]) - 1, abs=1e-3)
        assert 0 <= line["load_balancing_loss"] <= math.log(8)


def test_the_newest_checkpoints_are_kept_and_open_in_transformers(uninterrupted):
    config, steps = uninterrupted
    assert [step.step for step in steps if step.checkpoint] == [5, 10, 15, 20]
    assert [folder.name for folder in list_checkpoints(config.run)] == ["step-000015", "step-000020"]
    ours, tokenizer = load(config.run / "step-000020", torch.float32)
    stock = transformers.AutoModelForCausalLM.from_pretrained(config.run / "step-000020", dtype=torch.float32)
    assert isinstance(ours, DeepseekV3ForCausalLM) and isinstance(stock, transformers.DeepseekV3ForCausalLM)
    ids = torch.tensor([tokenizer("Once upon a time")["input_ids"]])
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, stock(ids).logits, atol=1e-4, rtol=1e-4)


def test_the_router_bias_moves_in_steps_of_its_rate(uninterrupted):
    (bias,) = (tensor for name, tensor in weights(uninterrupted[0]).items() if name.endswith("e_score_correction_bias"))
    assert bias.count_nonzero() == 8 and bias.abs().max() <= 20 * 0.001 + 1e-6
    updates = bias / 0.001
    torch.testing.assert_close(updates, updates.round(), atol=1e-2, rtol=0)


# What a step does


@pytest.mark.parametrize("balance_weight", [0.0, 10.0])
def test_accumulated_batches_make_the_step_of_one_large_batch(config, balance_weight):
    """The balancing loss too, which is not linear in the batch."""
    options = dict(max_steps=3, warmup_steps=0, precision="fp32", balance_weight=balance_weight, save_every=3)
    large, small = config(name="large", batch_size=8, **options), config(name="small", batch_size=2, **options)
    small.gradient_accumulation_steps = 4
    for accumulated, step in zip(train(small), train(large), strict=True):
        assert accumulated.loss == pytest.approx(step.loss, abs=1e-4)
        if balance_weight:  # else it is that of each pass alone, which costs no pass more
            assert accumulated.load_balancing_loss == pytest.approx(step.load_balancing_loss, rel=1e-3)
        assert accumulated.grad_norm == pytest.approx(step.grad_norm, rel=1e-3)
        assert (accumulated.tokens, accumulated.load) == (step.tokens, step.load)
    expected = weights(large)
    for name, tensor in weights(small).items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-4, rtol=0)


def test_the_first_pass_for_the_routers_draws_the_same_dropout(config):
    """So that its means are those of the passes with gradients."""
    trainer = Trainer(config(dropout=0.5, precision="fp32"), None, ALONE)
    batch = torch.stack([next(trainer.data) for _ in range(4)])
    torch.manual_seed(0)
    first = trainer.router_probs([batch])
    logits = trainer.forward(batch, output_router_logits=True).router_logits
    torch.testing.assert_close(first, torch.stack([mean_router_probs(layer) for layer in logits]))


def test_validation_and_samples_come_when_they_are_due(config, stories):
    config = config(max_steps=2, eval_every=1, eval_data=[stories], sample_every=2)
    first, second = train(config)
    assert first.validation["val_loss"] > second.validation["val_loss"] and first.samples is None
    nats, bits = second.validation["val_loss"], second.validation["val_bits_per_byte"]
    assert nats / math.log(2) == pytest.approx(bits, rel=0.1), "tokens of the tiny preset are bytes, and text begins"
    assert all(whole.startswith(sample["prompt"]) for whole, sample in zip(SAMPLE_PROMPTS, second.samples, strict=True))
    assert all(len(sample["prompt"]) == 15 and len(sample["text"]) <= 31 for sample in second.samples), (
        "32 bytes of context"
    )
    assert all(sample["text"].startswith(sample["prompt"]) for sample in second.samples)
    lines = metrics(config)
    assert [line["step"] for line in lines] == [1, 1, 2, 2, 2]
    assert lines[4]["samples"] == second.samples
    assert set(lines[1]) == {"step", "val_loss", "val_bits_per_byte"}


def test_a_tokenizer_without_begin_and_end_gets_one(config, tmp_path):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bare = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    bare.pre_tokenizer, bare.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=bare).save_pretrained(tmp_path / "bare")
    config = config(tokenizer=str(tmp_path / "bare"), max_steps=1, sample_every=1)
    (step,) = train(config)
    assert step.samples[0]["prompt"] == SAMPLE_PROMPTS[0][:15]
    model, tokenizer = load(latest_checkpoint(config.run), torch.float32)
    assert tokenizer.eos_token == "<|endoftext|>"
    assert model.config.bos_token_id == model.config.eos_token_id == tokenizer.eos_token_id == 256


def test_the_balancing_loss_evens_the_load(config):
    """From the same weights and data, a heavy weight ends nearer to even soft load than none."""
    options = dict(max_steps=8, warmup_steps=0, bias_update_rate=0.0)
    runs = [train(config(name=f"weight-{weight:g}", balance_weight=weight, **options)) for weight in (0.0, 10.0)]
    without, heavy = (list(run)[-1].load_balancing_loss for run in runs)
    assert heavy < 0.5 * without


def test_the_sequence_balance_loss_evens_the_load_of_each_sequence(config):
    options = dict(max_steps=8, warmup_steps=0, bias_update_rate=0.0, balance_weight=0.0)

    def unevenness(weight):
        trainer = Trainer(config(name=f"weight-{weight:g}", sequence_balance_weight=weight, **options), None, ALONE)
        batch = torch.stack([next(trainer.data) for _ in range(4)])
        list(trainer.run(lambda: False))
        with torch.no_grad():
            logits = trainer.forward(batch, output_router_logits=True).router_logits
        return sequence_balance_loss(logits, trainer.model.config.num_experts_per_tok, len(batch)).item()

    assert unevenness(10.0) - 1 < 0.5 * (unevenness(0.0) - 1)


def test_validation_text_that_is_empty_is_refused(config, tmp_path):
    (tmp_path / "empty.txt").touch()
    with pytest.raises(DataError, match="empty.txt' holds no text to validate on"):
        next(train(config(eval_data=[str(tmp_path / "empty.txt")], eval_every=1)))


def test_chats_are_trained_on_as_the_template_of_the_tokenizer_writes_them(config, chat_checkpoint, tmp_path):
    """Also the held-out ones; the checkpoint keeps the template."""
    (tmp_path / "chats.jsonl").write_text("\n".join([json.dumps({"messages": CHAT})] * 2000))
    options = dict(init_from=chat_checkpoint, data=[str(tmp_path / "chats.jsonl")], max_steps=1, eval_every=1)
    trainer = Trainer(config(**options), None, ALONE)
    text = trainer.tokenizer.decode(next(trainer.data))
    assert text in 3 * ("<|endoftext|>" + WHOLE) and trainer.texts and set(trainer.texts) == {WHOLE}
    *_, step = train(config(**options))
    assert document_renderer(load(latest_checkpoint(config().run))[1])(CHAT) == WHOLE


def test_a_run_can_start_from_a_checkpoint(config, uninterrupted):
    step = next(train(config(init_from=str(latest_checkpoint(uninterrupted[0].run)))))
    assert step.loss < uninterrupted[1][0].loss - 0.5 and step.step == 1


def test_one_document_and_the_largest_seed_are_enough_to_train(config, tmp_path):
    """The first data that a user tries is often a single document."""
    (tmp_path / "one.txt").write_text("The little fox ran over the hill.\n" * 50)
    assert next(train(config(data=[str(tmp_path / "one.txt")], eval_every=1, seed=2**63 - 1))).step == 1


# Values that are not finite


@pytest.fixture
def broken_model(monkeypatch):
    """Makes every new model go through a function that breaks it."""

    def use(break_it):
        def build(shape):
            model = DeepseekV3ForCausalLM(shape)
            break_it(model)
            return model

        monkeypatch.setattr("deepseek.training.trainer.DeepseekV3ForCausalLM", build)

    return use


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_weight_that_is_not_finite_ends_the_run_and_is_named(config, broken_model, precision):
    broken_model(lambda model: model.model.layers[1].self_attn.o_proj.weight.data[0, 0].fill_(math.nan))
    config = config(precision=precision)
    with pytest.raises(TrainingError, match="^step 1: weight model.layers.1.self_attn.o_proj.weight is not finite"):
        next(train(config))
    assert list_checkpoints(config.run) == [] and "NaN" not in (config.run / "metrics.jsonl").read_text()


def test_the_gradient_named_is_the_one_in_which_nan_began(config, broken_model):
    """The gradient of the second layer's keys turns NaN: then so do those of the layers below, not of those above."""
    name = "model.layers.1.self_attn.kv_b_proj.weight"
    broken_model(lambda model: model.get_parameter(name).register_hook(lambda grad: grad * math.nan))
    with pytest.raises(TrainingError, match=f"^step 1: gradient of {name} is not finite"):
        next(train(config()))


def test_weights_that_overflow_in_a_step_are_not_saved(config):
    """A decay of 10 multiplies every weight by -9: an absurd setting, but one that is allowed.

    The loss of a step is that of the weights before it, so only the check before saving sees those after it.
    """
    absurd = dict(max_steps=60, lr=1.0, weight_decay=10.0, warmup_steps=0, schedule="constant")
    config = config(save_every=1, keep_last=1, **absurd)
    with pytest.raises(TrainingError, match=r"is not finite; the last good checkpoint is kept\.$"):
        list(train(config))
    (last,) = list_checkpoints(config.run)
    assert all(tensor.isfinite().all() for tensor in load_file(last / "model.safetensors").values())


def test_a_gradient_that_fp16_cannot_hold_is_null_in_the_metrics(config, monkeypatch):
    monkeypatch.setattr(torch.amp, "GradScaler", functools.partial(torch.amp.GradScaler, init_scale=2.0**100))
    config = config(precision="fp16", max_steps=2)
    assert not any(math.isfinite(step.grad_norm) for step in train(config))
    assert [line["grad_norm"] for line in metrics(config)] == [None, None]


def test_a_gradient_that_no_scale_of_fp16_can_hold_ends_the_run(config, broken_model):
    """The scale is halved from 2**16 down to 1, and then it is not the scale."""
    broken_model(lambda model: model.model.norm.weight.register_hook(lambda grad: grad * math.inf))
    with pytest.raises(TrainingError, match="^step 17: gradient of model.norm.weight is not finite; the last good"):
        list(train(config(precision="fp16", max_steps=30)))


# Precision


@pytest.mark.parametrize(
    "has_tiles, cpu_name, auto",
    [(False, "sapphirerapids", None), (True, "sapphirerapids", torch.bfloat16), (False, "znver5", torch.bfloat16)],
)
def test_auto_trains_in_bf16_only_where_that_is_faster(monkeypatch, has_tiles, cpu_name, auto):
    """AVX512-BF16 alone, for which decoding takes bf16, makes training slower than fp32 on Intel's: see docs/log.md."""
    monkeypatch.setattr("deepseek.model.cpu_features.has_bf16_instructions", lambda: True)
    monkeypatch.setattr("deepseek.model.cpu_features.has_amx_tiles", lambda: has_tiles)
    monkeypatch.setattr("deepseek.model.cpu_features.cpu_name", lambda: cpu_name)
    assert autocast_dtype("auto", "cpu") == auto
    assert autocast_dtype("bf16", "cpu") == torch.bfloat16 and autocast_dtype("fp32", "cpu") is None


def test_bf16_that_is_asked_for_is_computed_in(config, monkeypatch):
    """Also where `auto` would not take it."""
    monkeypatch.setattr("deepseek.model.cpu_features.has_amx_tiles", lambda: False)
    fp32, bf16 = (next(train(config(name=name, precision=name))) for name in ("fp32", "bf16"))
    assert bf16.grad_norm != fp32.grad_norm and bf16.grad_norm == pytest.approx(fp32.grad_norm, rel=0.01)
