"""Stops a forked child at its system calls with Linux's ptrace: to see them, to kill it there, or to fail them.

What Python, safetensors' Rust and the C library do to the disk all passes here, unlike a patched `os` module.
"""

import ctypes
import errno
import os
import platform
import signal
from collections.abc import Callable

SUPPORTED = platform.system() == "Linux" and platform.machine() == "x86_64"  # system call numbers are a machine's own
WRITES = {
    1: "write",
    18: "pwrite64",
    20: "writev",
    296: "pwritev",
    77: "ftruncate",
    40: "sendfile",
    326: "copy_file_range",
}
CHANGES = {
    **WRITES, 74: "fsync", 75: "fdatasync", 82: "rename", 264: "renameat", 316: "renameat2", 83: "mkdir", 258: "mkdirat",
    84: "rmdir", 87: "unlink", 263: "unlinkat",
}  # fmt: skip
RAX, RDX, RSI, RDI, ORIG_RAX = 80, 96, 104, 112, 120  # offsets in x86-64's struct user_regs_struct
TRACEME, PEEKUSER, POKEUSER, SYSCALL, SETOPTIONS = 0, 3, 6, 24, 0x4200
TRACESYSGOOD, EXITKILL = 1, 0x100000

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long


def ptrace(request: int, pid: int, address: int = 0, data: int = 0) -> int:
    """One ptrace call; raises OSError."""
    ctypes.set_errno(0)
    result = libc.ptrace(request, pid, address, data)
    if result == -1 and (number := ctypes.get_errno()):
        raise OSError(number, os.strerror(number))
    return result


def traced(function: Callable[[], None], at_call: Callable[[int, str, int], str | None]) -> int:
    """Runs `function()` in a fork; returns its exit code, negative for a signal's number.

    Before every system call of CHANGES of its main thread `at_call(pid, name, count)` is asked, with the number of
    such calls before this one. Its answer: None lets the call through, "kill" kills the child before it, "torn" kills it
    after a write of half the bytes, "full" fails the call with "No space left on device" (exit code 10, if that is
    what `function` raises).
    """
    if not (pid := os.fork()):
        try:
            ptrace(TRACEME, 0)
            os.kill(os.getpid(), signal.SIGSTOP)
            function()
            os._exit(0)
        except BaseException as error:
            os._exit(10 if isinstance(error, Exception) and "No space left" in str(error) else 11)
    os.waitpid(pid, 0)
    ptrace(SETOPTIONS, pid, 0, TRACESYSGOOD | EXITKILL)
    count, entering, answer, number = 0, True, None, 0
    while True:
        ptrace(SYSCALL, pid, 0, number)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSTOPPED(status):
            return os.waitstatus_to_exitcode(status)
        number = os.WSTOPSIG(status)
        if number != signal.SIGTRAP | 0x80:  # a signal on its way to the child
            continue
        number = 0
        if entering and (name := CHANGES.get(ptrace(PEEKUSER, pid, ORIG_RAX))):
            answer, count = at_call(pid, name, count), count + 1
            if answer == "torn":
                ptrace(POKEUSER, pid, RDX, ptrace(PEEKUSER, pid, RDX) // 2)
            if answer == "full":
                ptrace(POKEUSER, pid, ORIG_RAX, ctypes.c_ulong(-1).value)  # no such call: nothing happens
        elif not entering and answer == "full":
            ptrace(POKEUSER, pid, RAX, ctypes.c_ulong(-errno.ENOSPC).value)
        if answer == "kill" or answer == "torn" and not entering:
            os.kill(pid, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        answer, entering = answer if entering else None, not entering


def target(pid: int, name: str) -> str:
    """The path that a stopped call is about: of its descriptor, or the first path of its arguments."""
    if name in WRITES.values() or "sync" in name:
        return os.readlink(f"/proc/{pid}/fd/{ptrace(PEEKUSER, pid, RDI)}")
    address = ptrace(PEEKUSER, pid, RSI if name.endswith(("at", "at2")) else RDI)
    with open(f"/proc/{pid}/mem", "rb") as memory:
        memory.seek(address)
        return memory.read(4096 - address % 4096).split(b"\0")[0].decode()
