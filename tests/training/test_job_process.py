"""The process of a run: its lock, its identity, its end."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deepseek.training import job_process
from deepseek.training.config import TrainingError

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.fixture
def child():
    with subprocess.Popen(SLEEP) as running:
        yield running
        running.kill()


def test_the_lock_is_exclusive_until_it_is_closed(tmp_path):
    descriptor = job_process.lock(tmp_path, "first")
    message = "^run 'first' is in progress; one run trains at a time, stop it first.$"
    with pytest.raises(TrainingError, match=message):
        job_process.lock(tmp_path, "second")
    os.close(descriptor)
    os.close(job_process.lock(tmp_path, "second"))


def test_a_process_is_running_paused_or_gone(child):
    process = job_process.identity(child.pid)
    assert job_process.process_status(process) == "running"
    child.send_signal(signal.SIGSTOP)
    os.waitpid(child.pid, os.WUNTRACED)
    assert job_process.process_status(process) == "paused"
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert job_process.process_status(process) is None, "a zombie trains nothing"


def test_a_later_process_with_the_same_number_is_not_mistaken_for_it(child):
    process = job_process.identity(child.pid)
    assert job_process.process_status({**process, "started": "1"}) is None
    assert job_process.process_status({**process, "boot": "before"}) is None


def test_ps_gives_the_same_where_there_is_no_proc(child, monkeypatch):
    monkeypatch.setattr(Path, "exists", lambda self: False)
    process = job_process.identity(child.pid)
    assert job_process.process_state(child.pid)[0] in "RS" and len(process["started"].split()) == 5, "a date"
    assert job_process.process_status(process) == "running"
    assert job_process.process_status({**process, "started": "Thu Jan 1 00:00:00 1970"}) is None
    assert job_process.process_state(2**22 + 1) is None


@pytest.mark.parametrize(
    "change, kills, reason",
    [
        ({}, 3, "its process was killed or crashed"),
        ({}, 4, "it was out of memory; a smaller batch, context or preset needs less"),
        ({"boot": "before"}, 3, "the machine was restarted"),
    ],
)
def test_why_a_process_is_gone(tmp_path, monkeypatch, child, change, kills, reason):
    counter = tmp_path / "memory.events"
    counter.write_text("oom 7\noom_kill 3\n")
    monkeypatch.setattr(job_process, "oom_counter", lambda: counter)
    job_process.record_start(tmp_path, child.pid)
    process = job_process.read_json(tmp_path / job_process.PROCESS_FILE)
    assert job_process.outcome(tmp_path) == ("running", "")
    child.kill()
    child.wait()
    counter.write_text(f"oom 7\noom_kill {kills}\n")
    job_process.write_json(tmp_path / job_process.PROCESS_FILE, json.dumps({**process, **change}))
    assert job_process.outcome(tmp_path) == ("killed", reason)


@pytest.mark.parametrize("content", ["", "[]", "{", "{}", '{"state": 5, "reason": 1}', '{"pid": 1}', "\0" * 9])
def test_an_odd_process_file_is_damage(tmp_path, content):
    assert job_process.outcome(tmp_path) == ("stopped", ""), "trained from Python"
    (tmp_path / job_process.PROCESS_FILE).write_text(content)
    assert job_process.outcome(tmp_path) == ("damaged", "its process.json is not as a run writes it")


def test_the_counter_is_a_file_of_the_kernel():
    assert any(line.startswith("oom_kill ") for line in job_process.oom_counter().read_text().splitlines())


def test_the_end_is_recorded_in_the_bytes_allocated_at_the_start(tmp_path):
    job_process.record_start(tmp_path)
    file = tmp_path / job_process.PROCESS_FILE
    before = file.stat()
    job_process.record_end(tmp_path, "failed", "x" * 10_000)
    assert (file.stat().st_size, file.stat().st_ino) == (before.st_size, before.st_ino)
    state, reason = job_process.outcome(tmp_path)
    assert state == "failed" and set(reason) == {"x"}


@pytest.mark.parametrize(
    "error, start",
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "the disk is full"),
        (MemoryError(), "it was out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"), "it was out of"),
        (ValueError("step is 3;\n it must be 4."), "step is 3; it must be 4."),
        (KeyError(), "KeyError"),
    ],
)
def test_an_error_is_explained_in_one_sentence(error, start):
    assert job_process.explain_error(error).startswith(start)
