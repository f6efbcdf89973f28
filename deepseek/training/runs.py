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
from deepseek.settings.schema import flag
from deepseek.training import job_process
from deepseek.training.config import TrainConfig, TrainingError, read_config, resumed
from deepseek.training.metrics import MAX_LINE_BYTES, History, last_step, read_line
from deepseek.training.resource_check import check_resources, resume_point

ROOT = "deepseek_checkpoints"


class RunError(ValueError):
    """An operation on a run is not possible; the message is one sentence that says why."""


@dataclass
class Run:
    """A run as the disk and the process table show it at one moment."""

    name: str
    folder: Path
    config: dict  # the fields of TrainConfig; {} where config.json is damaged
    state: str  # running, paused, stopped, finished, failed, killed or damaged
    reason: str  # why it failed or was killed, or what is damaged, else ""
    step: int  # the last in its metrics
    steps: int  # in all
    checkpoint: Path | None  # the newest complete one
    best: Path | None  # the complete one of the lowest validation loss
    started_at: float  # when its settings were last set, seconds since 1970

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
    config, damage = {}, ""
    try:
        started_at = (folder / "config.json").stat().st_mtime
        config = asdict(read_config(folder))
    except OSError:  # deleted just now
        return None
    except ValueError as error:
        if not any((folder / name).exists() for name in ("metrics.jsonl", job_process.PROCESS_FILE)):
            return None  # not the folder of a run
        damage = str(error)
    step, metrics_are_whole = last_step(_tail(folder / "metrics.jsonl", MAX_LINE_BYTES))
    if not metrics_are_whole:
        damage = damage or "its metrics.jsonl has lines that no run writes; they are left out"
    state, reason = job_process.outcome(folder)
    if damage and state not in ("running", "paused"):
        state, reason = "damaged", damage
    checkpoints = dict(checkpoint=newest_checkpoint(folder), best=best_checkpoint(folder))
    details = dict(**checkpoints, started_at=started_at)
    return Run(folder.name, folder, config, state, reason, step, config.get("max_steps", max(step, 1)), **details)


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
    return next(filter(_is_complete, reversed(saving.list_checkpoints(folder))), None)


def best_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint of a run with the lowest validation loss; None if none was validated."""
    checkpoints = saving.list_checkpoints(folder)
    while (best := saving.best_of(checkpoints)) and not _is_complete(best):
        checkpoints.remove(best)
    return best


def _is_complete(checkpoint: Path) -> bool:
    with suppress(OSError):  # pruned just now
        stats = [file.stat() for file in (checkpoint / saving.MANIFEST, *saving.listed_files(checkpoint))]
        return _hashes_match(checkpoint, tuple((stat.st_size, stat.st_mtime_ns) for stat in stats))
    return False


@lru_cache(maxsize=256)
def _hashes_match(checkpoint: Path, stamp: tuple) -> bool:
    return saving.is_complete(checkpoint)


def start(config: TrainConfig, resume: bool = False) -> Run:
    """Starts or resumes a run in a process of its own session, which outlives this one.

    Raises RunError at once where another run is in progress, or where this one cannot start for want of a checkpoint,
    a free name, memory or disk.
    """
    folder = config.run
    try:
        with os.fdopen(job_process.lock(config.root, config.name)) as lock:  # once closed, the child alone holds it
            checkpoint = resume_point(config, resume)
            check_resources(config, checkpoint)
            folder.mkdir(exist_ok=True)
            if not resume:
                job_process.write_json(folder / "config.json", json.dumps(asdict(config), indent=1))
            if checkpoint is None:  # of an earlier try under this name
                (folder / "metrics.jsonl").unlink(missing_ok=True)
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
    return _signal(root, name, signal.SIGTERM, signal.SIGCONT)


def kill(root, name: str) -> Run:
    """Ends a run at once, without a checkpoint: for one that does not respond to `stop`. Raises RunError."""
    return _signal(root, name, signal.SIGKILL)


def _signal(root, name: str, *signal_numbers: int) -> Run:
    run = find(root, name)
    if not run.alive:
        raise RunError(f"run {name!r} is {run.state}; only one in progress can be paused or stopped.")
    pid = job_process.read_json(run.folder / job_process.PROCESS_FILE)["pid"]
    with suppress(ProcessLookupError):  # ended just now
        for number in signal_numbers:
            os.kill(pid, number)
    return find(root, name)


def resume(root, name: str, max_steps: int | None = None) -> Run:
    """Continues a paused run, or starts a process from the newest complete checkpoint, to train until step `max_steps`.

    A run without a checkpoint begins anew. A finished one needs more steps than it has taken. Raises RunError.
    """
    run = find(root, name)
    if run.state == "paused" and max_steps in (None, run.steps):
        return _signal(root, name, signal.SIGCONT)
    if run.alive:
        raise RunError(f"run {name!r} is {run.state}; only one that has ended can be resumed with other settings.")
    try:
        config = resumed(str(root), name, **({"max_steps": max_steps} if max_steps else {}))
    except ValueError as error:
        raise RunError(f"run {name!r} cannot be resumed: {error}") from error
    if run.state == "finished" and config.max_steps <= run.step:
        allowed = f"it must be above {run.step} to extend the run"
        raise RunError(f"run {name!r} is finished; max_steps is {config.max_steps}, {allowed}.")
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

    An incomplete last line is left for the next call, and lines that no run writes are left out. A resumed run truncates the
    file to its last checkpoint: then all lines are returned again, from the first.
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
    return list(filter(None, map(read_line, complete.split(b"\n")))), offset + len(complete)


def history(folder) -> History:
    """The metrics of a run as columns, with the routing of its checkpoints; empty before its first step."""
    columns = History()
    columns.add(metrics(folder)[0])
    return columns


def log(folder, max_bytes: int = 8000) -> str:
    """The last `max_bytes` bytes of what a run printed."""
    return _tail(Path(folder) / "log.txt", max_bytes).decode("utf-8", "replace")


def archive(checkpoint: Path) -> Path:
    """A .zip of a checkpoint for download, without its training state; replaces the run's earlier .zip."""
    run, name = checkpoint.parent, f"{checkpoint.parent.name}-{checkpoint.name}"
    temporary = run / ".download"
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as target:
        for file in saving.listed_files(checkpoint):
            if file.name not in ("training.json", "training_state.bin"):
                target.write(file, f"{name}/{file.name}")
    for old in run.glob(f"{run.name}-step-*.zip"):
        old.unlink()
    return temporary.rename(run / f"{name}.zip")
