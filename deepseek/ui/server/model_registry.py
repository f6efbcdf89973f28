"""The checkpoints that users may open, and the few that are kept open.

A user's page keeps the path of its checkpoint in a gr.State; the models are kept here, shared by all users. Requests run in
worker processes once `start_workers` was called and the first one is ready; until then, and of models whose experts stay in
their files, in this process.
"""

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path
from weakref import WeakKeyDictionary

import torch

from deepseek.checkpoints import hub
from deepseek.checkpoints.hub import Download
from deepseek.checkpoints.loading import CheckpointError, checkpoint_errors
from deepseek.checkpoints.model_cache import ModelCache
from deepseek.checkpoints.progress import waiting
from deepseek.checkpoints.saving import best_of, list_checkpoints, offered_checkpoint
from deepseek.checkpoints.shared_model import SharedModel
from deepseek.inference import engine
from deepseek.inference.sampling import SamplingParams
from deepseek.inference.token_trace import TokenTrace
from deepseek.inference.worker_pool import WorkerPool
from deepseek.interpret.interventions import Intervention
from deepseek.interpret.trace import Trace, trace
from deepseek.model.cpu_features import preferred_dtype
from deepseek.ui.errors import user_errors
from deepseek.ui.server import access_control, zerogpu

DEMO = "assets/demo"
RUNS = Path("deepseek_checkpoints")
MAX_PUBLIC_BYTES = 2 * 2**30  # memory that a model from the Hub may take on a public Space
NUM_WORKERS = 2
NUM_THREADS = max(1, (os.cpu_count() or 1) // NUM_WORKERS)  # of each worker; more than there are cores only wait
_shared: WeakKeyDictionary[torch.nn.Module, SharedModel] = WeakKeyDictionary()  # the open models, as workers get them
_workers: WorkerPool | None = None
_downloads: dict[str, Download] = {}  # the last one of each Hub id
_downloads_lock = threading.Lock()


def _share(model, tokenizer) -> None:
    """Moves a model to memory that the workers share, unless its experts stay in its files (their cache fills the memory)."""
    if not model.expert_cache:
        _shared[model] = SharedModel(model, tokenizer)


_models = ModelCache(3, NUM_WORKERS, _share)


def choices(current: str) -> list[str]:
    """The page's own checkpoint, the demo, and of every run the best checkpoint, if one was validated, and the newest."""
    runs = map(list_checkpoints, sorted(RUNS.iterdir()) if RUNS.is_dir() else [])
    offered = [path for run in runs if run for path in (best_of(run), run[-1]) if path]
    return list(dict.fromkeys([current, DEMO, *map(str, offered)]))


def requested_path(path) -> str:
    """The path or Hub id to open for what a user typed: for the folder of a run its best checkpoint. Raises CheckpointError."""
    if not isinstance(path, str) or not path.strip():
        raise CheckpointError(f"checkpoint is {path!r:.80}; it must be a folder or a Hub id such as name/model.")
    path = path.strip()
    folder = Path(path)
    return path if (offered := offered_checkpoint(folder)) == folder else str(offered)


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


def opening(path: str, current: str) -> Iterator[str]:
    """Opens a checkpoint that a user asks for, a Hub id after its download; yields what is going on. Raises CheckpointError.

    On a public Space it must be one of `choices`, a run's checkpoint, or a Hub id of a model up to MAX_PUBLIC_BYTES.
    """
    path = requested_path(path)
    folder, offered, max_bytes = Path(path), choices(current), None
    is_of_run = folder.parent.parent == RUNS and folder in list_checkpoints(folder.parent)
    if access_control.is_public() and path not in offered and not is_of_run:
        if folder.exists():
            allowed = f"here it must be one of {', '.join(offered)}, or a Hub id"
            raise CheckpointError(f"checkpoint is {path!r:.80}; {allowed}.")
        max_bytes = MAX_PUBLIC_BYTES
    if hub.is_hub_id(path):
        yield f"Looking for `{path}` on the Hub…"
        with checkpoint_errors(path):
            for done, total in _download(path, max_bytes).watch():
                if total:
                    yield f"Downloading `{path}`: {done / 1e6:,.1f} of {total / 1e6:,.1f} MB…"
    yield "Opening…"
    for progress in waiting(lambda: open_model(path, max_bytes)):
        yield f"Opening… {progress}".rstrip()


def open_requested(path: str, current: str):
    """(model, tokenizer) of a checkpoint that a user asks for, once `opening` is through. Raises CheckpointError."""
    path = requested_path(path)
    for _ in opening(path, current):
        pass
    return open_model(path)


def _download(hub_id: str, max_bytes: int | None) -> Download:
    """The download of a Hub id that is going on, or a new one."""
    with _downloads_lock:
        if hub_id not in _downloads or _downloads[hub_id].over.is_set():
            _downloads[hub_id] = Download(hub_id, preferred_dtype().itemsize, max_bytes, NUM_WORKERS)
        return _downloads[hub_id]


def running_downloads() -> list[str]:
    """The Hub ids that are being downloaded."""
    return [hub_id for hub_id, download in _downloads.items() if not download.over.is_set()]


def cancel_download(hub_id: str) -> None:
    """Ends a download, unless somebody else waits for it too."""
    if hub_id in running_downloads() and _downloads[hub_id].num_watchers <= 1:
        _downloads[hub_id].cancel()


@lru_cache(maxsize=2)  # several tabs show the same text
def cached_trace(model, tokenizer, text: str | tuple[int, ...]) -> Trace:
    """The trace of a text or of token ids. Raises ValueError for one that the model cannot read."""
    return trace(model, tokenizer, text)


def start_workers(model) -> None:
    """Starts the worker processes, which warm up with a model of `get_model`; `stream_batch` uses them from then on."""
    global _workers
    _workers = WorkerPool(NUM_WORKERS, NUM_THREADS, _shared.get(model))


def num_active_requests() -> int:
    """The number of requests being decoded now, for all users together."""
    return _workers.num_active_requests if _workers else 1


def stream_batch(
    model,
    tokenizer,
    prompt,
    batch: list[SamplingParams],
    forced_tokens=None,
    interventions: Iterable[Intervention] = (),
    probe: Iterable[int] = (),
) -> Iterator[Sequence[TokenTrace | None]]:
    """`engine.stream_batch` by a model of `get_model`, in the processes that suit it. Close it to stop the work."""
    if zerogpu.uses_borrowed_gpu(model):
        options = dict(forced_tokens or {}), list(interventions), list(probe)
        return zerogpu.stream_batch(model.name_or_path, prompt, batch, *options)
    if _workers and _workers.ready and model in _shared:
        return _stream_from_workers(_shared[model], prompt, batch, forced_tokens, interventions, probe)
    return engine.stream_batch(model, tokenizer, prompt, batch, forced_tokens, interventions, probe=probe)


def _stream_from_workers(model: SharedModel, prompt, batch, *options) -> Iterator[tuple[TokenTrace | None, ...]]:
    """Each worker decodes its share of the batch together."""
    with ExitStack() as stack:
        streams = [_workers.stream(model, prompt, params, *options) for params in batch]
        yield from zip_longest(*[stack.enter_context(closing(tokens)) for tokens in streams])
