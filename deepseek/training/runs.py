"""Background runs: start, pause, stop, resume, list, read and delete them. All state of a run is on disk.

A run is a folder `<root>/<name>/`: config.json, process.json (its process and how it ended), metrics.jsonl, log.txt and
checkpoints. Its process outlives the page or terminal that started it, and any other process can find and control it.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import zipfile
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path

from deepseek.checkpoints import saving
from deepseek.settings.aliases import rename
from deepseek.settings.schema import flag
from deepseek.training import job_process, resource_check
from deepseek.training.config import TrainConfig, TrainingError
from deepseek.training.trainer import resume_point

ROOT = "deepseek_checkpoints"


class RunError(ValueError):
    """An operation on a run is not possible; the message is one sentence that says why."""


@dataclass
class Run:
    """A run as the disk and the process table show it at one moment."""

    name: str
    folder: Path
    config: dict  # the fields of TrainConfig
    state: str  # running, paused, stopped, finished, failed or killed
    reason: str  # why it failed or was killed, else ""
    step: int  # the last in its metrics
    steps: int  # in all
    checkpoint: Path | None  # the newest complete one
    started_at: float  # when it was first started, seconds since 1970

    @property
    def alive(self) -> bool:
        return self.state in ("running", "paused")


def list_runs(root=ROOT) -> list[Run]:
    """The runs under `root`, newest first."""
    folders = [file.parent for file in Path(root).glob("*/config.json") if not file.parent.name.startswith(".")]
    return sorted(filter(None, map(_inspect, folders)), key=lambda run: -run.started_at)


def find(root, name: str) -> Run:
    """The run called `name` in its current state. Raises RunError where there is none."""
    names = [file.parent.name for file in Path(root).glob("*/config.json")]
    run = _inspect(Path(root) / name) if name in names else None
    if run is None:
        allowed = ", ".join(sorted(names)) or "the runs that you start"
        raise RunError(f"run is {name!r:.80}; it must be one of {allowed}.")
    return run


def _inspect(folder: Path) -> Run | None:
    config = rename(job_process.read_json(folder / "config.json"))
    try:
        started_at = (folder / "config.json").stat().st_mtime
        steps = int(config["max_steps"])
    except (OSError, KeyError, TypeError, ValueError):  # deleted just now, or not the folder of a run
        return None
    state, reason = job_process.outcome(job_process.read_json(folder / job_process.PROCESS_FILE))
    lines = _tail(folder / "metrics.jsonl", 2**18).split(b"\n")[:-1]  # the complete ones
    step = json.loads(lines[-1])["step"] if lines else 0
    return Run(folder.name, folder, config, state, reason, step, steps, newest_checkpoint(folder), started_at)


def _tail(file: Path, max_bytes: int) -> bytes:
    """The last bytes of a file, b"" where it cannot be read."""
    try:
        with file.open("rb") as content:
            content.seek(max(0, content.seek(0, os.SEEK_END) - max_bytes))
            return content.read()
    except OSError:
        return b""


def newest_checkpoint(folder: Path) -> Path | None:
    """As `saving.latest_checkpoint`, but hashes a checkpoint again only when one of its files has changed."""
    for checkpoint in reversed(saving.list_checkpoints(folder)):
        with suppress(OSError):  # pruned just now
            stats = [file.stat() for file in sorted(checkpoint.iterdir())]
            if _is_complete(checkpoint, tuple((stat.st_size, stat.st_mtime_ns) for stat in stats)):
                return checkpoint
    return None


@lru_cache(maxsize=256)
def _is_complete(checkpoint: Path, stamp: tuple) -> bool:
    return saving.is_complete(checkpoint)


def start(config: TrainConfig, resume: bool = False) -> Run:
    """Starts or resumes a run in a process of its own session, which outlives this one.

    Raises RunError at once where another run is in progress, or where this one cannot start for want of a checkpoint,
    a free name, memory or disk.
    """
    folder = config.run
    try:
        with os.fdopen(job_process.lock(config.root, config.name)) as lock:  # once closed, the child alone holds it
            resource_check.check_resources(config, resume_point(config, resume))
            folder.mkdir(exist_ok=True)
            if not resume:
                job_process.write_json(folder / "config.json", json.dumps(asdict(config), indent=1))
            child = _spawn(command(config, resume), folder / "log.txt", lock.fileno())
            job_process.record_start(folder, child.pid)
    except (TrainingError, OSError) as error:
        raise RunError(job_process.explain_error(error)) from error
    threading.Thread(target=child.wait, daemon=True).start()  # reaps it when it ends
    return find(config.root, config.name)


def command(config: TrainConfig, resume: bool) -> list[str]:
    """The command line that trains with these settings."""
    arguments = ["--resume"] if resume else []
    for f in fields(config):
        value = getattr(config, f.name)
        if resume and f.name not in ("root", "name"):
            continue
        if isinstance(value, list):
            arguments += [flag(f), *map(str, value)] if value else []
        elif isinstance(value, bool):
            arguments += [flag(f)] if value else []
        else:
            arguments.append(f"{flag(f)}={value}")
    return [sys.executable, "-m", "deepseek.train", *arguments]


def _spawn(command: list[str], log: Path, descriptor: int) -> subprocess.Popen:
    """Runs a command in a session of its own, at low priority, with the lock's descriptor."""
    path = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, path)), job_process.LOCK_VARIABLE: str(descriptor)}
    # The child inherits the mask: a stop that arrives during its imports stays pending until it has a handler.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        with log.open("ab") as output:
            streams = dict(stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
            options = dict(env={**os.environ, **environment}, pass_fds=[descriptor], start_new_session=True)
            child = subprocess.Popen(command, **streams, **options)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    os.setpriority(os.PRIO_PROCESS, child.pid, 10)
    return child


def pause(root, name: str) -> Run:
    """Suspends a run; its process keeps its memory, and `resume` continues it at once. Raises RunError."""
    return _signal(root, name, signal.SIGSTOP)


def stop(root, name: str) -> Run:
    """Asks a run to save a checkpoint after its current step and end; before its first step it only ends. Raises RunError."""
    _signal(root, name, signal.SIGTERM)
    return _signal(root, name, signal.SIGCONT)


def kill(root, name: str) -> Run:
    """Ends a run at once, without a checkpoint: for one that does not respond to `stop`. Raises RunError."""
    return _signal(root, name, signal.SIGKILL)


def _signal(root, name: str, signal_number: int) -> Run:
    run = find(root, name)
    if not run.alive:
        raise RunError(f"run {name!r} is {run.state}; only one in progress can be paused or stopped.")
    with suppress(ProcessLookupError):  # ended just now
        os.kill(job_process.read_json(run.folder / job_process.PROCESS_FILE)["pid"], signal_number)
    return find(root, name)


def resume(root, name: str) -> Run:
    """Continues a paused run, or starts a process from the newest complete checkpoint. Raises RunError."""
    run = find(root, name)
    if run.state == "paused":
        return _signal(root, name, signal.SIGCONT)
    if run.state in ("running", "finished"):
        raise RunError(f"run {name!r} is {run.state}; only a paused, stopped, failed or killed run can be resumed.")
    try:
        config = TrainConfig(**{**run.config, "root": str(root), "name": name})
    except (TypeError, ValueError) as error:
        raise RunError(f"run {name!r} cannot be resumed with its config.json: {error}") from error
    return start(config, resume=True)


def delete(root, name: str) -> None:
    """Deletes a run with its checkpoints. Raises RunError while it is in progress."""
    run = find(root, name)
    if run.alive:
        raise RunError(f"run {name!r} is {run.state}; stop it before it is deleted.")
    hidden = run.folder.with_name(f".deleted-{name}")  # an interrupted deletion leaves no half run
    shutil.rmtree(hidden, ignore_errors=True)
    run.folder.rename(hidden)
    shutil.rmtree(hidden)


def metrics(folder, offset: int = 0) -> tuple[list[dict], int]:
    """(the complete lines of metrics.jsonl after byte `offset`, the offset for the next call).

    An incomplete last line is left for the next call. A resumed run truncates the file to its last checkpoint: then all
    lines are returned again, from step 1.
    """
    try:
        with (Path(folder) / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, offset - 1))
            if offset and file.read(1) != b"\n":
                file.seek(offset := 0)
            data = file.read()
    except FileNotFoundError:
        return [], 0
    complete = data[: data.rfind(b"\n") + 1]
    return [json.loads(line) for line in complete.splitlines()], offset + len(complete)


def log(folder, max_bytes: int = 8000) -> str:
    """The last `max_bytes` bytes of what a run printed."""
    return _tail(Path(folder) / "log.txt", max_bytes).decode("utf-8", "replace")


def archive(checkpoint: Path) -> Path:
    """A .zip of a checkpoint for download, without its training state; replaces the run's earlier .zip."""
    run, name = checkpoint.parent, f"{checkpoint.parent.name}-{checkpoint.name}"
    temporary = run / ".download"
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as target:
        for file in sorted(checkpoint.iterdir()):
            if file.name not in ("training.json", "training_state.bin", saving.MANIFEST):
                target.write(file, f"{name}/{file.name}")
    for old in run.glob("*.zip"):
        old.unlink()
    return temporary.rename(run / f"{name}.zip")
