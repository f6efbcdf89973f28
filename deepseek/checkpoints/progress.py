"""How far a slow read is: of the weights as a checkpoint opens, and of experts in their files, layer by layer.

Who waits says what is to be done with that, `reported`; who reads tells it, `report`. Every thread has its own.
"""

import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import ContextVar

from transformers.utils import logging as transformers_logging

WEIGHTS, EXPERTS = "reading the weights", "reading the experts"
UPDATE_S = 0.25  # between two looks at a read
QUICK_S = 1  # a read that takes less is not shown on a terminal
_report: ContextVar[Callable[[str, float], None] | None] = ContextVar("report", default=None)


@contextmanager
def reported(function: Callable[[str, float], None]):
    """Within it, and in this thread, `function(what, fraction)` is called as more was read; it must not span a `yield`."""
    token = _report.set(function)
    try:
        yield
    finally:
        _report.reset(token)


def report(what: str, fraction: float) -> None:
    """Tells who waits in this thread, if anybody does, that a `fraction` of `what` was read."""
    if function := _report.get():
        function(what, fraction)


def waiting(read: Callable) -> Iterator[str]:
    """Runs `read()` in a thread and yields how far it is, "" while it says nothing, several times a second.

    Raises what `read` raises. Closing it waits for the end.
    """
    latest = ""

    def note(what: str, fraction: float) -> None:
        nonlocal latest
        latest = f"{what}: {fraction:.0%}"

    def work():
        with reported(note):
            read()

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        while wait([future], UPDATE_S).not_done:
            yield latest
    future.result()


def on_terminal(stream=sys.stderr) -> Callable[[str, float], None]:
    """A function for `reported` that shows what takes long behind a terminal's cursor, which it leaves where it is."""
    start = time.monotonic()

    def show(what: str, fraction: float) -> None:
        nonlocal start
        is_slow = time.monotonic() - start > QUICK_S
        if fraction == 1:
            start = time.monotonic()
        if is_slow and stream.isatty():
            shown = f" {what}: {fraction:.0%}" if fraction < 1 else ""
            stream.write(f"\0337{shown}\033[K\0338")  # save the cursor, write, clear the rest of the line, restore
            stream.flush()

    return show


def _reported_bar(factory: Callable, args: tuple, options: dict):
    """transformers' progress bar; of the weights that it loads, an iterator that reports."""
    if options.get("desc") != "Loading weights" or not _report.get():
        return factory(*args, **options)
    return _reported_steps(args[0])


def _reported_steps(weights) -> Iterator:
    for number, weight in enumerate(weights, 1):
        yield weight
        report(WEIGHTS, number / len(weights))


transformers_logging.set_tqdm_hook(_reported_bar)
