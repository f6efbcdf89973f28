"""Two processes make the run that one makes, and either goes on with the other's. Over gloo, started by torchrun."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from deepseek.checkpoints.loading import load
from deepseek.checkpoints.saving import latest_checkpoint
from deepseek.model.load_balancing import load_balancing_loss
from deepseek.training import distributed, runs
from deepseek.training.config import TrainConfig, TrainingError
from deepseek.training.trainer import train

ROOT = Path(__file__).parents[2]
STEPS, HALF = 20, 10


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def torchrun(*arguments):
    command = [*TORCHRUN, *arguments]
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=90)


def flags(config):
    """What the command line says for these settings."""
    said = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value != field.default and value != [] and field.name != "init_from":
            said += ["--" + field.name.replace("_", "-"), *map(str, value if isinstance(value, list) else [value])]
    return said


@pytest.fixture(scope="module")
def config(stories, tmp_path_factory):
    return TrainConfig(
        root=str(tmp_path_factory.mktemp("runs")), name="one", preset="tiny", data=[stories], max_seq_len=32, batch_size=4,
        gradient_accumulation_steps=2, max_steps=STEPS, warmup_steps=3, lr=5e-3, balance_weight=1.0, save_every=HALF,
        keep_last=9, precision="fp32",
        eval_every=HALF, eval_documents=1, sample_every=0, probe="a fox",
    )  # fmt: skip


@pytest.fixture(scope="module")
def one(config):
    """The steps of the run on one process."""
    return list(train(config))


@pytest.fixture(scope="module")
def copied(config, one):
    """The command on two processes, each with the whole model; returns its settings and what it printed."""
    twin = dataclasses.replace(config, name="copied")
    ended = torchrun("-m", "deepseek.train", *flags(twin))
    assert ended.returncode == 0, ended.stderr
    return twin, ended.stdout


@pytest.fixture(scope="module")
def seen(config, one):
    """What each of two processes saw of several runs; see tests/two_processes.py."""
    folder = config.run.with_name("one-then-two")
    shutil.copytree(config.run, folder)
    shutil.rmtree(folder / f"step-{STEPS:06d}")
    settings = config.run.with_name("settings.json")
    settings.write_text(json.dumps(dataclasses.asdict(config)))
    ended = torchrun("tests/two_processes.py", str(settings))
    assert ended.returncode == 0, ended.stderr
    return [json.loads(config.run.with_name(f"seen-{rank}.json").read_text()) for rank in (0, 1)]


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def same_run(run, config):
    """Asserts that a run's figures and weights are those of the run on one process."""
    for ours, theirs in zip(lines(run), lines(config.run), strict=True):
        assert set(ours) == set(theirs) and ours["step"] == theirs["step"]
        for key in set(ours) & {"loss", "load_balancing_loss", "val_loss", "val_bits_per_byte", "lr", "tokens"}:
            assert ours[key] == pytest.approx(theirs[key], abs=1e-4), (key, ours["step"])
        if "grad_norm" in ours:
            assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], abs=1e-4)
            assert torch.tensor(ours["load"]).allclose(torch.tensor(theirs["load"]), atol=0.01)
    ours, theirs = (load_file(folder / f"step-{STEPS:06d}" / "model.safetensors") for folder in (run, config.run))
    assert set(ours) == set(theirs)
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], atol=2e-3, rtol=0)
        if name.endswith("e_score_correction_bias"):
            torch.testing.assert_close(ours[name], theirs[name], atol=1e-6, rtol=0)


def test_two_processes_with_a_copy_each_make_the_run_of_one(config, copied):
    twin, printed = copied
    same_run(twin.run, config)
    assert printed.count("Step ") == STEPS, "the first process alone prints"


def test_two_processes_with_a_part_of_every_weight_make_the_run_of_one(config, seen):
    for each in seen:
        assert each["sharded"]["all are DTensor"]
        assert each["sharded"]["share"] == pytest.approx(0.5, abs=0.01)
    same_run(config.run.with_name("sharded"), config)


def test_a_run_of_one_goes_on_with_two(config, seen):
    assert [each["resumed"] for each in seen] == [HALF + 1, HALF + 1]
    same_run(config.run.with_name("one-then-two"), config)


@pytest.mark.parametrize("name", ["copied", "sharded"])
def test_a_run_of_two_goes_on_with_one(config, copied, seen, name):
    twin = dataclasses.replace(config, name=f"{name}-then-one")
    shutil.copytree(config.run.with_name(name), twin.run)
    shutil.rmtree(twin.run / f"step-{STEPS:06d}")
    assert [step.step for step in train(twin, resume=True)] == list(range(HALF + 1, STEPS + 1))
    same_run(twin.run, config)


@pytest.mark.parametrize("name", ["copied", "sharded"])
def test_a_commit_of_two_opens_everywhere(config, copied, seen, name):
    folder = latest_checkpoint(config.run.with_name(name))
    ours, tokenizer = load(folder, torch.float32)
    stock = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert isinstance(stock, transformers.DeepseekV3ForCausalLM)
    ids = torch.tensor([tokenizer("Once upon a time")["input_ids"]])
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, stock(ids).logits, atol=1e-4, rtol=1e-4)


def test_a_signal_to_one_process_stops_all_at_the_same_step(config, seen):
    assert [each["stopped"] for each in seen] == [[1, 2, 3], [1, 2, 3]]
    assert latest_checkpoint(config.run.with_name("stopped")).name == "step-000003"


def test_a_stop_of_torchrun_commits(config, one):
    """SIGTERM as a cluster's scheduler sends it: torchrun hands it on, both processes stop at one step and commit it."""
    long = dataclasses.replace(config, name="long", max_steps=10**6, save_every=10**6, eval_every=0)
    process = subprocess.Popen([*TORCHRUN, "-m", "deepseek.train", *flags(long)], cwd=ROOT, env=ENVIRONMENT)
    end = time.monotonic() + 90
    while not runs.metrics(long.run)[0][3:]:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.1)
    process.terminate()
    process.wait(60)
    run = runs.find(long.root, "long")
    assert run.state == "stopped" and run.checkpoint.name == f"step-{run.step:06d}"
    assert next(train(long, resume=True)).step == run.step + 1


def test_a_number_that_is_not_finite_on_one_process_ends_all(config, seen):
    for each in seen:
        assert each["broken"].startswith("step 3: ") and "is not finite" in each["broken"]
    assert latest_checkpoint(config.run.with_name("broken")) is None


def test_a_batch_must_divide_among_the_processes(config, monkeypatch):
    monkeypatch.setattr(distributed.ProcessGroup, "__init__", three)
    with pytest.raises(TrainingError, match="batch-size is 4; it must be a multiple of 3 processes"):
        next(train(dataclasses.replace(config, name="three")))


def three(group, rank, size, device):
    group.rank, group.size, group.device, group.first = 0, 3, device, True


def test_the_mean_over_processes_makes_the_balancing_loss_of_the_whole_batch():
    """Two halves in one process, each with the other's mean: values and averaged gradients are those of the whole."""
    generator = torch.Generator().manual_seed(0)
    whole = (3 * torch.randn(2, 12, 8, generator=generator)).requires_grad_()
    expected = load_balancing_loss(whole)
    expected.backward()
    halves = [whole.detach()[:, :6].clone().requires_grad_(), whole.detach()[:, 6:].clone().requires_grad_()]
    means = [
        [(h.sigmoid() / h.sigmoid().sum(-1, keepdim=True)).mean(1) for h in half.detach()[None]][0] for half in halves
    ]
    for number, half in enumerate(halves):
        group, layer = distributed.ProcessGroup(number, 2, torch.device("cpu")), iter(range(2))
        group.sum = lambda tensor: means[0][i := next(layer)] + means[1][i]  # noqa: B023
        loss = load_balancing_loss(half, across=group.mean)
        torch.testing.assert_close(loss, expected)
        loss.backward()
    torch.testing.assert_close(torch.cat([half.grad for half in halves], 1) / 2, whole.grad)
