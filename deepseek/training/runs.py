"""Background runs: start, pause, stop, resume, list, read and delete them. All that is known of a run is on the disk.

A run is `<root>/<name>/`: config.json, process.json (who trains it, how it ended), metrics.jsonl, log.txt and its commits.
The process that trains it belongs to nobody's page or terminal: whoever asks finds it again.
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
NOT_SHARED = {"training.json", "training_state.bin", saving.MANIFEST}


class RunError(ValueError):
    """What was asked of a run cannot be done; the message is one sentence that says why."""


@dataclass
class Run:
    """What the disk and the process table say of a run at one moment."""

    name: str
    folder: Path
    config: dict  # the fields of TrainConfig
    state: str  # running, paused, stopped, finished, failed or killed
    reason: str  # where it failed or was killed, why
    step: int  # the last one in its metrics
    steps: int
    checkpoint: Path | None  # the newest whole commit
    begun: float  # when it was first started, in seconds since 1970

    @property
    def alive(self) -> bool:
        return self.state in ("running", "paused")


def list_runs(root=ROOT) -> list[Run]:
    """The runs under `root`, the newest first."""
    folders = [file.parent for file in Path(root).glob("*/config.json") if not file.parent.name.startswith(".")]
    return sorted(filter(None, map(_read, folders)), key=lambda run: -run.begun)


def find(root, name: str) -> Run:
    """The run called `name`, its state read anew. Raises RunError where there is none."""
    names = [file.parent.name for file in Path(root).glob("*/config.json")]
    run = _read(Path(root) / name) if name in names else None
    if run is None:
        raise RunError(f"run is {name!r:.80}; it must be one of {', '.join(sorted(names)) or 'those that you start'}.")
    return run


def _read(folder: Path) -> Run | None:
    config = rename(job_process.read_json(folder / "config.json"))
    try:
        begun = (folder / "config.json").stat().st_mtime
        steps = int(config["max_steps"])
    except (OSError, KeyError, TypeError, ValueError):  # deleted just now, or not the folder of a run
        return None
    state, reason = job_process.outcome(job_process.read_json(folder / job_process.PROCESS_FILE))
    return Run(folder.name, folder, config, state, reason, _last_step(folder), steps, newest_checkpoint(folder), begun)


def _last_step(folder: Path) -> int:
    """The step of the last whole line of metrics.jsonl, 0 where there is none."""
    try:
        with (folder / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 2**18))
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return 0
    return json.loads(lines[-1])["step"] if lines else 0


def newest_checkpoint(folder: Path) -> Path | None:
    """As `checkpoint.latest`, but a commit is hashed once and not again until one of its files changes."""
    for commit in reversed(saving.list_checkpoints(folder)):
        try:
            stats = [file.stat() for file in sorted(commit.iterdir())]
        except OSError:  # pruned just now
            continue
        if _is_complete(commit, tuple((stat.st_size, stat.st_mtime_ns) for stat in stats)):
            return commit
    return None


@lru_cache(maxsize=256)
def _is_complete(commit: Path, stamp: tuple) -> bool:
    return saving.is_complete(commit)


# Starting


def start(config: TrainConfig, resume: bool = False) -> Run:
    """Starts a run, or goes on with one, in a process of its own session that outlives this one.

    Raises RunError at once where another run is in progress, where this one cannot begin, or where there is no room.
    """
    folder = config.run
    try:
        with os.fdopen(job_process.lock(config.root, config.name)) as lock:  # after this the child alone holds it
            resource_check.check_resources(config, resume_point(config, resume))
            folder.mkdir(exist_ok=True)
            if not resume:
                job_process.write_json(folder / "config.json", json.dumps(asdict(config), indent=1))
            child = _spawn(command(config, resume), folder / "log.txt", lock.fileno())
            job_process.record_start(folder, child.pid)
    except (job_process.RunInProgress, TrainingError, OSError) as error:
        raise RunError(job_process.explain_error(error)) from error
    threading.Thread(target=child.wait, daemon=True).start()  # so that no zombie is left when it ends
    return find(config.root, config.name)


def command(config: TrainConfig, resume: bool) -> list[str]:
    """The command line that trains with these settings."""
    words = [sys.executable, "-m", "deepseek.train", f"--root={config.root}", f"--name={config.name}"]
    if resume:
        return [*words, "--resume"]
    for f in fields(config):
        value, name = getattr(config, f.name), flag(f)
        if f.name in ("root", "name"):
            continue
        if isinstance(value, list):
            words += [name, *map(str, value)] if value else []
        elif isinstance(value, bool):
            words += [name] if value else []
        else:
            words.append(f"{name}={value}")
    return words


def _spawn(command: list[str], log: Path, descriptor: int) -> subprocess.Popen:
    """Runs a command out of reach of this process's end, with low priority and the lock's descriptor."""
    path = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, path)), job_process.LOCK_VARIABLE: str(descriptor)}
    # The child inherits the mask: a stop that comes while it still imports waits until it can be answered.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        with log.open("ab") as output:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                pass_fds=[descriptor],
                start_new_session=True,
            )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    os.setpriority(os.PRIO_PROCESS, child.pid, 10)
    return child


# Steering


def pause(root, name: str) -> Run:
    """Halts a run where it stands; it keeps its memory and its place, and `resume` lets it go on at once."""
    return _signal(root, name, signal.SIGSTOP)


def stop(root, name: str) -> Run:
    """Asks a run to commit what it has after the step it is in, and to end; before its first step it just ends."""
    _signal(root, name, signal.SIGTERM)
    return _signal(root, name, signal.SIGCONT)


def kill(root, name: str) -> Run:
    """Ends a run at once, without a commit: for one that no longer answers `stop`."""
    return _signal(root, name, signal.SIGKILL)


def _signal(root, name: str, number: int) -> Run:
    run = find(root, name)
    if not run.alive:
        raise RunError(f"run {name!r} is {run.state}; only one in progress can be paused or stopped.")
    with suppress(ProcessLookupError):  # it ended just now
        os.kill(job_process.read_json(run.folder / job_process.PROCESS_FILE)["pid"], number)
    return find(root, name)


def resume(root, name: str) -> Run:
    """Lets a paused run go on, or starts a process that goes on from the newest whole commit. Raises RunError."""
    run = find(root, name)
    if run.state == "paused":
        return _signal(root, name, signal.SIGCONT)
    if run.state in ("running", "finished"):
        raise RunError(f"run {name!r} is {run.state}; only one that was paused, stopped or cut can be resumed.")
    try:
        config = TrainConfig(**{**run.config, "root": str(root), "name": name})
    except (TypeError, ValueError) as error:
        raise RunError(f"run {name!r} cannot be resumed with its config.json: {error}") from error
    return start(config, resume=True)


def delete(root, name: str) -> None:
    """Removes a run with its commits. Raises RunError while it is in progress."""
    run = find(root, name)
    if run.alive:
        raise RunError(f"run {name!r} is {run.state}; stop it before it is deleted.")
    doomed = run.folder.with_name(f".deleted-{name}")  # gone at once for every reader, whenever this is interrupted
    shutil.rmtree(doomed, ignore_errors=True)
    run.folder.rename(doomed)
    shutil.rmtree(doomed)


# Reading


def metrics(folder, offset: int = 0) -> tuple[list[dict], int]:
    """(the whole lines of metrics.jsonl after byte `offset`, the offset to ask for next).

    A half-written last line is left for the next time. A resumed run cuts its file back to its last commit: then all
    lines come again, from step 1.
    """
    try:
        with (Path(folder) / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, offset - 1))
            if offset and file.read(1) != b"\n":
                file.seek(offset := 0)
            data = file.read()
    except FileNotFoundError:
        return [], 0
    whole = data[: data.rfind(b"\n") + 1]
    return [json.loads(line) for line in whole.splitlines()], offset + len(whole)


def log(folder, size: int = 8000) -> str:
    """The last `size` bytes of what a run printed."""
    try:
        with (Path(folder) / "log.txt").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - size))
            return file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""


def archive(commit: Path) -> Path:
    """A .zip of a commit for download, without what only training needs; the run's earlier one is replaced."""
    run = commit.parent
    target = run / f"{run.name}-{commit.name}.zip"
    temporary = run / ".download"
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as file:
        for part in sorted(commit.iterdir()):
            if part.name not in NOT_SHARED:
                file.write(part, f"{run.name}-{commit.name}/{part.name}")
    for old in run.glob("*.zip"):
        old.unlink()
    return temporary.rename(target)
