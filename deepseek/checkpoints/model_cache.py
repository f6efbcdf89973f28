"""Opened checkpoints, cached for the next request."""

import os
import threading
from collections import OrderedDict

from deepseek.checkpoints.loading import CheckpointError, load
from deepseek.checkpoints.saving import pin


class ModelCache:
    """The `capacity` checkpoints used last, by path. Thread-safe."""

    def __init__(self, capacity: int):
        self.capacity = capacity
        self._entries: OrderedDict[str, tuple] = OrderedDict()  # path -> (mtime_ns, (model, tokenizer))
        self._lock, self._load_lock = threading.Lock(), threading.Lock()

    def get(self, path: str, max_bytes: int | None = None):
        """(model, tokenizer) of a checkpoint, opened again if its folder has changed; a deleted one stays cached.

        Raises CheckpointError for one that has no tokenizer, needs more than `max_bytes`, or cannot be opened.
        """
        mtime = os.stat(path).st_mtime_ns if os.path.isdir(path) else None
        if cached := self._find(path, mtime):
            return cached
        with self._load_lock:  # several threads may ask for the same one
            if cached := self._find(path, mtime):
                return cached
            model, tokenizer = load(path, max_bytes=max_bytes)
            if tokenizer is None:
                raise CheckpointError(f"checkpoint {path!r} has no tokenizer.")
            pin(path)  # against its own run, which may still be training
            with self._lock:
                self._entries[path] = mtime, (model, tokenizer)
                self._entries.move_to_end(path)
                while len(self._entries) > self.capacity:
                    self._entries.popitem(last=False)
            return model, tokenizer

    def __contains__(self, path: str) -> bool:
        return path in self._entries

    def _find(self, path: str, mtime: int | None):
        with self._lock:
            if path in self._entries and mtime in (None, self._entries[path][0]):
                self._entries.move_to_end(path)
                return self._entries[path][1]
        return None
