"""The process of a run: only one at a time, found again from any other process, and how it ended.

- `<root>/.lock` is locked by the training process itself, so the kernel releases it however that process dies
- `<run>/process.json` identifies the process that trains, or trained, the run, and how it ended; a process that is gone
  without having recorded its end was killed, and the kernel's counter tells whether it was out of memory
"""

import errno
import json
import os
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from deepseek.training.config import TrainingError

LOCK = ".lock"
LOCK_VARIABLE = "DEEPSEEK_LOCK"  # environment variable by which a parent passes the descriptor of its lock to its child
PROCESS_FILE = "process.json"
PROCESS_FILE_BYTES = 4096  # size of process.json from the start, so that the end can be recorded on a full disk
OUT_OF_MEMORY = "it was out of memory; a smaller batch, context or preset needs less"


def lock(root, name: str) -> int:
    """Locks `root` for the run `name`; returns the descriptor that holds the lock until it is closed everywhere.

    A lock inherited from the parent process is kept. Raises TrainingError where another run has it, and for a `root` that is no
    folder to write in.
    """
    import fcntl  # not on Windows, where the rest of the package still imports

    inherited = os.environ.pop(LOCK_VARIABLE, None)
    try:
        Path(root).mkdir(parents=True, exist_ok=True)
        descriptor = int(inherited) if inherited else os.open(Path(root) / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        allowed = "a folder in which files can be written"
        raise TrainingError(f"root is {str(root)!r:.200}; it must be {allowed} ({error.strerror}).") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        for _ in range(100):  # the name is written just after the lock is taken
            holder = read_json(Path(root) / LOCK)
            if holder.get("name") and process_status(holder):
                break
            time.sleep(0.01)
        running = holder.get("name", "")
        raise TrainingError(f"run {running!r} is in progress; one run trains at a time, stop it first.") from None
    os.set_inheritable(descriptor, False)
    os.pwrite(descriptor, json.dumps({"name": name, **identity(os.getpid())}).encode().ljust(PROCESS_FILE_BYTES), 0)
    return descriptor


def identity(pid: int) -> dict:
    """What distinguishes the process `pid` from a later one with the same number."""
    return {"pid": pid, "started": (process_state(pid) or ("", ""))[1], "boot": boot_id()}


def process_state(pid: int) -> tuple[str, str] | None:
    """(state letter, start time) of a process in the system's own format, None where there is none."""
    if Path("/proc/self/stat").exists():
        fields = read_text(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
        return (fields[0], fields[19]) if fields else None
    words = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True).stdout.split()
    return (words[0][0], " ".join(words[1:])) if words else None


def boot_id() -> str:
    """The id of the machine's current boot, "" where the system has none."""
    return read_text(Path("/proc/sys/kernel/random/boot_id")).strip()


def process_status(process: dict) -> str | None:
    """ "running" or "paused" for the process with this `identity`, None if it is gone."""
    state = process_state(process["pid"]) if process.get("pid") and process.get("boot") == boot_id() else None
    if state is None or state[1] != process["started"] or state[0] in "ZX":
        return None
    return "paused" if state[0] in "Tt" else "running"


def record_start(run: Path, pid: int | None = None) -> None:
    """Writes process.json for the process `pid` (default: this one), which has just started to train `run`."""
    counter = oom_counter()
    process = {**identity(pid or os.getpid()), "oom_counter": str(counter), "oom_kills": oom_kills(counter)}
    write_json(run / PROCESS_FILE, json.dumps(process).ljust(PROCESS_FILE_BYTES))


def write_json(file: Path, text: str) -> None:
    """Replaces a small file atomically: a process killed in here leaves the old file, or none."""
    temporary = file.with_name(f".{file.name}")
    temporary.write_text(text, "utf-8")
    temporary.replace(file)


def record_end(run: Path, state: str, reason: str = "") -> None:
    """Adds to process.json how the process ended: "finished", "stopped" or "failed", and why, in one sentence."""
    process = {**read_json(run / PROCESS_FILE), "state": state, "reason": reason[: PROCESS_FILE_BYTES // 8]}
    with (run / PROCESS_FILE).open("r+b") as file:
        file.write(json.dumps(process).encode().ljust(PROCESS_FILE_BYTES))
        file.flush()
        os.fsync(file.fileno())


def outcome(run: Path) -> tuple[str, str]:
    """(state, reason) of a run by its process.json: running, paused, stopped, finished, failed, killed or damaged."""
    if not (run / PROCESS_FILE).exists():  # trained from Python, which writes none
        return "stopped", ""
    try:
        return _outcome(read_json(run / PROCESS_FILE))
    except (KeyError, TypeError, ValueError):
        return "damaged", f"its {PROCESS_FILE} is not as a run writes it"


def _outcome(process: dict) -> tuple[str, str]:
    if "state" in process:
        state, reason = process["state"], process["reason"]
        if state not in ("finished", "stopped", "failed") or not isinstance(reason, str):
            raise ValueError
        return state, reason
    if status := process_status(process):
        return status, ""
    if process["boot"] != boot_id():
        return "killed", "the machine was restarted"
    if oom_kills(Path(process["oom_counter"])) > process["oom_kills"]:
        return "killed", OUT_OF_MEMORY
    return "killed", "its process was killed or crashed"


def read_text(file: Path) -> str:
    """The text of a file, "" where it cannot be read."""
    with suppress(OSError):
        return file.read_text("utf-8", "replace")
    return ""


def read_json(file: Path) -> dict:
    """A JSON object from a file, {} where there is none or the file is incomplete."""
    with suppress(ValueError):
        content = json.loads(read_text(file))
        return content if isinstance(content, dict) else {}
    return {}


def oom_counter() -> Path:
    """The file in which the kernel counts out-of-memory kills: of this process's control group, or of the machine."""
    counters = {"": ("", "memory.events"), "memory": ("/memory", "memory.oom_control")}  # cgroup version 2, version 1
    for line in read_text(Path("/proc/self/cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in counters:
            folder, name = counters[controllers]
            for group in (path, "/"):  # in a container its own group is mounted as the root
                file = Path(f"/sys/fs/cgroup{folder}{group}/{name}")
                if file.exists():
                    return file
    return Path("/proc/vmstat")


def oom_kills(counter: Path) -> int:
    """The number of out-of-memory kills in a counter file, 0 where it has none."""
    counts = [line.split()[1] for line in read_text(counter).splitlines() if line.startswith("oom_kill ")]
    return int(counts[0]) if counts else 0


def full_resource(error: BaseException) -> str:
    """The sentence for a full disk or full memory, whatever the library that ran into it raises; empty for other errors."""
    text = str(error)
    if getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in text:  # safetensors has no errno
        return "the disk is full; the last good checkpoint is kept, free some space and resume"
    if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
        return OUT_OF_MEMORY
    return ""


def explain_error(error: BaseException) -> str:
    """Why a run failed, in one sentence for the user."""
    return full_resource(error) or " ".join(str(error).split())[:400] or type(error).__name__
