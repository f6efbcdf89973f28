"""Two processes train the run that one does, and each can resume the other's. Over gloo, started by torchrun."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from running import wait_until
from safetensors.torch import load_file

from deepseek.checkpoints.loading import load
from deepseek.checkpoints.saving import latest_checkpoint
from deepseek.model.load_balancing import load_balancing_loss
from deepseek.training import distributed, runs
from deepseek.training.config import TrainingError
from deepseek.training.trainer import train

ROOT = Path(__file__).parents[2]
STEPS, HALF = 20, 10


@pytest.fixture(scope="module")
def config(small_config, tmp_path_factory):
    return small_config(
        tmp_path_factory.mktemp("runs"), name="one", max_steps=STEPS, gradient_accumulation_steps=2, balance_weight=1.0,
        save_every=HALF, keep_last=9, precision="fp32", eval_every=HALF, eval_documents=1, probe="a fox",
    )  # fmt: skip


@pytest.fixture(scope="module")
def one_process(config):
    """The run on one process, and a copy that has half its steps."""
    list(train(config))
    copy_half(config, "one-then-two")


def copy_half(config, name, source="one"):
    """Copies a run as it was after half its steps; returns the copy's settings."""
    copy = dataclasses.replace(config, name=name)
    shutil.copytree(config.run.with_name(source), copy.run)
    shutil.rmtree(copy.run / f"step-{STEPS:06d}")
    return copy


@pytest.fixture(scope="module")
def two_processes(config, one_process):
    """What each of two processes observed of several runs, the last of which was ended with SIGTERM to torchrun.

    See tests/two_processes.py.
    """
    settings, log = config.run.with_name("settings.json"), config.run.with_name("log.txt")
    settings.write_text(json.dumps(dataclasses.asdict(config)))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with log.open("w") as output:
        command = [*torchrun, str(ROOT / "tests" / "two_processes.py"), str(settings)]
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)

    def long_run_trains():
        assert process.poll() is None, log.read_text()
        return len(runs.metrics(config.run.with_name("long"))[0]) > 3

    try:
        wait_until(long_run_trains, 240)
        process.terminate()
        process.wait(60)
    finally:
        process.kill()
    return [json.loads(config.run.with_name(f"result-{rank}.json").read_text()) for rank in (0, 1)]


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(run, config):
    """Asserts that a run's metrics and weights are those of the run on one process."""
    for line, expected in zip(metrics(run), metrics(config.run), strict=True):
        assert set(line) == set(expected) and line["step"] == expected["step"]
        for key in set(line) & {"loss", "load_balancing_loss", "val_loss", "val_bits_per_byte", "lr", "tokens"}:
            assert line[key] == pytest.approx(expected[key], abs=1e-4), (key, line["step"])
        if "grad_norm" in line:
            assert line["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4, abs=1e-4)  # one is 31
            assert torch.tensor(line["load"]).allclose(torch.tensor(expected["load"]), atol=0.01)
    weights, expected = (load_file(folder / f"step-{STEPS:06d}/model.safetensors") for folder in (run, config.run))
    assert set(weights) == set(expected)
    for name, tensor in expected.items():
        atol = 1e-6 if name.endswith("e_score_correction_bias") else 2e-3
        torch.testing.assert_close(weights[name], tensor, atol=atol, rtol=0)


@pytest.mark.long
def test_two_processes_with_a_copy_each_train_the_run_of_one(config, two_processes):
    assert_same_run(config.run.with_name("copied"), config)
    printed = [result["printed"].count("Step ") for result in two_processes]
    assert printed == [STEPS, 0], "only the first process prints"


@pytest.mark.long
def test_two_processes_with_a_shard_of_every_weight_train_the_run_of_one(config, two_processes):
    for result in two_processes:
        assert result["sharded"]["all are DTensor"]
        assert result["sharded"]["fraction"] == pytest.approx(0.5, abs=0.01)
    assert_same_run(config.run.with_name("sharded"), config)


@pytest.mark.long
def test_two_processes_resume_the_run_of_one(config, two_processes):
    assert [result["resumed"] for result in two_processes] == [list(range(HALF + 1, STEPS + 1))] * 2
    assert_same_run(config.run.with_name("one-then-two"), config)


@pytest.mark.parametrize("name", ["copied", "sharded"])
@pytest.mark.long
def test_one_process_resumes_the_run_of_two(config, two_processes, name):
    copy = copy_half(config, f"{name}-then-one", source=name)
    assert [step.step for step in train(copy, resume=True)] == list(range(HALF + 1, STEPS + 1))
    assert_same_run(copy.run, config)


@pytest.mark.parametrize("name", ["copied", "sharded"])
@pytest.mark.long
def test_a_checkpoint_of_two_processes_opens_in_transformers(config, two_processes, name):
    folder = latest_checkpoint(config.run.with_name(name))
    ours, tokenizer = load(folder, torch.float32)
    stock = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert isinstance(stock, transformers.DeepseekV3ForCausalLM)
    ids = torch.tensor([tokenizer("Once upon a time")["input_ids"]])
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, stock(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.long
def test_a_stop_of_one_process_stops_all_after_the_same_step(config, two_processes):
    assert [result["stopped"] for result in two_processes] == [[1, 2, 3], [1, 2, 3]]
    assert latest_checkpoint(config.run.with_name("stopped")).name == "step-000003"


@pytest.mark.long
def test_sigterm_to_torchrun_saves_a_checkpoint(config, two_processes):
    """As a cluster's scheduler sends it: torchrun forwards it, and both processes stop after the same step."""
    run = runs.find(config.root, "long")
    assert run.state == "stopped" and run.checkpoint.name == f"step-{run.step:06d}"
    long = dataclasses.replace(config, name="long", max_steps=10**6, save_every=10**6, eval_every=0)
    assert next(train(long, resume=True)).step == run.step + 1


@pytest.mark.long
def test_a_value_that_is_not_finite_on_one_process_ends_all(config, two_processes):
    for result in two_processes:
        assert result["broken"].startswith("step 3: ") and "is not finite" in result["broken"]
    assert latest_checkpoint(config.run.with_name("broken")) is None


def test_a_batch_must_divide_among_the_processes(config, monkeypatch):
    def three_processes(group, rank, size, device):
        group.rank, group.size, group.device, group.is_main = 0, 3, device, True

    monkeypatch.setattr(distributed.ProcessGroup, "__init__", three_processes)
    with pytest.raises(TrainingError, match="batch_size is 4; it must be a multiple of 3 processes"):
        next(train(dataclasses.replace(config, name="three")))


def test_the_mean_over_processes_gives_the_balancing_loss_of_the_whole_batch():
    """Two halves in one process, each with the other's mean: loss and averaged gradients are those of the whole batch."""
    generator = torch.Generator().manual_seed(0)
    batch = (3 * torch.randn(2, 12, 8, generator=generator)).requires_grad_()
    expected = load_balancing_loss(batch)
    expected.backward()
    halves = [batch.detach()[:, :6].clone().requires_grad_(), batch.detach()[:, 6:].clone().requires_grad_()]
    scores = [half.detach().sigmoid() for half in halves]
    means = [(score / score.sum(-1, keepdim=True)).mean(1) for score in scores]  # of each half: (layers, experts)
    for rank, half in enumerate(halves):
        group, layers = distributed.ProcessGroup(rank, 2, torch.device("cpu")), iter(means[0] + means[1])
        group.sum = lambda tensor, layers=layers: next(layers)
        loss = load_balancing_loss(half, all_reduce_mean=group.mean)
        torch.testing.assert_close(loss, expected)
        loss.backward()
    torch.testing.assert_close(torch.cat([half.grad for half in halves], 1) / 2, batch.grad)
