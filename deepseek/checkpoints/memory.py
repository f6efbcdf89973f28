"""How much memory is free on this machine or in this container, and how much of it is promised to models being opened."""

import ctypes
import re
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

from deepseek.checkpoints.validation import FolderError

CGROUP_MEMORY_FILES = [  # (limit, usage) of a container's memory, in versions 2 and 1 of control groups
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
]
LOADING_FACTOR = 1.25  # of a model's size: with the transient copies of its largest tensors
_reserved_bytes, _lock = 0, threading.Lock()


def free_memory() -> int | None:
    """Bytes that a new process can allocate on this machine or in this container; None if the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None
    for limit, usage in CGROUP_MEMORY_FILES:
        with suppress(OSError, ValueError):  # no such file, or no limit
            stat = dict(line.split() for line in (limit.parent / "memory.stat").read_text().splitlines())
            file_cache = int(stat["inactive_file"]) + int(stat["active_file"])  # freed on demand
            free = min(free, int(limit.read_text()) - int(usage.read_text()) + file_cache)
    return free


def parse_bytes(size: str | int) -> int:
    """A number of bytes from a size such as "8GiB", "500MB" or 2**33. Raises ValueError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]i?)?B?\s*", str(size), re.IGNORECASE)
    if not match or float(match[1]) == 0:
        raise ValueError(f"max_memory is {size!r:.40}; it must be a size above 0 such as '8GiB' or a number of bytes.")
    prefix = (match[2] or "").upper()
    return int(float(match[1]) * (1024 if prefix.endswith("I") else 1000) ** " KMGT".index(prefix[:1] or " "))


def loading_bytes(model_bytes: int, stored_bytes: int, copied_bytes: int = 0) -> int:
    """Memory that opening a model takes, of which worker processes then copy `copied_bytes`.

    Measured at the peak, in sizes of the model (OLMoE, DeepSeek-V3 and Llama of 130 to 480 MB): 0.8 to 1.14 in the dtype of the
    file, 1.46 to 1.59 in fp32 from bf16, where tensors as stored lie beside the model's (tests/checkpoints/test_memory.py).
    """
    return int(LOADING_FACTOR * (model_bytes + copied_bytes) + stored_bytes)


def available_memory() -> float:
    """Bytes that are free and promised to nobody; infinite if the system does not tell."""
    free = free_memory()
    return float("inf") if free is None else max(0, free - _reserved_bytes)


def check_memory(num_bytes: int, model_bytes: int = 0, max_bytes: int | None = None) -> None:
    """Raises FolderError for more bytes than are free and promised to nobody, or for a model of more than `max_bytes`."""
    for required, limit, state in (
        (num_bytes, available_memory(), "are free"),
        (model_bytes, max_bytes, "are allowed here"),
    ):
        if limit is not None and required > limit:
            raise FolderError(f"needs {required / 2**30:.1f} GiB of memory; {limit / 2**30:.1f} GiB {state}.")


@contextmanager
def reserved_memory(num_bytes: int, model_bytes: int = 0, max_bytes: int | None = None):
    """Promises `num_bytes` to the caller, so that models being opened beside each other fit together. Raises FolderError."""
    global _reserved_bytes
    with _lock:
        check_memory(num_bytes, model_bytes, max_bytes)
        _reserved_bytes += num_bytes
    try:
        yield
    finally:
        with _lock:
            _reserved_bytes -= num_bytes


def release_memory() -> None:
    """Gives back to the system what was freed: glibc keeps it, a third of a model's size after it was opened."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
