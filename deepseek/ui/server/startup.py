"""What makes the app start fast and run small. `begin` comes before the imports of gradio and torch, so none is imported here."""

import contextlib
import gc
import os
import subprocess
import sys
from pathlib import Path

ENVIRONMENT = {
    "GRADIO_ANALYTICS_ENABLED": "False",  # the page needs no network
    # Gradio 6.31 tabulates its last 10,000 events after each one, for a page of statistics that nobody opens here.
    "GRADIO_ANALYTICS_MAX_EVENTS": "1",
    "GRADIO_ANALYTICS_CACHE_FREQUENCY": str(10**12),
}
LAUNCH_OPTIONS = {
    "_frontend": False,  # else gradio requests its own page once and exits where the answer takes over 3 seconds
    "max_threads": 100,  # each streaming request waits in one
    "state_session_capacity": 500,  # sessions whose gr.State gradio keeps, 10,000 by default
}


def begin(arguments: list[str]) -> subprocess.Popen:
    """Sets gradio's environment and returns the process that compiles the kernels for the checkpoint in `arguments`."""
    # Compiling takes 10 s at the very first start; a process of its own does it while this one imports torch and gradio.
    command = [sys.executable, "-m", "deepseek.kernels.warmup", *arguments]
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH")]))
    compiling = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path})
    gc.disable()  # until the page is built: little of it is garbage, and looking for it takes a tenth of the start
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with contextlib.suppress(ImportError):
        import spaces  # noqa: F401  (on a ZeroGPU Space; it must be imported before torch)
    return compiling


def enable_gc() -> None:
    """Collects garbage again, but leaves out what exists now: it lives as long as the process."""
    gc.freeze()
    gc.enable()
