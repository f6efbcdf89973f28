"""Background runs: controlled and read by any process, and never lost."""

import json
import math
import os
import re
import signal
import subprocess
import time
import zipfile
from pathlib import Path

import pytest
import torch
from running import wait_until

import deepseek
from deepseek.checkpoints.saving import is_complete, save_checkpoint
from deepseek.training import job_process, runs
from deepseek.training.config import TrainConfig

ROOT = Path(__file__).parents[2]
LONG = 10**6


@pytest.fixture
def config(small_config, tmp_path):
    """Makes the settings of a small run that does not end by itself, with changes; kills it afterwards."""
    yield lambda root=tmp_path, **changes: small_config(root, **{"max_steps": LONG, "warmup_steps": 0, **changes})
    for run in runs.list_runs(tmp_path):
        if run.alive:
            runs.kill(tmp_path, run.name)


# A run from start to end


def test_a_run_is_paused_stopped_resumed_killed_and_deleted(config, tmp_path):
    config = config(name="a run", sample_every=10, probe="a fox")
    find = lambda: runs.find(tmp_path, "a run")  # noqa: E731
    started = runs.start(config)
    assert (started.state, started.step, started.steps, started.checkpoint) == ("running", 0, LONG, None)
    pid = job_process.read_json(config.run / job_process.PROCESS_FILE)["pid"]
    assert os.getsid(pid) == pid != os.getsid(0) and os.getpriority(os.PRIO_PROCESS, pid) == 10
    with pytest.raises(runs.RunError, match="^run 'a run' is in progress"):
        runs.start(TrainConfig(root=str(tmp_path), name="other"))
    wait_until(lambda: find().step >= 10)

    runs.pause(tmp_path, "a run")
    wait_until(lambda: find().state == "paused")
    step = find().step
    with pytest.raises(runs.RunError, match="is paused; stop it before it is deleted"):
        runs.delete(tmp_path, "a run")
    time.sleep(0.2)
    assert find().step == step, "a paused run does not step"
    runs.resume(tmp_path, "a run")
    wait_until(lambda: find().step > step)

    runs.stop(tmp_path, "a run")
    wait_until(lambda: not find().alive)
    stopped = find()
    assert (stopped.state, stopped.reason) == ("stopped", "")
    assert stopped.checkpoint.name == f"step-{stopped.step:06d}" and is_complete(stopped.checkpoint)
    lines, _ = runs.metrics(config.run)
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, stopped.step + 1))
    samples = [line for line in lines if "samples" in line]
    assert [line["step"] for line in samples] == list(range(10, stopped.step + 1, 10))
    assert all(sample["text"].startswith(sample["prompt"]) for line in samples for sample in line["samples"])

    runs.resume(tmp_path, "a run")
    wait_until(lambda: find().step > stopped.step)
    runs.kill(tmp_path, "a run")
    wait_until(lambda: not find().alive)
    assert find().state == "killed" and find().reason == "its process was killed or crashed"
    assert find().checkpoint >= stopped.checkpoint
    assert "Step 1 - Loss: " in runs.log(config.run, 10**6)

    runs.delete(tmp_path, "a run")
    assert runs.list_runs(tmp_path) == [] and not config.run.exists()


def test_a_run_that_ends_at_once_when_it_is_stopped_is_stopped(config, tmp_path, monkeypatch):
    runs.start(config())
    send = os.kill

    def send_and_wait(pid, number):
        send(pid, number)
        if number == signal.SIGTERM:
            wait_until(lambda: not runs.find(tmp_path, "run").alive)

    monkeypatch.setattr(runs.os, "kill", send_and_wait)
    assert runs.stop(tmp_path, "run").state == "stopped"


def nan_checkpoint(checkpoint, folder):
    model, tokenizer = deepseek.load(checkpoint)
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight[0, 0] = math.nan
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_run_that_is_stopped_or_fails_before_its_first_step_leaves_its_name_free(
    config, train_config, tmp_path, checkpoint
):
    find = lambda: runs.find(tmp_path, "run")  # noqa: E731
    runs.start(config())
    runs.stop(tmp_path, "run")  # during its imports
    wait_until(lambda: not find().alive)
    assert (find().state, find().reason, find().step, find().checkpoint) == ("stopped", "", 0, None)
    nothing, nan = str(tmp_path / "nothing.txt"), nan_checkpoint(checkpoint, tmp_path / "nan")
    for changes, reason in [
        (dict(data=[nothing]), f"data {nothing!r} .*"),
        (dict(init_from=nan), ".* in 'model.layers.1.self_attn.o_proj.weight' that are not finite.*"),
    ]:
        with pytest.raises(SystemExit) as exit_:
            train_config(config(**changes))
        assert find().state == "failed" and re.fullmatch(reason, find().reason)
        assert exit_.value.code == f"error: {find().reason}"


def test_a_full_disk_is_the_reason_of_the_failure(config, tmp_path):
    """On a disk that another program fills after the first checkpoint, in a mount that ends with its process."""
    disk = tmp_path / "disk"
    disk.mkdir()
    script = f"""
        mount -t tmpfs -o size=40m none {disk}
        (until ls {disk}/run/step-*; do sleep 0.05; done; head -c 40m /dev/zero > {disk}/other) 2> other.log &
        "$@"; cp {disk}/run/*.json ."""
    unshare = ["unshare", "-rm", "sh", "-c"]
    if subprocess.run([*unshare, f"mount -t tmpfs none {disk}"], capture_output=True).returncode:
        pytest.skip("mounts are not permitted here")
    command = [*unshare, script, "sh", *runs.command(config(root=disk, save_every=1), False)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)
    assert result.stderr.startswith("error: the disk is full")
    process = job_process.read_json(tmp_path / job_process.PROCESS_FILE)
    reason = "the disk is full; the last good checkpoint is kept, free some space and resume"
    assert (process["state"], process["reason"]) == ("failed", reason)


def test_a_finished_run_is_archived_and_neither_resumed_nor_started_again(config, train_config):
    config = config(max_steps=1)
    train_config(config)
    run = runs.find(config.root, "run")
    assert (run.state, run.step) == ("finished", 1)
    with pytest.raises(runs.RunError, match="is finished; max_steps is 1, it must be above 1"):
        runs.resume(config.root, "run")
    with pytest.raises(runs.RunError, match="exists; resume it or choose another name"):
        runs.start(config)
    for other in (run.folder / "mine.zip", run.checkpoint / ".DS_Store"):
        other.touch()
    (run.checkpoint / "notes").mkdir()
    file = runs.archive(run.checkpoint)
    assert (run.folder / "mine.zip").exists(), "of somebody else"
    assert file == runs.archive(run.checkpoint)
    with zipfile.ZipFile(file) as archive:
        assert not [name for name in archive.namelist() if "notes" in name or "DS_Store" in name]
        archive.extractall(run.folder / "opened")
    assert file.stat().st_size < sum(part.stat().st_size for part in run.checkpoint.iterdir()) / 2
    model, tokenizer = deepseek.load(run.folder / "opened" / file.stem)
    assert model.num_parameters() and tokenizer.vocab_size


# What is refused


@pytest.mark.parametrize("name", ["nothing", "../up", "", "."])
def test_only_an_existing_run_is_found(tmp_path, name):
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    for parent in (folder, tmp_path / "up", tmp_path):
        parent.mkdir(exist_ok=True)
        (parent / "config.json").write_text('{"steps": 7}')
    with pytest.raises(runs.RunError, match="it must be one of mine"):
        runs.find(tmp_path / "runs", name)
    run = runs.find(tmp_path / "runs", "mine")
    assert (run.state, run.step, run.steps) == ("stopped", 0, 7)
    for action in (runs.pause, runs.stop, runs.kill):
        with pytest.raises(runs.RunError, match="^run 'mine' is stopped; only one in progress"):
            action(tmp_path / "runs", "mine")


def test_a_checkpoint_that_cannot_be_opened_is_refused_before_the_start(config, tmp_path):
    (tmp_path / "broken").mkdir()
    with pytest.raises(runs.RunError, match="^init_from is '.*broken', which cannot be opened: "):
        runs.start(config(init_from=str(tmp_path / "broken")))
    assert runs.list_runs(tmp_path) == []


# Damaged


@pytest.mark.parametrize(
    "file, content, reason",
    [
        ("metrics.jsonl", '{"step": 1}\n{"step": 2}\n\n', "its metrics.jsonl has lines that no run writes"),
        (
            "metrics.jsonl",
            '{"step": 1}\n{"st\n{"step": 2}\n',
            "its metrics.jsonl has lines that no run writes",
        ),
        (
            "metrics.jsonl",
            '{"step": 1}\n{"step": 2}\n{"step": "many"}\n',
            "its metrics.jsonl has lines that no run writes",
        ),
        ("process.json", '{"state": 5}', "its process.json is not as a run writes it"),
        ("config.json", "{", "'.*config.json' cannot be used: Expecting property name.*"),
        ("config.json", "[]", "'.*config.json' cannot be used: 'list'.*"),
        ("config.json", '{"max_steps": "many"}', "'.*config.json' cannot be used: max_steps is 'many'; it must be .*"),
        ("config.json", '{"max_step": 7}', "'.*config.json' cannot be used: 'max_step' is no setting."),
        ("config.json", "\xff", "'.*config.json' cannot be used: 'utf-8' codec.*"),
    ],
)
def test_a_damaged_run_is_shown_as_such_and_hides_no_other(tmp_path, file, content, reason):
    for name in ("whole", "odd"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"max_steps": 7}')
        (tmp_path / name / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"st')
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')  # no run
    (tmp_path / "odd" / file).write_text(content, "latin-1")
    odd, whole = sorted(runs.list_runs(tmp_path), key=lambda run: run.name)
    assert (whole.name, whole.state, whole.reason, whole.step, whole.steps) == ("whole", "stopped", "", 2, 7)
    assert (odd.state, odd.step) == ("damaged", 2) and re.match(reason, odd.reason)
    assert [line["step"] for line in runs.metrics(odd.folder)[0]] == [1, 2]
    runs.delete(tmp_path, "odd")
    assert [run.name for run in runs.list_runs(tmp_path)] == ["whole"]


# Reading


def test_metrics_are_read_by_complete_lines_and_anew_after_a_resume(tmp_path):
    file = tmp_path / "metrics.jsonl"
    assert runs.metrics(tmp_path) == ([], 0)
    file.write_text('{"step": 1}\n{"step": 2}\n{"st')
    lines, offset = runs.metrics(tmp_path)
    assert [line["step"] for line in lines] == [1, 2]
    with file.open("a") as rest:
        rest.write('ep": 3, "note": "é"}\n')
    lines, offset = runs.metrics(tmp_path, offset)
    assert lines == [{"step": 3, "note": "é"}] and offset == file.stat().st_size
    assert runs.metrics(tmp_path, offset) == ([], offset)
    os.truncate(file, 12)
    assert runs.metrics(tmp_path, offset) == ([{"step": 1}], 12), "shorter than before"
    file.write_text('{"step": 1, "speed": 9}\n' * 9)
    assert len(runs.metrics(tmp_path, 12)[0]) == 9, "longer than before, with other lines"


def test_the_newest_complete_checkpoint_is_hashed_once(tmp_path, monkeypatch):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, lambda folder: (folder / "weights").write_text("w"), keep_last=2)
    assert runs.newest_checkpoint(tmp_path).name == "step-000002"
    hashed = []
    monkeypatch.setattr("deepseek.checkpoints.saving.sha256", lambda path: hashed.append(path) or "")
    assert runs.newest_checkpoint(tmp_path).name == "step-000002" and not hashed
    (tmp_path / "step-000002" / "weights").write_text("v")
    monkeypatch.undo()
    assert runs.newest_checkpoint(tmp_path).name == "step-000001"


def test_a_run_of_version_0_1_is_listed_with_todays_settings():
    (run,) = runs.list_runs(ROOT / "tests" / "fixtures" / "v0.1" / "runs")
    expected = json.loads((run.folder / "config.json").read_text())
    assert (run.name, run.steps, run.checkpoint.name) == ("old", 60, "step-000005")
    config = TrainConfig(**run.config)
    assert (config.max_steps, config.max_seq_len, config.save_every) == (60, 16, expected["checkpoint_every"])
    assert run.step == 5 and run.state in ("stopped", "killed")
