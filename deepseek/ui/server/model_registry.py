"""The checkpoints that users may open, and the few that are kept open.

A user's page keeps the path of its checkpoint in a gr.State; the models are kept here, shared by all users. Requests run in
worker processes once `start_workers` was called and the first one is ready, until then in this process.
"""

import os
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

from deepseek.checkpoints.loading import CheckpointError
from deepseek.checkpoints.model_cache import ModelCache
from deepseek.checkpoints.saving import list_checkpoints
from deepseek.inference import engine
from deepseek.inference.engine import TokenTrace
from deepseek.inference.worker_pool import WorkerPool
from deepseek.interpret.interventions import Intervention
from deepseek.interpret.trace import Trace, trace
from deepseek.ui.errors import user_errors
from deepseek.ui.server import access_control, zerogpu

DEMO = "assets/demo"
RUNS = Path("deepseek_checkpoints")
MAX_PUBLIC_BYTES = 2 * 2**30  # memory that a model from the Hub may take on a public Space
NUM_WORKERS = 2
NUM_THREADS = max(1, (os.cpu_count() or 1) // NUM_WORKERS)  # of each worker; more than there are cores only wait
_models = ModelCache(3)
_workers: WorkerPool | None = None


def choices(current: str) -> list[str]:
    """The page's own checkpoint, the demo, and the newest checkpoint of every run."""
    runs = map(list_checkpoints, sorted(RUNS.iterdir()) if RUNS.is_dir() else [])
    return list(dict.fromkeys([current, DEMO, *(str(checkpoints[-1]) for checkpoints in runs if checkpoints)]))


def open_model(path: str, max_bytes: int | None = None):
    """(model, tokenizer) of a checkpoint, which is kept open: see `ModelCache.get`. Raises CheckpointError."""
    was_open = path in _models
    opened = _models.get(path, max_bytes)
    if not was_open:
        cached_trace.cache_clear()  # a trace keeps its model in memory
    return opened


@user_errors()
def get_model(checkpoint: str):
    """(model, tokenizer) of a user's checkpoint. Raises gr.Error if it can no longer be opened."""
    return open_model(checkpoint)


def open_requested(path: str, current: str):
    """(model, tokenizer) of a checkpoint that a user asks for. Raises CheckpointError.

    On a public Space it must be one of `choices`, a run's checkpoint, or a Hub id of a model up to MAX_PUBLIC_BYTES.
    """
    if not isinstance(path, str) or not path.strip():
        raise CheckpointError(f"checkpoint is {path!r:.80}; it must be a folder or a Hub id such as name/model.")
    path = path.strip()
    folder, offered = Path(path), choices(current)
    is_of_run = folder.parent.parent == RUNS and folder in list_checkpoints(folder.parent)
    if not access_control.is_public() or path in offered or is_of_run:
        return open_model(path)
    if folder.exists():
        raise CheckpointError(f"checkpoint is {path!r:.80}; here it must be one of {', '.join(offered)}, or a Hub id.")
    return open_model(path, MAX_PUBLIC_BYTES)


@lru_cache(maxsize=2)  # several tabs show the same text
def cached_trace(model, tokenizer, text: str) -> Trace:
    """The trace of a text. Raises ValueError for a text that the model cannot read."""
    return trace(model, tokenizer, text)


def start_workers(checkpoint: str) -> None:
    """Starts the worker processes, which open `checkpoint` first; `stream` uses them from then on."""
    global _workers
    _workers = WorkerPool(NUM_WORKERS, NUM_THREADS, checkpoint)


def num_active_requests() -> int:
    """The number of requests being decoded now, for all users together."""
    return _workers.num_active_requests if _workers else 1


def stream(
    model, tokenizer, prompt, params, forced_tokens=None, interventions: Iterable[Intervention] = ()
) -> Iterator[TokenTrace]:
    """`engine.stream` by a model of `get_model`, in the process that suits it."""
    if zerogpu.uses_borrowed_gpu(model):
        return zerogpu.stream(model.name_or_path, prompt, params, dict(forced_tokens or {}), list(interventions))
    if _workers and _workers.ready:
        return _workers.stream(model.name_or_path, prompt, params, forced_tokens, interventions)
    return engine.stream(model, tokenizer, prompt, params, forced_tokens, interventions)
