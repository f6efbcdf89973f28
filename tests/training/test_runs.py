"""Background runs: steered by anybody, found again by everybody, and never lost."""

import json
import math
import os
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import deepseek
from deepseek.checkpoints.saving import is_complete, save_checkpoint
from deepseek.data.dataloader import PackedDataLoader
from deepseek.training import job_process, resource_check, runs
from deepseek.training.config import TrainConfig, parse

ROOT = Path(__file__).parents[2]
LONG = 10**6


@pytest.fixture
def config(stories, tmp_path):
    """Makes the settings of a small run, with changes; kills what is left of it."""
    small = dict(
        preset="tiny", max_seq_len=32, batch_size=4, warmup_steps=0, save_every=5, eval_every=0, sample_every=0
    )
    yield lambda **changes: TrainConfig(**{"root": str(tmp_path), "data": [stories], "steps": LONG, **small, **changes})
    for run in runs.list_runs(tmp_path):
        if run.alive:
            runs.kill(tmp_path, run.name)


def wait_until(condition, seconds=90):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


# A run from start to end


def test_a_run_is_paused_stopped_resumed_killed_and_deleted(config, tmp_path):
    config = config(name="a run", sample_every=5)
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
    time.sleep(0.5)
    assert find().step == step, "a paused run does not move"
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
    assert [line["step"] for line in samples] == list(range(5, stopped.step + 1, 5))
    assert all(sample["text"].startswith(sample["prompt"]) for line in samples for sample in line["samples"])

    runs.resume(tmp_path, "a run")
    runs.stop(tmp_path, "a run")  # while it still imports
    wait_until(lambda: not find().alive)
    assert (find().state, find().step) == ("stopped", stopped.step)

    runs.resume(tmp_path, "a run")
    wait_until(lambda: find().step > stopped.step)
    runs.kill(tmp_path, "a run")
    wait_until(lambda: not find().alive)
    assert find().state == "killed" and find().reason == "its process was killed or crashed"
    assert find().checkpoint >= stopped.checkpoint
    assert "Step 1 - Loss: " in runs.log(config.run, 10**6)

    runs.delete(tmp_path, "a run")
    assert runs.list_runs(tmp_path) == [] and not config.run.exists()


def nan_model(model, tokenizer, folder):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    broken, tokenizer = deepseek.load(folder)
    with torch.no_grad():
        broken.model.layers[1].self_attn.o_proj.weight[0, 0] = math.nan
    broken.save_pretrained(folder)
    return str(folder)


def test_a_run_that_fails_says_why_and_its_name_can_be_used_again(config, tmp_path, model, tokenizer):
    runs.start(config(data=[str(tmp_path / "nothing.txt")]))
    wait_until(lambda: not runs.find(tmp_path, "run").alive)
    run = runs.find(tmp_path, "run")
    assert run.state == "failed" and run.reason.startswith(f"data {str(tmp_path / 'nothing.txt')!r}")
    runs.start(config(init_from=nan_model(model, tokenizer, tmp_path / "nan")))
    wait_until(lambda: not runs.find(tmp_path, "run").alive)
    run = runs.find(tmp_path, "run")
    assert run.state == "failed" and "numbers in 'model.layers.1.self_attn.o_proj.weight'" in run.reason


def test_a_full_disk_is_named_as_the_reason(config, stories, tmp_path):
    """On a disk that something else fills after the first commit, in a mount that goes with its process."""
    disk = tmp_path / "disk"
    disk.mkdir()
    inside = [
        "unshare",
        "-rm",
        "sh",
        "-c",
        f"""mount -t tmpfs -o size=40m none {disk}
            (until ls {disk}/run/step-*; do sleep 0.05; done; head -c 40m /dev/zero > {disk}/other) 2> other.log &
            "$@"; cp {disk}/run/*.json .""",
        "sh",
    ]
    if subprocess.run([*inside[:4], f"mount -t tmpfs none {disk}"], capture_output=True).returncode:
        pytest.skip("mounts are not permitted here")
    command = runs.command(config(root=str(disk), data=[stories], save_every=1), False)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*inside, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100
    )
    assert "No space left" in done.stderr
    known = job_process.read_json(tmp_path / job_process.PROCESS_FILE)
    assert (known["state"], known["reason"]) == (
        "failed", "the disk is full; the last good commit is kept, free some space and resume"
    )  # fmt: skip


# What is refused


LITTLE = """
import os, runpy, shutil, sys
from types import SimpleNamespace
from deepseek import checkpoint
checkpoint.free_memory = lambda: 3 * 2**28 if os.environ["LITTLE"] == "memory" else None
shutil.disk_usage = lambda path: SimpleNamespace(free=2**30 if os.environ["LITTLE"] == "disk" else 2**40)
runpy.run_module("deepseek.train", run_name="__main__")
"""


@pytest.mark.parametrize("little, free", [("memory", "768 MiB"), ("disk", "1.0 GiB")])
def test_a_run_that_does_not_fit_is_refused_with_both_numbers(config, tmp_path, monkeypatch, little, free):
    """By the page, which asks before there is a process, and by the command line."""
    refusal = rf"run 'run' needs about \d+\.\d GiB of {little}; {free} are free."
    command = [sys.executable, "-c", LITTLE, *runs.command(config(preset="seed"), False)[3:]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LITTLE": little}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert re.fullmatch(f"error: {refusal}\n", ended.stderr), ended.stderr
    assert ended.returncode == 1
    monkeypatch.setattr("deepseek.checkpoints.loading.free_memory", lambda: 3 * 2**28 if little == "memory" else None)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=2**30))
    with pytest.raises(runs.RunError, match=f"^{refusal}$"):
        runs.start(config(preset="seed"))
    assert not config().run.exists()


def test_several_processes_need_room_for_each(config, monkeypatch):
    """torchrun's processes on this machine: a copy of the model each, or a part with --shard, and the batch dealt out."""
    settings, part = config(preset="seed"), config(preset="seed", shard=True)
    alone, commit = resource_check.required_bytes(settings)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    weights = (commit - 4 * PackedDataLoader.BUFFER * settings.max_seq_len) // 12
    more = resource_check.required_bytes(part)[0] - alone  # the program, and the loss's part of the logits
    assert more > resource_check.PROGRAM
    assert resource_check.required_bytes(settings) == (alone + more + 16 * weights, commit)


def test_what_a_run_needs_covers_what_it_takes(config, stories):
    """The estimate of a commit against one that was made."""
    settings = config(max_steps=1)
    subprocess.run(runs.command(settings, False), cwd=ROOT, check=True, capture_output=True)
    run = runs.find(settings.root, "run")
    size = sum(file.stat().st_size for file in run.checkpoint.iterdir())
    assert resource_check.required_bytes(settings)[1] == pytest.approx(size, rel=0.1)
    assert resource_check.required_bytes(settings, run.checkpoint) == pytest.approx(
        resource_check.required_bytes(settings), rel=1e-3
    )
    assert (run.state, run.step) == ("finished", 1)
    with pytest.raises(runs.RunError, match="is finished"):
        runs.resume(settings.root, "run")
    with pytest.raises(runs.RunError, match="exists; resume it or choose another name"):
        runs.start(settings)
    file = runs.archive(run.checkpoint)
    assert file == runs.archive(run.checkpoint)
    with zipfile.ZipFile(file) as archive:
        archive.extractall(run.folder / "opened")
    assert file.stat().st_size < size / 2
    opened, tokenizer = deepseek.load(run.folder / "opened" / file.stem)
    assert opened.num_parameters() and tokenizer.vocab_size


@pytest.mark.parametrize("name", ["nothing", "../up", "", "."])
def test_only_a_run_that_is_there_is_found(tmp_path, name):
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    for place in (folder, tmp_path / "up", tmp_path):
        place.mkdir(exist_ok=True)
        (place / "config.json").write_text('{"steps": 7}')
    with pytest.raises(runs.RunError, match="it must be one of mine"):
        runs.find(tmp_path / "runs", name)
    run = runs.find(tmp_path / "runs", "mine")
    assert (run.state, run.step, run.steps) == ("stopped", 0, 7)
    for act in (runs.pause, runs.stop, runs.kill):
        with pytest.raises(runs.RunError, match="^run 'mine' is stopped; only one in progress"):
            act(tmp_path / "runs", "mine")


def test_a_checkpoint_that_cannot_be_opened_is_refused_before_the_start(config, tmp_path):
    (tmp_path / "broken").mkdir()
    with pytest.raises(runs.RunError, match="^from is '.*broken', which cannot be opened: "):
        runs.start(config(init_from=str(tmp_path / "broken")))
    assert runs.list_runs(tmp_path) == []


# Reading


def test_metrics_come_by_whole_lines_and_anew_after_a_resume(tmp_path):
    file = tmp_path / "metrics.jsonl"
    assert runs.metrics(tmp_path) == ([], 0)
    file.write_text('{"step": 1}\n{"step": 2}\n{"st')
    lines, offset = runs.metrics(tmp_path)
    assert [line["step"] for line in lines] == [1, 2]
    with file.open("a") as more:
        more.write('ep": 3, "loss": "é"}\n')
    lines, offset = runs.metrics(tmp_path, offset)
    assert lines == [{"step": 3, "loss": "é"}] and offset == file.stat().st_size
    assert runs.metrics(tmp_path, offset) == ([], offset)
    os.truncate(file, 12)
    assert runs.metrics(tmp_path, offset) == ([{"step": 1}], 12), "shorter than before"
    file.write_text('{"step": 1, "speed": 9}\n' * 9)
    assert len(runs.metrics(tmp_path, 12)[0]) == 9, "grown beyond, with other lines"


def test_the_newest_whole_commit_is_hashed_once(tmp_path, monkeypatch):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, lambda folder: (folder / "weights").write_text("w"), keep_last=2)
    assert runs.newest_checkpoint(tmp_path).name == "step-000002"
    hashed = []
    monkeypatch.setattr("deepseek.checkpoints.saving.sha256", lambda path: hashed.append(path) or "")
    assert runs.newest_checkpoint(tmp_path).name == "step-000002" and not hashed
    (tmp_path / "step-000002" / "weights").write_text("v")
    monkeypatch.undo()
    assert runs.newest_checkpoint(tmp_path).name == "step-000001"


@pytest.mark.parametrize("resume", [False, True])
def test_the_command_line_says_every_setting(config, tmp_path, resume):
    changes = dict(
        name="-a run",
        data=["a b.txt", "c/d"],
        mixture_weights=[1.0, 2.5],
        lr=3e-4,
        init_from="-x",
        probe="'; \n",
        seed=7,
    )
    config = config(**changes)
    config.run.mkdir()
    (config.run / "config.json").write_text(json.dumps(vars(config)))
    assert parse(runs.command(config, resume)[3:]) == (config, resume)


# Small versions of the campaigns


@pytest.mark.parametrize(
    "script, zero",
    [
        ("campaigns/kills.py --kills 20", ["lost_commits", "wrong_states", "unlike"]),
        ("campaigns/crashpoints.py --every 3", ["bad"]),
        ("campaigns/bitflips.py --count 100", ["not_found", "before_not_used"]),
        ("campaigns/starts.py --starts 20", ["other"]),
    ],
)
def test_campaign(script, zero):
    if "crashpoints" in script and not (sys.platform == "linux" and os.uname().machine == "x86_64"):
        pytest.skip("system calls are traced on Linux x86-64 only")
    file, *options = script.split()
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / file, *options], capture_output=True, text=True, timeout=300
    )
    figures = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else pytest.fail(done.stderr)
    assert not any(figures[name] for name in zero), figures
    if "started" in figures:
        assert (figures["started"], figures["refused"], figures["processes_after_the_app"]) == (1, 19, 1), figures
        assert figures["goes_on"] and figures["stopped"] and figures["no_orphan"] and figures["folders"] == 1
    if "kills" in figures and "runs" in figures:
        assert figures["kills"] == 20 and figures["inside_a_commit"] >= 4, figures
