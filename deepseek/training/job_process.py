"""The process behind a run: one at a time under a lock, found again by anybody, and how it ended.

- `<root>/.lock` is locked by the training process itself, so the kernel frees it however that process dies
- `<run>/process.json` says which process trains, or trained, the run and what it said when it ended by itself; one
  that is gone without a word was killed, and the kernel's counter tells whether for want of memory
"""

import errno
import json
import os
import subprocess
import time
from pathlib import Path

LOCK = ".lock"
LOCK_VARIABLE = (
    "DEEPSEEK_LOCK"  # environment variable: descriptor of the lock that a starting process hands to its child
)
PROCESS_FILE = "process.json"
PROCESS_FILE_BYTES = 4096  # bytes of process.json: taken at the start, so that the end can be written on a full disk


class RunInProgress(ValueError):
    """Another run holds the lock; the message is one sentence that names it."""


def lock(root, name: str) -> int:
    """Locks `root` for the run `name`; returns the descriptor that holds the lock until it is closed everywhere.

    A lock handed over by the parent process is taken on. Raises Busy at once where another run has it.
    """
    import fcntl  # not on Windows, where the rest of the package still imports

    handed = os.environ.pop(LOCK_VARIABLE, None)
    Path(root).mkdir(parents=True, exist_ok=True)
    descriptor = int(handed) if handed else os.open(Path(root) / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise RunInProgress(
            f"run {lock_holder(root)!r} is in progress; one run trains at a time, stop it first."
        ) from None
    os.set_inheritable(descriptor, False)
    os.pwrite(descriptor, json.dumps({"name": name, **identity(os.getpid())}).encode().ljust(PROCESS_FILE_BYTES), 0)
    return descriptor


def lock_holder(root) -> str:
    """The name of the run that has the lock. It is written a moment after the lock is taken: that moment is waited."""
    for _ in range(100):
        known = read_json(Path(root) / LOCK)
        if known.get("name") and activity(known):
            break
        time.sleep(0.01)
    return known.get("name", "")


def identity(pid: int) -> dict:
    """What tells the process `pid` from a later one of the same number."""
    return {"pid": pid, "started": (process_state(pid) or ("", ""))[1], "boot": boot_id()}


def process_state(pid: int) -> tuple[str, str] | None:
    """(state letter, time of start) of a process as the system writes them, or None where there is none."""
    if Path("/proc/self/stat").exists():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return fields[0], fields[19]
    found = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True).stdout.split()
    return (found[0][0], " ".join(found[1:])) if found else None


def boot_id() -> str:
    """The id of the machine's current boot, "" where the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def activity(known: dict) -> str | None:
    """ "running" or "paused" for the process with this `identity`, None if it is gone."""
    found = process_state(known["pid"]) if known.get("pid") and known.get("boot") == boot_id() else None
    if found is None or found[1] != known["started"] or found[0] in "ZX":
        return None
    return "paused" if found[0] in "Tt" else "running"


def record_start(run: Path, pid: int | None = None) -> None:
    """Writes process.json for the process `pid` (default: this one), which has just begun to train `run`."""
    counter = oom_counter()
    known = {**identity(pid or os.getpid()), "oom_counter": str(counter), "oom_kills": oom_kills(counter)}
    write_json(run / PROCESS_FILE, json.dumps(known).ljust(PROCESS_FILE_BYTES))


def write_json(file: Path, text: str) -> None:
    """Replaces a small file as a whole: a process killed in here leaves the file that was there, or none."""
    temporary = file.with_name(f".{file.name}")
    temporary.write_text(text, "utf-8")
    temporary.replace(file)


def record_end(run: Path, state: str, reason: str = "") -> None:
    """Adds to process.json how its process ended: "finished", "stopped" or "failed", and why, in one sentence."""
    known = {**read_json(run / PROCESS_FILE), "state": state, "reason": reason[: PROCESS_FILE_BYTES // 8]}
    with (run / PROCESS_FILE).open("r+b") as file:
        file.write(json.dumps(known).encode().ljust(PROCESS_FILE_BYTES))
        file.flush()
        os.fsync(file.fileno())


def outcome(known: dict) -> tuple[str, str]:
    """(state, reason) of a run by its process.json: running, paused, stopped, finished, failed or killed."""
    if "state" in known:
        return known["state"], known["reason"]
    if not known:  # trained from Python, where nobody writes it
        return "stopped", ""
    if now := activity(known):
        return now, ""
    if known.get("boot") != boot_id():
        return "killed", "the machine was restarted"
    counter = known.get("oom_counter", "")
    if oom_kills(Path(counter)) > known.get("oom_kills", 0):
        return "killed", "it was out of memory; a smaller batch, context or preset needs less"
    return "killed", "its process was killed or crashed"


def read_json(file: Path) -> dict:
    """A JSON object from a file, {} where there is none or it is not whole."""
    try:
        known = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def oom_counter() -> Path:
    """The file that counts processes killed for want of memory: of this process's control group, or of the machine."""
    try:
        groups = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError:
        groups = []
    for _, controllers, path in groups:
        for base in (path, "/"):  # inside a container the own group is mounted as the root
            if controllers == "":  # version 2
                file = Path(f"/sys/fs/cgroup{base}/memory.events")
            elif controllers == "memory":
                file = Path(f"/sys/fs/cgroup/memory{base}/memory.oom_control")
            else:
                continue
            if file.exists():
                return file
    return Path("/proc/vmstat")


def oom_kills(counter: Path) -> int:
    """How many processes a counter file says were killed for want of memory, 0 where it does not tell."""
    try:
        return next(int(line.split()[1]) for line in counter.read_text().splitlines() if line.startswith("oom_kill "))
    except (OSError, StopIteration, ValueError):
        return 0


def explain_error(error: BaseException) -> str:
    """Why a run failed, in one sentence for its reader."""
    text = " ".join(str(error).split())
    if getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in text:  # safetensors has no errno
        return "the disk is full; the last good commit is kept, free some space and resume"
    if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
        return "it was out of memory; a smaller batch, context or preset needs less"
    return text[:400] or type(error).__name__
