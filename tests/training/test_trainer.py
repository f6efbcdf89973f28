"""Training runs: they learn, they can be cut anywhere and go on, and they stop rather than train on nothing."""

import contextlib
import dataclasses
import functools
import itertools
import json
import math
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from deepseek.checkpoints.loading import load
from deepseek.checkpoints.saving import latest_checkpoint, list_checkpoints
from deepseek.data.readers import DataError
from deepseek.model.deepseek_v3 import DeepseekV3ForCausalLM
from deepseek.train import report
from deepseek.training.config import TrainConfig, TrainingError
from deepseek.training.trainer import autocast_dtype, learning_rate, train
from deepseek.training.validation import SAMPLE_PROMPTS

ROOT = Path(__file__).parents[2]
STEPS = 20
LINE = {
    "step", "loss", "load_balancing_loss", "lr", "grad_norm", "tokens", "tokens_per_second", "load", "max_violation",
}  # fmt: skip


@pytest.fixture
def config(stories, tmp_path):
    """Makes the settings of a small run, with changes."""
    return lambda **changes: settings(stories, tmp_path, **changes)


def settings(stories, root, **changes):
    small = dict(preset="tiny", max_seq_len=32, batch_size=4, max_steps=STEPS, warmup_steps=3, lr=5e-3, save_every=5)
    quiet = dict(eval_every=0, sample_every=0, probe="")
    return TrainConfig(**{"root": str(root), "data": [stories], **small, **quiet, **changes})


@pytest.fixture(scope="module")
def whole(stories, tmp_path_factory):
    """(settings, steps) of a run that nothing interrupted."""
    config = settings(stories, tmp_path_factory.mktemp("runs"))
    return config, list(train(config))


def metrics(config):
    """The lines of metrics.jsonl without the one figure that is a matter of time."""
    lines = (config.run / "metrics.jsonl").read_text().splitlines()
    return [re.sub(r'"tokens_per_second": [\d.]+', "", line) for line in lines]


def weights(config):
    return load_file(latest_checkpoint(config.run) / "model.safetensors")


# A run


def test_the_loss_falls(whole):
    losses = [step.loss for step in whole[1]]
    assert losses[0] == pytest.approx(math.log(257), rel=0.05), "a new model knows nothing"
    assert sum(losses[-3:]) / 3 < 0.85 * losses[0]


def test_metrics_hold_every_step(whole):
    config, steps = whole
    lines = [json.loads(line) for line in (config.run / "metrics.jsonl").read_text().splitlines()]
    assert all(set(line) == LINE for line in lines)
    assert lines == [step.line() for step in steps]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert [line["tokens"] for line in lines] == list(range(128, 128 * STEPS + 1, 128))
    for line in lines:
        assert len(line["load"]) == len(line["max_violation"]) == 1
        assert sum(line["load"][0]) == pytest.approx(1, abs=1e-3)
        assert line["max_violation"][0] == pytest.approx(8 * max(line["load"][0]) - 1, abs=1e-3)
        assert 0 <= line["load_balancing_loss"] <= math.log(8)


def test_the_newest_commits_are_kept_and_open_everywhere(whole):
    config, steps = whole
    assert [step.step for step in steps if step.checkpoint] == [5, 10, 15, 20]
    assert [folder.name for folder in list_checkpoints(config.run)] == ["step-000015", "step-000020"]
    ours, tokenizer = load(config.run / "step-000020", torch.float32)
    stock = transformers.AutoModelForCausalLM.from_pretrained(config.run / "step-000020", dtype=torch.float32)
    assert isinstance(ours, DeepseekV3ForCausalLM) and isinstance(stock, transformers.DeepseekV3ForCausalLM)
    ids = torch.tensor([tokenizer("Once upon a time")["input_ids"]])
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, stock(ids).logits, atol=1e-4, rtol=1e-4)


def test_the_router_bias_moved_by_counted_load(whole):
    (bias,) = (tensor for name, tensor in weights(whole[0]).items() if name.endswith("e_score_correction_bias"))
    assert bias.count_nonzero() == 8 and bias.abs().max() <= STEPS * 0.001 + 1e-6
    steps = bias / 0.001
    torch.testing.assert_close(steps, steps.round(), atol=1e-2, rtol=0)


# Cut and resumed


@pytest.mark.parametrize("cut", ["stopped after step 7", "killed after step 7"])
def test_a_run_that_was_cut_goes_on_as_if_it_had_not_been(config, whole, cut):
    """Killed, it goes back to the commit of step 5; stopped, it commits step 7 first."""
    config = config()
    with contextlib.closing(train(config, stopped=lambda: "stopped" in cut and step == 7)) as running:
        for step in itertools.count(1):
            if next(running, None) is None or "killed" in cut and step == 7:
                break
    assert latest_checkpoint(config.run).name == ("step-000007" if "stopped" in cut else "step-000005")
    resumed = list(train(config, resume=True))
    assert resumed[0].step == (8 if "stopped" in cut else 6)
    assert metrics(config) == metrics(whole[0])
    expected = weights(whole[0])
    assert all(torch.equal(tensor, expected.pop(name)) for name, tensor in weights(config).items()) and not expected


def test_a_damaged_commit_is_passed_over(config, whole):
    config = config()
    shutil.copytree(whole[0].run, config.run)
    (config.run / "step-000020" / "model.safetensors").write_bytes(b"torn")
    resumed = list(train(config, resume=True))
    assert [step.step for step in resumed] == [16, 17, 18, 19, 20]
    assert metrics(config) == metrics(whole[0])


def test_a_run_is_neither_overwritten_nor_resumed_from_nothing(config, whole):
    with pytest.raises(TrainingError, match="exists; resume it or choose another name"):
        next(train(whole[0]))
    with pytest.raises(TrainingError, match="no commit to resume from"):
        next(train(config(), resume=True))


# What a step does


def test_accumulated_batches_make_the_step_of_one_large_batch(config):
    """Without the balancing loss, which is computed over each forward pass and so differs a little."""
    plain = dict(max_steps=3, warmup_steps=0, precision="fp32", balance_weight=0.0)
    large = list(train(config(name="large", batch_size=8, **plain)))
    small = list(train(config(name="small", batch_size=4, gradient_accumulation_steps=2, **plain)))
    for one, other in zip(small, large, strict=True):
        assert one.loss == pytest.approx(other.loss, abs=1e-4)
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-3)
        assert (one.tokens, one.load) == (other.tokens, other.load)


def test_validation_and_samples_come_when_they_are_due(config):
    config = config(max_steps=2, eval_every=1, sample_every=2)
    first, second = train(config)
    assert first.validation["val_loss"] > second.validation["val_loss"] and first.samples is None
    assert [sample["prompt"] for sample in second.samples] == SAMPLE_PROMPTS
    assert all(sample["text"].startswith(sample["prompt"]) for sample in second.samples)
    lines = [json.loads(line) for line in (config.run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 1, 2, 2, 2]
    assert lines[4]["samples"] == second.samples
    assert set(lines[1]) == {"step", "val_loss", "val_bits_per_byte"}


def test_what_is_due_is_printed_with_its_step(config, capsys):
    config = config(max_steps=3, eval_every=3, sample_every=3)
    *_, step = train(config)
    report(config, dataclasses.replace(step, step=2, tokens=256), [50.0, 50.0])
    first, held_out, sample, *_, commit = capsys.readouterr().out.splitlines()
    assert first.startswith("Step 2 - Loss: ") and first.endswith(", 3 s left"), "128 tokens at 50 a second"
    nats, bits = step.validation["val_loss"], step.validation["val_bits_per_byte"]
    assert held_out == f"  held out: {nats:.4f} nats a token, {bits:.4f} bits a byte"
    assert nats / math.log(2) == pytest.approx(bits, rel=0.1), (
        "a tiny model's tokens are bytes, and one begins each text"
    )
    assert sample == f"  Sample 1: {step.samples[0]['text']!r}"
    assert commit == f"  committed {config.run / 'step-000003'}"


def test_the_balancing_loss_pulls_the_load_together(config):
    """From the same weights and data, a heavy weight ends nearer to even soft shares than none."""
    plain = dict(max_steps=8, warmup_steps=0, bias_update_rate=0.0)
    ends = [
        list(train(config(name=f"weight-{weight:g}", balance_weight=weight, **plain)))[-1].load_balancing_loss
        for weight in (0.0, 10.0)
    ]
    assert ends[1] < 0.5 * ends[0]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_number_that_is_not_finite_ends_the_run_and_names_its_tensor(config, monkeypatch, precision):
    def broken(shape):
        model = DeepseekV3ForCausalLM(shape)
        with torch.no_grad():
            model.model.layers[1].self_attn.o_proj.weight[0, 0] = math.nan
        return model

    monkeypatch.setattr("deepseek.training.trainer.DeepseekV3ForCausalLM", broken)
    config = config(precision=precision)
    with pytest.raises(TrainingError, match="^step 1: weight model.layers.1.self_attn.o_proj.weight is not finite"):
        next(train(config))
    assert list_checkpoints(config.run) == [] and "NaN" not in (config.run / "metrics.jsonl").read_text()


def test_the_gradient_named_is_the_one_that_began_it(config, monkeypatch):
    """The keys' gradient of the second layer turns to NaN: those of the layers below follow, those above are sound."""

    def broken(shape):
        model = DeepseekV3ForCausalLM(shape)
        model.model.layers[1].self_attn.kv_b_proj.weight.register_hook(lambda gradient: gradient * math.nan)
        return model

    monkeypatch.setattr("deepseek.training.trainer.DeepseekV3ForCausalLM", broken)
    with pytest.raises(
        TrainingError, match="^step 1: gradient of model.layers.1.self_attn.kv_b_proj.weight is not finite"
    ):
        next(train(config()))


def test_weights_that_overflow_in_a_step_are_not_committed(config):
    """A decay of 10 makes every weight 9 times as large and of the other sign: an absurd setting, but one that is allowed.

    The loss of a step is that of the weights before it, so at the commit nothing else has seen those after it.
    """
    config = config(
        max_steps=60, lr=1.0, weight_decay=10.0, warmup_steps=0, save_every=1, keep_last=1, schedule="constant"
    )
    with pytest.raises(TrainingError, match=r"is not finite; the last good commit is kept\.$"):
        list(train(config))
    (kept,) = list_checkpoints(config.run)
    assert all(tensor.isfinite().all() for tensor in load_file(kept / "model.safetensors").values())


def test_a_gradient_that_fp16_cannot_hold_is_null_in_the_metrics(config, monkeypatch):
    monkeypatch.setattr(torch.amp, "GradScaler", functools.partial(torch.amp.GradScaler, init_scale=2.0**100))
    config = config(precision="fp16", max_steps=2)
    steps = list(train(config))
    lines = (config.run / "metrics.jsonl").read_text().splitlines()
    assert not math.isfinite(steps[0].grad_norm) and not math.isfinite(steps[1].grad_norm)
    assert [json.loads(line, parse_constant=pytest.fail)["grad_norm"] for line in lines] == [None, None]


def test_a_gradient_that_no_scale_of_fp16_can_hold_ends_the_run(config, monkeypatch):
    """The scale is halved from 2**16 down to 1, and then it is not the scale."""

    def broken(shape):
        model = DeepseekV3ForCausalLM(shape)
        model.model.norm.weight.register_hook(lambda gradient: gradient * math.inf)
        return model

    monkeypatch.setattr("deepseek.training.trainer.DeepseekV3ForCausalLM", broken)
    with pytest.raises(
        TrainingError, match="^step 17: gradient of model.norm.weight is not finite; the last good commit"
    ):
        list(train(config(precision="fp16", max_steps=30)))


def test_validation_text_that_is_empty_is_refused(config, tmp_path):
    (tmp_path / "empty.txt").touch()
    with pytest.raises(DataError, match="empty.txt' holds no text to validate on"):
        next(train(config(eval_data=[str(tmp_path / "empty.txt")], eval_every=1)))


def test_a_checkpoint_can_be_trained_on(config, whole):
    step = next(train(config(init_from=str(latest_checkpoint(whole[0].run)))))
    assert step.loss < whole[1][0].loss - 0.5 and step.step == 1


# Settings


@pytest.mark.parametrize(
    "tiles, name, taken",
    [(False, "sapphirerapids", None), (True, "sapphirerapids", torch.bfloat16), (False, "znver5", torch.bfloat16)],
)
def test_a_processor_trains_in_bf16_only_where_that_is_faster(monkeypatch, tiles, name, taken):
    """AVX512-BF16 alone, for which decoding takes bf16, makes training slower than fp32 on Intel's: see docs/log.md."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    monkeypatch.setattr("deepseek.model.deepseek_v3.get_host_cpu_name", lambda: name)
    assert autocast_dtype("auto", "cpu") == taken
    assert autocast_dtype("bf16", "cpu") == torch.bfloat16 and autocast_dtype("fp32", "cpu") is None


def test_learning_rate_warms_up_and_then_falls_or_stays(config):
    cosine, constant = (
        config(lr=0.1, warmup_steps=10, max_steps=110, schedule=name) for name in ("cosine", "constant")
    )
    assert [learning_rate(cosine, step) for step in (1, 5, 10)] == pytest.approx([0.01, 0.05, 0.1])
    assert [learning_rate(cosine, step) for step in (35, 60, 110)] == pytest.approx(
        [0.1 * (1 + math.cos(math.pi * done)) / 2 for done in (25 / 101, 50 / 101, 100 / 101)]
    )
    assert learning_rate(cosine, 110) > 0, "the last step moves the weights too"
    assert {learning_rate(constant, step) for step in range(10, 111)} == {0.1}
    assert learning_rate(config(warmup_steps=0), 1) > 0


@pytest.mark.parametrize(
    "change, label",
    [
        (dict(max_steps=0), "steps is 0"),
        (dict(max_steps=2.5), "steps is 2.5; it must be a whole number from 1 to 10000000"),
        (dict(max_steps=True), "steps is True"),
        (dict(lr="fast"), "lr is 'fast'; it must be a number from 0 to 1"),
        (dict(shard="yes"), "shard is 'yes'; it must be true or false"),
        (dict(data="a.txt"), "data is 'a.txt'; it must be a list"),
        (dict(data=[3]), "data is 3; it must be text"),
        (dict(mixture_weights=["1"]), "shares is '1'; it must be a number"),
        (dict(name=7), "name is 7; it must be text"),
        (dict(lr=math.nan), "lr is nan"),
        (dict(lr=-1.0), "lr is -1.0"),
        (dict(batch_size="8"), "batch-size is '8'"),
        (dict(preset="huge"), "preset is 'huge'"),
        (dict(precision="int8"), "precision is 'int8'"),
        (dict(eval_every=-1), "valid-every is -1"),
        (dict(data=[]), "data is empty"),
        (dict(mixture_weights=[1.0, 2.0]), r"shares is \[1.0, 2.0\]"),
        (dict(mixture_weights=[0.0]), r"shares is \[0.0\]"),
        (dict(name="../up"), "name is '../up'"),
        (dict(name=""), "name is ''"),
        (dict(name=".hidden"), "name is '.hidden'"),
    ],
)
def test_a_bad_setting_is_refused_by_its_flag(config, stories, change, label):
    with pytest.raises(ValueError, match=f"^{label}"):
        TrainConfig(**{"data": [stories], **change})


def test_any_seed_that_is_allowed_trains(config):
    assert next(train(config(seed=2**63 - 1))).step == 1


def test_one_document_is_enough_to_train_on(config, tmp_path):
    """The first text that somebody tries is often a single one."""
    (tmp_path / "one.txt").write_text("The little fox ran over the hill.\n" * 50)
    assert next(train(config(data=[str(tmp_path / "one.txt")], eval_every=1))).step == 1


# The command


def test_the_command_prints_its_steps_and_a_signal_makes_it_commit(stories, tmp_path):
    small = "--preset tiny --context 32 --batch-size 4 --steps 100000 --valid-every 0 --sample-every 0 --warmup 0"
    command = [sys.executable, "-m", "deepseek.train", "--root", str(tmp_path), "--data", stories, *small.split()]
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        first = [running.stdout.readline() for _ in range(3)]
        running.send_signal(signal.SIGTERM)
        rest, complaint = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 0, complaint
    for number, line in enumerate(first, 1):
        assert re.match(
            rf"Step {number} - Loss: \d+\.\d+, Load Balancing Loss: \d+\.\d+ \| lr .*, \d+ tokens/s, \d+ .* left$", line
        )
    steps = re.findall(r"^Step (\d+) ", rest, re.M)
    last = int(steps[-1]) if steps else 3
    assert latest_checkpoint(tmp_path / "run").name == f"step-{last:06d}" and f"step-{last:06d}" in rest
