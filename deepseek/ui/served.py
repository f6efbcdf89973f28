"""The checkpoints that readers may open, and the few that are held open.

A reader's page keeps the path of its checkpoint in a gr.State; the models are held here, shared by all readers.
"""

import os
import threading
from collections import OrderedDict
from functools import lru_cache
from pathlib import Path

from deepseek.checkpoint import CheckpointError, commits, load
from deepseek.trace import Trace, trace
from deepseek.ui import permit
from deepseek.ui.controls import refusal

DEMO = "assets/demo"
RUNS = Path("deepseek_checkpoints")
MOST_HELD = 3  # models in memory at a time, besides those that a job still works on
PUBLIC_LIMIT = 2 * 2**30  # bytes of memory that a model from the Hub may take on a public Space
_held: OrderedDict[str, tuple] = OrderedDict()  # path -> (its time on disk, model, tokenizer), the latest used last
_guard, _opening = threading.Lock(), threading.Lock()


def choices(current: str) -> list[str]:
    """What the page was started with, the demo, then the newest commit of every run."""
    runs = sorted(RUNS.iterdir()) if RUNS.is_dir() else []
    newest = [str(commits(run)[-1]) for run in runs if commits(run)]
    return list(dict.fromkeys([current, DEMO, *newest]))


def opened(path: str, most: int | None = None):
    """(model, tokenizer) of a checkpoint that has both, kept for the next who asks.

    A folder that was written anew is opened anew; one that is gone is served as long as it is held. A Hub id is
    refused if it needs more than `most` bytes. Raises CheckpointError.
    """
    time = os.stat(path).st_mtime_ns if os.path.isdir(path) else None
    found = _if_held(path, time)
    if not found:
        with _opening:  # one at a time: two readers may ask for the same one
            found = _if_held(path, time) or load(path, most=most)
        if found[1] is None:
            raise CheckpointError(f"checkpoint {path!r} has no tokenizer.")
        with _guard:
            _held[path] = time, *found
            while len(_held) > MOST_HELD:
                _held.popitem(last=False)
        traced.cache_clear()  # traces hold on to their models
    return found


def _if_held(path: str, time: int | None):
    with _guard:
        if path in _held and time in (None, _held[path][0]):
            _held.move_to_end(path)
            return _held[path][1:]
    return None


def ready(checkpoint: str):
    """(model, tokenizer) of a reader's checkpoint. Raises gr.Error if it cannot be opened any more."""
    try:
        return opened(checkpoint)
    except CheckpointError as error:
        raise refusal(error) from error


def chosen(path: str, current: str):
    """(model, tokenizer) of a checkpoint that a reader asks for. Raises CheckpointError.

    Anything that `load` opens, but on a public Space only what is offered, commits of runs, and Hub ids up to PUBLIC_LIMIT.
    """
    if not isinstance(path, str) or not path.strip():
        raise CheckpointError(f"checkpoint is {path!r:.80}; it must be a folder or a Hub id such as name/model.")
    path = path.strip()
    if not permit.public():
        return opened(path)
    ours = path in choices(current) or Path(path) in commits(Path(path).parent) and Path(path).parent.parent == RUNS
    if Path(path).exists() and not ours:
        offered = ", ".join(choices(current))
        raise CheckpointError(f"checkpoint is {path!r:.80}; here it must be one of {offered}, or a Hub id.")
    return opened(path, None if ours else PUBLIC_LIMIT)


@lru_cache(maxsize=2)  # the tabs look at one text in turn
def traced(model, tokenizer, text: str) -> Trace:
    """The trace of a text. Raises ValueError for one that cannot be read."""
    return trace(model, tokenizer, text)
