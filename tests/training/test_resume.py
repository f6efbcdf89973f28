"""An interrupted run resumes as if it had not been interrupted, and loses nothing."""

import contextlib
import dataclasses
import itertools
import shutil
from pathlib import Path

import pytest
import torch
from run_files import ALONE, LINE, metrics, untimed, weights

from deepseek.checkpoints.loading import load
from deepseek.checkpoints.saving import latest_checkpoint, list_checkpoints
from deepseek.data.tokenizer import encode_document
from deepseek.interpret.trace import trace
from deepseek.training import runs
from deepseek.training.config import UPLOADS, TrainingError, parse, read_config
from deepseek.training.resource_check import check_resources
from deepseek.training.trainer import Trainer, train
from deepseek.training.validation import evaluate, validation_texts

ROOT = Path(__file__).parents[2]


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
    assert [step.step for step in train(config, resume=True)] == list(range(last + 1, 21))
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
    started = Trainer(dataclasses.replace(config, name="next", init_from=str(config.run)), None, ALONE)
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
    assert [line["step"] for line in metrics(config)] == [*range(1, whole + 1), *range(16, 21)]


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
    config = config(save_every=20)
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
