"""Opened checkpoints, cached for the next request."""

import os
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable

from deepseek.checkpoints import hub
from deepseek.checkpoints.loading import CheckpointError, load
from deepseek.checkpoints.saving import pin


class ModelCache:
    """The `capacity` checkpoints used last, by path. Thread-safe; different ones open beside each other.

    A checkpoint is opened if memory suffices also for `num_workers` processes that will share it; `prepare(model, tokenizer)` is
    called before anybody gets it.
    """

    def __init__(self, capacity: int, num_workers: int = 0, prepare: Callable = lambda model, tokenizer: None):
        self.capacity, self.num_workers, self.prepare = capacity, num_workers, prepare
        self._entries: OrderedDict[str, tuple] = OrderedDict()  # path -> (version, (model, tokenizer))
        self._lock, self._load_locks = threading.Lock(), defaultdict(threading.Lock)  # by path

    def get(self, path: str, max_bytes: int | None = None):
        """(model, tokenizer) of a checkpoint, opened again if its folder has changed; a deleted one stays cached.

        A Hub id opens as it was downloaded last. Raises CheckpointError for one that has no tokenizer, needs more than
        `max_bytes`, or cannot be opened.
        """
        folder = hub.local_folder(path)
        version = folder and (folder, os.stat(folder).st_mtime_ns)
        if cached := self._find(path, version):
            return cached
        with self._lock:
            load_lock = self._load_locks[path]
        with load_lock:  # several threads may ask for the same one
            if cached := self._find(path, version):
                return cached
            options = dict(local_files_only=True, num_workers=self.num_workers)
            model, tokenizer = load(path, max_bytes=max_bytes, **options)
            if tokenizer is None:
                raise CheckpointError(f"checkpoint {path!r} has no tokenizer.")
            self.prepare(model, tokenizer)
            pin(path)  # against its own run, which may still be training
            with self._lock:
                self._entries[path] = version, (model, tokenizer)
                self._entries.move_to_end(path)
                while len(self._entries) > self.capacity:
                    self._entries.popitem(last=False)
            return model, tokenizer

    def __contains__(self, path: str) -> bool:
        return path in self._entries

    def _find(self, path: str, version: tuple | None):
        with self._lock:
            if path in self._entries and version in (None, self._entries[path][0]):
                self._entries.move_to_end(path)
                return self._entries[path][1]
        return None
