"""Training from the command line: what it prints, and that a signal ends it with a checkpoint."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from running import ROOT
from safetensors import SafetensorError

from deepseek.checkpoints.saving import latest_checkpoint
from deepseek.train import report
from deepseek.training import job_process
from deepseek.training.config import TrainConfig
from deepseek.training.metrics import TrainStep


def test_a_step_is_printed_with_its_validation_samples_and_checkpoint(capsys):
    metrics = dict(loss=5.0, load_balancing_loss=0.25, lr=5e-3, grad_norm=1.0, tokens_per_second=50.0)
    step = TrainStep(step=2, tokens=256, load=[], max_violation=[], **metrics)
    report(TrainConfig(max_steps=3), step, [50.0, 50.0])  # one step of 128 tokens is left
    line = "Step 2 - Loss: 5.0000, Load Balancing Loss: 0.250000 | lr 5.00e-03, 50 tokens/s, 3 s left"
    assert capsys.readouterr().out.splitlines() == [line]
    step.validation = {"val_loss": 4.0, "val_bits_per_byte": 5.75}
    step.samples, step.checkpoint = [{"prompt": "Once", "text": "Once\nmore"}], "runs/a/step-000002"
    report(TrainConfig(max_steps=3), step, [50.0, 50.0])
    held_out = "  held out: 4.0000 nats per token, 5.7500 bits per byte"
    expected = [line, held_out, "  Sample 1: 'Once\\nmore'", "  saved runs/a/step-000002"]
    assert capsys.readouterr().out.splitlines() == expected
    report(TrainConfig(max_steps=3), step, [50.0, 50.0], ["Dead expert"], Path("runs/a/step-000001"))
    expected = [*expected[:3], "  Alarm: Dead expert", expected[3], "  best by validation loss: step-000001"]
    assert capsys.readouterr().out.splitlines() == expected


def test_the_command_prints_its_steps_and_a_closed_terminal_makes_it_save(stories, tmp_path):
    """On a terminal that cannot print what a model of bytes samples."""
    settings = "--preset tiny --max-seq-len 32 --batch-size 4 --max-steps 100000 --eval-every 0 --sample-every 4"
    command = [sys.executable, "-m", "deepseek.train", "--root", str(tmp_path), "--data", stories, *settings.split()]
    options = dict(cwd=ROOT, env={**os.environ, "PYTHONIOENCODING": "cp1252"}, text=True)
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
    try:
        note, *first, sample = (running.stdout.readline() for _ in range(6))
        running.send_signal(signal.SIGHUP)
        rest, errors = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 0, errors
    assert note == "Note: max_seq_len is 32; samples end there, and begin with half of it at most.\n"
    assert sample.startswith("  Sample 1: 'Once upon a tim") and "\\ufffd" in sample + rest
    for number, line in enumerate(first, 1):
        losses = rf"Step {number} - Loss: \d+\.\d+, Load Balancing Loss: \d+\.\d+"
        assert re.match(rf"{losses} \| lr .*, \d+ tokens/s, \d+ .* left$", line)
    steps = re.findall(r"^Step (\d+) ", rest, re.M)
    last = int(steps[-1]) if steps else 4
    assert latest_checkpoint(tmp_path / "run").name == f"step-{last:06d}" and f"step-{last:06d}" in rest


PREPARE = """
import hashlib, sys
from pathlib import Path
from deepseek.train import stop_signals
from deepseek.training import job_process
run = Path(sys.argv[1])
job_process.record_start(run)
with stop_signals(run, True) as (signals, has_steps):
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # minutes during which Python hears no signal
"""


@pytest.mark.parametrize("ignored", [False, True], ids=["", "nohup"])
def test_a_stop_is_answered_at_once_while_data_is_prepared(tmp_path, ignored):
    ignore = (lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) if ignored else None
    command = [sys.executable, "-c", PREPARE, str(tmp_path)]
    preparing = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, preexec_fn=ignore)
    try:
        assert preparing.stdout.readline() == "ready\n"
        if ignored:
            preparing.send_signal(signal.SIGHUP)
        sent = time.monotonic()
        preparing.send_signal(signal.SIGTERM if ignored else signal.SIGHUP)
        assert preparing.wait(10) == 0 and time.monotonic() - sent < 2
    finally:
        preparing.kill()
    assert job_process.outcome(tmp_path) == ("stopped", "")


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--root file", "error: root is 'file'; it must be a folder in which files can be written (File exists)."),
        ("--root /proc/runs", "error: root is '/proc/runs'; it must be a folder in which files can be written ("),
        ("--root . --name file", "error: name is 'file', but 'file' is a file; choose another name."),
        ("--root . --data none.txt --preset tiny", "error: data 'none.txt' is not there;"),
        ("--root . --data file --preset tiny --tokenizer .", "error: tokenizer '.' cannot be opened: "),
    ],
)
def test_what_a_user_can_mend_is_one_sentence(monkeypatch, tmp_path, train_main, flags, message):
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        train_main(*flags.split())
    assert exit_.value.code.startswith(message)


@pytest.mark.parametrize(
    "error, message",
    [
        (SafetensorError("I/O error: No space left on device (os error 28)"), "error: the disk is full"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "error: it was out of memory"),
    ],
)
def test_a_full_disk_or_memory_is_one_sentence_whichever_library_meets_it(
    monkeypatch, tmp_path, train_main, error, message
):
    def train(*_, **__):
        raise error
        yield

    monkeypatch.setattr("deepseek.training.trainer.train", train)
    with pytest.raises(SystemExit) as exit_:
        train_main("--root", str(tmp_path), "--preset", "tiny")
    assert exit_.value.code.startswith(message)
