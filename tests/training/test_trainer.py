"""Training runs: they learn, an interrupted run resumes as if it had not been interrupted, and a broken one ends."""

import contextlib
import dataclasses
import functools
import itertools
import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from chatting import CHAT, WHOLE
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from deepseek.checkpoints.loading import load
from deepseek.checkpoints.saving import latest_checkpoint, list_checkpoints
from deepseek.data.chat import document_renderer
from deepseek.data.file_formats import DataError
from deepseek.data.tokenizer import encode_document
from deepseek.interpret.trace import trace
from deepseek.model.deepseek_v3 import DeepseekV3ForCausalLM
from deepseek.model.load_balancing import mean_router_probs
from deepseek.training import runs
from deepseek.training.config import UPLOADS, TrainingError, parse, read_config
from deepseek.training.distributed import ProcessGroup
from deepseek.training.resource_check import check_resources
from deepseek.training.trainer import Trainer, autocast_dtype, train
from deepseek.training.validation import SAMPLE_PROMPTS, evaluate, validation_texts

ROOT = Path(__file__).parents[2]
STEPS = 20
CPU = torch.device("cpu")
LINE = {
    "step", "loss", "load_balancing_loss", "lr", "grad_norm", "tokens", "tokens_per_second", "load", "max_violation",
}  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(small_config, tmp_path_factory):
    """(settings, steps) of a run that nothing interrupted."""
    config = small_config(tmp_path_factory.mktemp("runs"), max_steps=STEPS)
    return config, list(train(config))


def metrics(config):
    return [json.loads(line, parse_constant=pytest.fail) for line in (config.run / "metrics.jsonl").open()]


def untimed(config):
    """metrics.jsonl without the one value that depends on time."""
    return re.sub(r'"tokens_per_second": [\d.]+', "", (config.run / "metrics.jsonl").read_text())


def weights(config):
    return load_file(latest_checkpoint(config.run) / "model.safetensors")


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
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert [line["tokens"] for line in lines] == list(range(128, 128 * STEPS + 1, 128))
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
    assert bias.count_nonzero() == 8 and bias.abs().max() <= STEPS * 0.001 + 1e-6
    updates = bias / 0.001
    torch.testing.assert_close(updates, updates.round(), atol=1e-2, rtol=0)


# Interrupted and resumed


@pytest.mark.parametrize("interruption", ["stopped", "killed"])
def test_a_run_interrupted_after_step_7_resumes_as_if_it_had_not_been(config, uninterrupted, interruption):
    """A killed run resumes from the checkpoint of step 5; a stopped one saves step 7 first."""
    config = config()
    with contextlib.closing(train(config, stopped=lambda: interruption == "stopped" and step == 7)) as running:
        for step in itertools.count(1):
            if next(running, None) is None or interruption == "killed" and step == 7:
                break
    last = 7 if interruption == "stopped" else 5
    assert latest_checkpoint(config.run).name == f"step-{last:06d}"
    assert [step.step for step in train(config, resume=True)] == list(range(last + 1, STEPS + 1))
    assert untimed(config) == untimed(uninterrupted[0])
    expected = weights(uninterrupted[0])
    assert all(torch.equal(tensor, expected.pop(name)) for name, tensor in weights(config).items()) and not expected


@pytest.fixture(scope="module")
def validated(small_config, stories, tmp_path_factory):
    """(settings, steps) of a run whose validation loss rises again; nothing interrupted it."""
    changes = dict(
        eval_data=[stories], eval_documents=2, eval_every=2, save_every=2, keep_last=1, lr=0.02, max_steps=12
    )
    config = small_config(
        tmp_path_factory.mktemp("runs"), warmup_steps=0, schedule="constant", probe="a fox", **changes
    )
    return config, list(train(config))


def test_the_best_checkpoint_is_kept_beside_the_newest_and_opens_for_the_run(validated):
    config, steps = validated
    losses = {step.step: step.validation["val_loss"] for step in steps if step.checkpoint}
    best, run = min(losses, key=losses.get), runs.find(config.root, config.name)
    assert best < 12, "the test needs a run whose best is not its newest"
    assert [path.name for path in list_checkpoints(config.run)] == [f"step-{best:06d}", "step-000012"]
    assert (run.best, run.checkpoint) == (config.run / f"step-{best:06d}", config.run / "step-000012")
    model, tokenizer = load(config.run, torch.float32)
    assert model.name_or_path == str(run.best)
    assert evaluate(model, tokenizer, validation_texts(config, config.read_options), 32).loss == pytest.approx(
        losses[best], rel=1e-5
    )
    started = Trainer(
        dataclasses.replace(config, name="next", init_from=str(config.run)), None, ProcessGroup(0, 1, CPU)
    )
    assert torch.equal(started.model.lm_head.weight, model.lm_head.weight)
    assert check_resources(started.config, None) is None


@pytest.mark.parametrize("last", [3, 7, 9, 11])
@pytest.mark.parametrize("interruption", ["stopped", "killed"])
def test_the_best_checkpoint_survives_an_interruption(config, validated, interruption, last):
    expected, _ = validated
    config = dataclasses.replace(expected, root=config().root)
    with contextlib.closing(train(config, stopped=lambda: interruption == "stopped" and step == last)) as running:
        for step in itertools.count(1):
            if next(running, None) is None or interruption == "killed" and step == last:
                break
    steps = [int(path.name[5:]) for path in list_checkpoints(config.run)]
    losses = {line["step"]: line["val_loss"] for line in metrics(config) if "val_loss" in line}
    assert steps == sorted({min(losses, key=losses.get), last if interruption == "stopped" else last - 1})
    list(train(config, resume=True))
    names = [path.name for path in list_checkpoints(config.run)]
    assert names == [path.name for path in list_checkpoints(expected.run)]
    assert runs.find(config.root, config.name).best.name == names[0]
    assert untimed(config) == untimed(expected), "with the routing of every checkpoint"


def test_the_routing_of_deleted_checkpoints_stays(validated):
    config, _ = validated
    history = runs.history(config.run)
    assert [record.step for record in history.router_records] == [0, 2, 4, 6, 8, 10, 12]
    for path in list_checkpoints(config.run):
        model, tokenizer = load(path, torch.float32)
        record = history.router_records[int(path.name[5:]) // 2]
        text = "".join(record.tokens)
        assert text.startswith("<|endoftext|>a fox<|endoftext|>") and len(record.tokens) <= 256
        first = trace(model, tokenizer, encode_document(tokenizer, "a fox"))
        for layer, indices in zip(first.routing, record.indices):
            assert layer.indices.tolist() == indices[: len(first.ids)].tolist()
        bias = model.model.layers[1].mlp.gate.e_score_correction_bias
        assert record.bias[0] == pytest.approx(bias.numpy(), abs=1e-6)


def test_a_damaged_checkpoint_is_skipped(config, uninterrupted):
    config = config()
    shutil.copytree(uninterrupted[0].run, config.run)
    (config.run / "step-000020" / "model.safetensors").write_bytes(b"torn")
    assert [step.step for step in train(config, resume=True)] == [16, 17, 18, 19, 20]
    assert untimed(config) == untimed(uninterrupted[0])


@pytest.mark.parametrize("lost", [0, 1, 300, None])
def test_metrics_that_lost_bytes_keep_their_whole_lines(config, uninterrupted, lost):
    """None: the file is gone."""
    config = config()
    shutil.copytree(uninterrupted[0].run, config.run)
    shutil.rmtree(config.run / "step-000020")
    file = config.run / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    kept = "".join(lines[:15])
    file.unlink() if lost is None else file.write_text(kept[: len(kept) - lost])
    whole = 0 if lost is None else kept[: len(kept) - lost].count("\n")
    list(train(config, resume=True))
    assert [line["step"] for line in metrics(config)] == [*range(1, whole + 1), *range(16, STEPS + 1)]


def test_a_new_run_deletes_nothing_that_another_has_written(config, uninterrupted):
    with pytest.raises(TrainingError, match="exists; resume it or choose another name"):
        next(train(uninterrupted[0]))
    copied = latest_checkpoint(uninterrupted[0].run)
    config = config()
    shutil.copytree(copied, config.run / copied.name)
    with pytest.raises(
        TrainingError, match=f"^name is 'run', but '.*run' holds '{copied.name}', of no run; choose another name.$"
    ):
        next(train(config))
    assert latest_checkpoint(config.run).name == copied.name


def test_a_run_that_ended_before_its_first_checkpoint_is_started_and_resumed_from_its_beginning(config, uninterrupted):
    with pytest.raises(TrainingError, match="has no checkpoint to resume from"):
        next(train(config(), resume=True))
    config = config(save_every=STEPS)
    for resume in (False, False, True):
        with contextlib.closing(train(config, resume)) as running:
            assert [next(running).step for _ in range(3)] == [1, 2, 3]
    assert [line["step"] for line in metrics(config)] == [1, 2, 3]
    list(train(config, resume=True))
    assert untimed(config) == untimed(uninterrupted[0])
    (latest_checkpoint(config.run) / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(TrainingError, match="has no undamaged checkpoint to resume from"):
        next(train(config, resume=True))


def test_a_finished_run_is_extended_also_where_it_was_moved_with_its_uploaded_file(uninterrupted, stories, tmp_path):
    config = dataclasses.replace(
        uninterrupted[0], root=str(tmp_path / "before"), name="uploaded", schedule="constant", max_steps=5
    )
    config.data[:] = [str(config.run / UPLOADS / "my stories.txt")]
    (config.run / UPLOADS).mkdir(parents=True)
    shutil.copy(stories, config.data[0])
    assert [step.step for step in train(config)] == [1, 2, 3, 4, 5]
    (tmp_path / "after").mkdir()
    config.run.rename(tmp_path / "after" / "renamed")
    arguments = [f"--root={tmp_path / 'after'}", "--name=renamed", "--resume"]
    with pytest.raises(
        TrainingError, match="^max_steps is 4; run '.*renamed' has taken 5 steps; it must be that at least.$"
    ):
        next(train(*parse([*arguments, "--max-steps=4"])))
    extended, resume = parse([*arguments, "--max-steps=7", "--lr=0.002"])
    steps = list(train(extended, resume))
    assert [(step.step, step.lr) for step in steps] == [(6, 0.002), (7, 0.002)]
    assert read_config(extended.run) == extended and extended.max_steps == 7
    assert list(train(*parse(arguments))) == [], "it has taken its seven steps"


def test_a_run_of_version_0_1_is_resumed(tmp_path, monkeypatch):
    """With the settings of its old config.json; three more steps bring a validation, samples and a checkpoint."""
    monkeypatch.chdir(ROOT)  # its data is a path from there
    shutil.copytree("tests/fixtures/v0.1/runs/old", tmp_path / "old")
    config, _ = parse([f"--root={tmp_path}", "--name=old", "--resume"])
    losses = [line["loss"] for line in metrics(config) if "loss" in line]
    steps = list(train(dataclasses.replace(config, max_steps=8), resume=True))
    assert [step.step for step in steps] == [6, 7, 8] and latest_checkpoint(config.run).name == "step-000008"
    assert steps[-1].tokens == 8 * 2 * 2 * 16
    assert [record.step for record in runs.history(config.run).router_records] == [0, 2, 4, 6, 8]
    lines = metrics(config)
    assert [line["loss"] for line in lines if "loss" in line] == losses[:5] + [step.loss for step in steps]
    assert {key for line in lines for key in line} == {
        *LINE,
        "val_loss",
        "val_bits_per_byte",
        "samples",
        "probe",
        "routing",
    }


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
    trainer = Trainer(config(dropout=0.5, precision="fp32"), None, ProcessGroup(0, 1, torch.device("cpu")))
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


def test_validation_text_that_is_empty_is_refused(config, tmp_path):
    (tmp_path / "empty.txt").touch()
    with pytest.raises(DataError, match="empty.txt' holds no text to validate on"):
        next(train(config(eval_data=[str(tmp_path / "empty.txt")], eval_every=1)))


def test_chats_are_trained_on_as_the_template_of_the_tokenizer_writes_them(config, chat_checkpoint, tmp_path):
    """Also the held-out ones; the checkpoint keeps the template."""
    (tmp_path / "chats.jsonl").write_text("\n".join([json.dumps({"messages": CHAT})] * 2000))
    options = dict(init_from=chat_checkpoint, data=[str(tmp_path / "chats.jsonl")], max_steps=1, eval_every=1)
    trainer = Trainer(config(**options), None, ProcessGroup(0, 1, torch.device("cpu")))
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
