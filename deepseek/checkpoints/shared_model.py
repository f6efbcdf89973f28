"""One copy of a model's weights for several processes.

The tensors move to a file in memory, which each process maps; all else of the model and its tokenizer travels as a pickle,
between processes of this program alone.
"""

import io
import itertools
import mmap
import os
import pickle
import tempfile

import torch

ALIGNMENT = 64  # bytes, of a cache line and of the widest registers


class SharedModel:
    """A model and its tokenizer, whose tensors this moves to shared memory: `open_shared(shared.file, shared.pickled)`.

    No process sees what another writes to them. The memory is given back once the model, this object and those that other
    processes opened are gone.
    """

    _keys = itertools.count()

    def __init__(self, model, tokenizer):
        self.key = next(self._keys)
        self.file, pickled = _memory_file(), io.BytesIO()
        pickler = _Pickler(pickled)
        pickler.dump((model, tokenizer))
        self.pickled = pickled.getvalue()
        os.ftruncate(self.file.fileno(), max(pickler.num_bytes, 1))
        written, mapped = mmap.mmap(self.file.fileno(), 0), _map(self.file)
        with torch.no_grad():
            for tensor, offset in pickler.tensors.values():  # one by one, as each gives back where it lay
                place = offset, tensor.shape, tensor.dtype
                _view(written, *place).copy_(tensor)
                tensor.data = _view(mapped, *place)


def open_shared(file, pickled: bytes):
    """(model, tokenizer) of a SharedModel of another process, from its open `file` and its pickle."""
    return _Unpickler(io.BytesIO(pickled), _map(file)).load()


def _memory_file():
    """An empty file in memory, or on disk where the system has none in memory; it is gone when nobody has it open."""
    return open(os.memfd_create("model"), "r+b") if hasattr(os, "memfd_create") else tempfile.TemporaryFile()


def _map(file) -> mmap.mmap:
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def _view(memory: mmap.mmap, offset: int, shape, dtype: torch.dtype) -> torch.Tensor:
    if 0 in shape:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(memory, dtype=dtype, count=shape.numel(), offset=offset).view(shape)


class _Pickler(pickle.Pickler):
    """Leaves the tensors out and says in `tensors` where each shall lie: {id: (tensor, offset in bytes)}."""

    def __init__(self, buffer: io.BytesIO):
        super().__init__(buffer)
        self.tensors: dict[int, tuple[torch.Tensor, int]] = {}
        self.num_bytes = 0

    def persistent_id(self, value):
        """What stands for a tensor in the pickle; None for other values."""
        if not isinstance(value, torch.Tensor):
            return None
        if id(value) not in self.tensors:
            self.tensors[id(value)] = value, self.num_bytes
            self.num_bytes += -(-value.nbytes // ALIGNMENT) * ALIGNMENT
        is_parameter = isinstance(value, torch.nn.Parameter)
        return self.tensors[id(value)][1], id(value), value.shape, value.dtype, is_parameter, value.requires_grad


class _Unpickler(pickle.Unpickler):
    def __init__(self, buffer: io.BytesIO, memory: mmap.mmap):
        super().__init__(buffer)
        self._memory, self._tensors = memory, {}  # each once, so that tied weights stay tied

    def persistent_load(self, place):
        offset, key, shape, dtype, is_parameter, requires_grad = place
        if key not in self._tensors:
            tensor = _view(self._memory, offset, shape, dtype)
            self._tensors[key] = torch.nn.Parameter(tensor, requires_grad) if is_parameter else tensor
        return self._tensors[key]
