"""Stops a forked child at its system calls with Linux's ptrace, to record them, kill it there or make them fail.

Unlike a patched `os` module it also sees the writes of safetensors' Rust code and of the C library.
"""

import ctypes
import errno
import os
import platform
import signal
from collections.abc import Callable

SUPPORTED = platform.system() == "Linux" and platform.machine() == "x86_64"  # the numbers below are those of x86-64
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
    """One ptrace call. Raises OSError."""
    ctypes.set_errno(0)
    result = libc.ptrace(request, pid, address, data)
    if result == -1 and (number := ctypes.get_errno()):
        raise OSError(number, os.strerror(number))
    return result


def traced(function: Callable[[], None], at_call: Callable[[int, str, int], str | None]) -> int:
    """Runs `function()` in a fork and returns its exit code, negative for a signal.

    `at_call(pid, name, count)` is called before every system call of CHANGES in its main thread, `count` being the number
    of such calls before it. It returns None to let the call through, "kill" to kill the child before it, "torn" to kill it
    after writing half of the bytes, or "full" to fail the call with "No space left on device" (exit code 10 if `function`
    raises that).
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
    count, entering, action, number = 0, True, None, 0
    while True:
        ptrace(SYSCALL, pid, 0, number)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSTOPPED(status):
            return os.waitstatus_to_exitcode(status)
        number = os.WSTOPSIG(status)
        if number != signal.SIGTRAP | 0x80:  # a signal sent to the child
            continue
        number = 0
        if entering and (name := CHANGES.get(ptrace(PEEKUSER, pid, ORIG_RAX))):
            action, count = at_call(pid, name, count), count + 1
            if action == "torn":
                ptrace(POKEUSER, pid, RDX, ptrace(PEEKUSER, pid, RDX) // 2)
            if action == "full":
                ptrace(POKEUSER, pid, ORIG_RAX, ctypes.c_ulong(-1).value)  # no such call: nothing happens
        elif not entering and action == "full":
            ptrace(POKEUSER, pid, RAX, ctypes.c_ulong(-errno.ENOSPC).value)
        if action == "kill" or action == "torn" and not entering:
            os.kill(pid, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        action, entering = action if entering else None, not entering


def target(pid: int, name: str) -> str:
    """The path that a stopped call acts on: that of its descriptor, or the first path among its arguments."""
    if name in WRITES.values() or "sync" in name:
        return os.readlink(f"/proc/{pid}/fd/{ptrace(PEEKUSER, pid, RDI)}")
    address = ptrace(PEEKUSER, pid, RSI if name.endswith(("at", "at2")) else RDI)
    with open(f"/proc/{pid}/mem", "rb") as memory:
        memory.seek(address)
        return memory.read(4096 - address % 4096).split(b"\0")[0].decode()
