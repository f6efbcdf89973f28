"""Checkpoints kept open for the next who asks."""

import os
import threading
from collections import OrderedDict

from deepseek.checkpoints.loading import CheckpointError, load
from deepseek.checkpoints.saving import pin


class ModelCache:
    """The `most` checkpoints that were asked for last, by path. Its methods may be called from several threads."""

    def __init__(self, most: int):
        self.most = most
        self._models: OrderedDict[str, tuple] = OrderedDict()  # path -> (its time on disk, model, tokenizer)
        self._guard, self._opening = threading.Lock(), threading.Lock()

    def open(self, path: str, largest: int | None = None):
        """(model, tokenizer) of a checkpoint that has both.

        A folder that was written anew is opened anew; one that is gone is served as long as it is held. What needs more
        than `largest` bytes is refused. Raises CheckpointError.
        """
        time = os.stat(path).st_mtime_ns if os.path.isdir(path) else None
        found = self._find(path, time)
        if not found:
            with self._opening:  # one at a time: two readers may ask for the same one
                found = self._find(path, time) or load(path, most=largest)
                pin(path)  # its run may go on, and prune it
            if found[1] is None:
                raise CheckpointError(f"checkpoint {path!r} has no tokenizer.")
            with self._guard:
                self._models[path] = time, *found
                while len(self._models) > self.most:
                    self._models.popitem(last=False)
        return found

    def __contains__(self, path: str) -> bool:
        return path in self._models

    def _find(self, path: str, time: int | None):
        with self._guard:
            if path in self._models and time in (None, self._models[path][0]):
                self._models.move_to_end(path)
                return self._models[path][1:]
        return None
