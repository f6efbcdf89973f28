"""The checkpoints that readers may open, and the few that are held open.

A reader's page keeps the path of its checkpoint in a gr.State; the models are held here, shared by all readers. Texts are
written in processes of their own once one that `start_workers` began is ready.
"""

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
from deepseek.ui.errors import user_error
from deepseek.ui.server import access_control, zerogpu

DEMO = "assets/demo"
RUNS = Path("deepseek_checkpoints")
PUBLIC_LIMIT = 2 * 2**30  # bytes of memory that a model from the Hub may take on a public Space
_held = ModelCache(3)
_workers: WorkerPool | None = None


def choices(current: str) -> list[str]:
    """What the page was started with, the demo, then the newest commit of every run."""
    runs = sorted(RUNS.iterdir()) if RUNS.is_dir() else []
    newest = [str(list_checkpoints(run)[-1]) for run in runs if list_checkpoints(run)]
    return list(dict.fromkeys([current, DEMO, *newest]))


def open_model(path: str, most: int | None = None):
    """(model, tokenizer) of a checkpoint, kept for the next who asks: see `Held.open`."""
    known = path in _held
    found = _held.open(path, most)
    if not known:
        cached_trace.cache_clear()  # traces hold on to their models
    return found


def get_model(checkpoint: str):
    """(model, tokenizer) of a reader's checkpoint. Raises gr.Error if it cannot be opened any more."""
    try:
        return open_model(checkpoint)
    except CheckpointError as error:
        raise user_error(error) from error


def open_requested(path: str, current: str):
    """(model, tokenizer) of a checkpoint that a reader asks for. Raises CheckpointError.

    Anything that `load` opens, but on a public Space only what is offered, commits of runs, and Hub ids up to PUBLIC_LIMIT.
    """
    if not isinstance(path, str) or not path.strip():
        raise CheckpointError(f"checkpoint is {path!r:.80}; it must be a folder or a Hub id such as name/model.")
    path = path.strip()
    if not access_control.is_public():
        return open_model(path)
    ours = (
        path in choices(current)
        or Path(path) in list_checkpoints(Path(path).parent)
        and Path(path).parent.parent == RUNS
    )
    if Path(path).exists() and not ours:
        offered = ", ".join(choices(current))
        raise CheckpointError(f"checkpoint is {path!r:.80}; here it must be one of {offered}, or a Hub id.")
    return open_model(path, None if ours else PUBLIC_LIMIT)


@lru_cache(maxsize=2)  # the tabs look at one text in turn
def cached_trace(model, tokenizer, text: str) -> Trace:
    """The trace of a text. Raises ValueError for one that cannot be read."""
    return trace(model, tokenizer, text)


def start_workers(places: int, threads: int, checkpoint: str) -> None:
    """From now on `stream` writes in processes of their own, which begin by opening `checkpoint`."""
    global _workers
    _workers = WorkerPool(places, threads, checkpoint)


def num_active_requests() -> int:
    """How many texts are being written now, for all readers together."""
    return sum(len(worker.answers) for worker in _workers.ready) if _workers else 1


def stream(
    model, tokenizer, prompt, params, forced_tokens=None, interventions: Iterable[Intervention] = ()
) -> Iterator[TokenTrace]:
    """`engine.stream` by a model that `opened` gave, under `interventions`."""
    if zerogpu.uses_borrowed_gpu(model):
        return zerogpu.stream(model.name_or_path, prompt, params, dict(forced_tokens or {}), list(interventions))
    if _workers and _workers.ready[0].opened.is_set():  # until then a text is sooner written here
        return _workers.stream(model.name_or_path, prompt, params, forced_tokens, interventions)
    return engine.stream(model, tokenizer, prompt, params, forced_tokens, interventions)
