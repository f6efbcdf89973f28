"""Experts that stay in their safetensors files, so that a mixture larger than memory runs.

A token needs only the experts it is routed to. `map_experts` puts in place of each stacked weight of a model's experts a
`MappedStack`, which reads an expert when the module's own forward indexes it, and an `ExpertCache` keeps those used most
within a limit. An expert that lies in its file as the model wants it is a view of the mapped file: nothing is copied, and all
processes share its pages. Any other (gate and up apart, transposed, FP8, MXFP4) is converted one at a time, by the converter
with which transformers would have converted all of them.

Written against transformers 5.23: which file's tensors make up which parameter is known to `core_model_loading` alone, whose
functions are no public interface.
"""

import json
import math
import mmap
import re
import threading
import warnings
import weakref
from collections import defaultdict
from copy import deepcopy
from functools import partial
from heapq import heappop, heappush, heapreplace
from pathlib import Path

import torch
from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    Transpose,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)
from transformers.quantizers.auto import AutoHfQuantizer

from deepseek.checkpoints.progress import EXPERTS, report
from deepseek.checkpoints.validation import FolderError

WILLNEED, DONTNEED = getattr(mmap, "MADV_WILLNEED", None), getattr(mmap, "MADV_DONTNEED", None)  # not on Windows
HALF_LIFE = 32  # passes, in decoding one a token
DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "U8": torch.uint8,
}


class MappedFile:
    """The tensors of a safetensors file, by name, as views of the mapped file."""

    def __init__(self, path: Path):
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            self._entries = json.loads(file.read(header_bytes))
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._entries.pop("__metadata__", None)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given buffer is not writable")  # nothing writes into a weight
            self._bytes = torch.frombuffer(self._map, dtype=torch.uint8, offset=8 + header_bytes)
        self._begin = 8 + header_bytes

    @property
    def names(self) -> list[str]:
        return list(self._entries)

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor of that name; it must not be written to."""
        entry = self._entries[name]
        begin, end = entry["data_offsets"]
        return self._bytes[begin:end].view(DTYPES[entry["dtype"]]).view(entry["shape"])

    def advise(self, tensor: torch.Tensor, advice: int) -> None:
        """Tells the system that the pages under a view will be used soon (WILLNEED) or not (DONTNEED)."""
        begin = self._begin + tensor.data_ptr() - self._bytes.data_ptr()
        start = begin // mmap.PAGESIZE * mmap.PAGESIZE
        if advice is not None:
            self._map.madvise(advice, start, begin + tensor.nbytes - start)


class ExpertCache:
    """The experts that are used most, up to `max_bytes`, of all layers together. Thread-safe.

    A use counts half after HALF_LIFE passes: a text turns to other things. Of equally used experts the one that came last goes,
    so that a text whose passes use all of them finds those of the first layers. tests/measure/expert_cache.py compares it.
    """

    def __init__(self, max_bytes: int):
        self.max_bytes, self.num_bytes, self.num_reads, self.num_hits, self.num_passes = max_bytes, 0, 0, 0, 0
        self._entries: dict[tuple, tuple] = {}  # (stack, expert) -> (weight, the files' tensors)
        # Base-2 logarithm of an expert's uses, where each counts 2 ** (its pass / HALF_LIFE): so the past stays as it is.
        self._uses: dict[tuple, float] = {}
        self._least_used: list[tuple] = []  # heap of (uses at some time, -reads at its own, key) of what is kept
        self._lock = threading.Lock()

    def __deepcopy__(self, memo):  # of a model; its copy keeps to the same limit
        return self

    def __contains__(self, key) -> bool:
        return key in self._entries

    def get(self, key: tuple, read) -> torch.Tensor:
        """The weight of an expert; `read()` gives it and the [(file, tensor)] that it is made from."""
        with self._lock:
            self.num_reads += 1
            now = self.num_passes / HALF_LIFE
            self._uses[key] = now + math.log2(1 + 2 ** (self._uses.get(key, -math.inf) - now))
            if key in self._entries:
                self.num_hits += 1
                return self._entries[key][0]
        weight, sources = read()
        with self._lock:
            while self._entries and self.num_bytes + weight.nbytes > self.max_bytes:
                self._evict()
            if key not in self._entries:
                self._entries[key] = weight, sources
                heappush(self._least_used, (self._uses[key], -self.num_reads, key))
                self.num_bytes += weight.nbytes
        return weight

    def _evict(self) -> None:
        """Lets go of the least used expert."""
        while (entry := self._least_used[0])[0] < self._uses[entry[2]]:  # it was used since
            heapreplace(self._least_used, (self._uses[entry[2]], *entry[1:]))
        weight, sources = self._entries.pop(heappop(self._least_used)[2])
        self.num_bytes -= weight.nbytes
        for file, tensor in sources:
            file.advise(tensor, DONTNEED)


class MappedStack:
    """In place of a parameter (E experts, rows, columns): `stack[e]` is the weight of expert e, read when it is needed."""

    def __init__(
        self, model: nn.Module, name: str, parameter: nn.Parameter, converter, sources: dict, cache: ExpertCache
    ):
        self.name, self.shape, self.dtype = name, parameter.shape, parameter.dtype
        self.device = torch.device("cpu")
        self._model, self._converter, self._cache = weakref.ref(model), converter, cache
        self._sources = sources  # pattern -> its (file, tensor's name), of each expert or of all as one

    def __deepcopy__(self, memo):  # of a model; nothing writes into what lies in the files
        return self

    def __len__(self) -> int:
        return self.shape[0]

    def view(self, *_shape) -> "MappedStack":
        """Itself: DBRX views its experts, which lie below each other, as a stack."""
        return self

    def numel(self) -> int:
        """The number of its elements."""
        return self.shape.numel()

    def __getitem__(self, expert) -> torch.Tensor:
        expert = int(expert)
        return self._cache.get((self.name, expert), lambda: self._read(expert))

    def prefetch(self, expert: int) -> int:
        """Lets the system begin to read an expert that is not in memory; returns its size in the files, in bytes."""
        if (self.name, expert) in self._cache or expert >= len(self):  # such as LongCat's experts that do nothing
            return 0
        parts = self._parts(expert).values()
        for file, tensor in parts:
            file.advise(tensor, WILLNEED)
        return sum(tensor.nbytes for _, tensor in parts)

    def _parts(self, expert: int) -> dict[str, tuple]:
        """{pattern: (file, tensor)} of what an expert is made from; of a tensor for all experts its part."""
        parts = {}
        for pattern, names in self._sources.items():
            file, name = names[expert] if len(names) > 1 else names[0]
            tensor = file.tensor(name)
            rows = len(tensor) // len(self)  # of each expert
            parts[pattern] = file, tensor if len(names) > 1 else tensor[expert * rows : (expert + 1) * rows]
        return parts

    def _read(self, expert: int):
        parts = self._parts(expert)
        tensors = [tensor for _, tensor in parts.values()]
        for file, tensor in parts.values():
            file.advise(tensor, WILLNEED)
        operations = [type(operation) for operation in self._converter.operations] if self._converter else []
        if not operations:
            weight = tensors[0].view(self.shape[1:])
        elif operations == [MergeModulelist]:
            weight = tensors[0]
        elif operations == [MergeModulelist, Concatenate]:
            weight = _joined(tensors)
        elif (
            operations == [Transpose] and self._converter.operations[0].check_dims
        ):  # which looks at all of the parameter
            weight = tensors[0][0] if tensors[0].shape[1:] == self.shape[1:] else tensors[0][0].T
        else:
            converter = deepcopy(self._converter)
            for pattern, (_, tensor) in parts.items():
                converter.add_tensor(self.name, self.name, pattern, lambda tensor=tensor: tensor)
            weight = converter.convert(self.name, self._model(), self._model().config)[self.name]
            weight = (weight[0] if isinstance(weight, list) else weight)[0]
        return weight.to(self.dtype), list(parts.values())


def _joined(tensors: list[torch.Tensor]) -> torch.Tensor:
    """The concatenation of matrices: a view where they follow each other in one file, as gate and up mostly do."""
    first, *others = tensors
    end = first.data_ptr() + first.nbytes
    for tensor in others:
        if tensor.data_ptr() != end or tensor.untyped_storage().data_ptr() != first.untyped_storage().data_ptr():
            return torch.cat(tensors)
        end += tensor.nbytes
    rows = sum(len(tensor) for tensor in tensors)
    return first.as_strided((rows, *first.shape[1:]), first.stride())


def expert_stacks(model: nn.Module) -> dict[str, nn.Parameter]:
    """{name: parameter (E, rows, columns)} of the weights that a model's experts modules index one expert at a time."""
    stacks = {}
    for name, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            if type(module).__name__ == "DbrxExpertGLU":
                stacks[f"{name}.{key}"] = parameter.unflatten(0, (module.moe_num_experts, -1))
            elif type(module).__name__.endswith("Experts") and "shared" not in name and parameter.dim() == 3:
                stacks[f"{name}.{key}"] = parameter
    return stacks


def _llama4_experts(module: nn.Module, x_ND: torch.Tensor) -> torch.Tensor:
    """Llama4TextExperts.forward by the expert: all tokens once for each, times its score, and so 0 for most of them."""
    x_ETD = x_ND.view(len(module.gate_up_proj), -1, module.hidden_size)
    y_ETD = torch.zeros_like(x_ETD)
    routed_ET = x_ETD.any(-1)
    for expert in routed_ET.any(1).nonzero()[:, 0].tolist():
        rows = routed_ET[expert]
        gate, up = (x_ETD[expert, rows] @ module.gate_up_proj[expert]).chunk(2, dim=-1)
        y_ETD[expert, rows] = (up * module.act_fn(gate)) @ module.down_proj[expert]
    return y_ETD.view(-1, module.hidden_size)


def map_experts(model: nn.Module, folder: Path, cache: ExpertCache) -> None:
    """Puts MappedStacks in place of the experts' weights of `model`, which lies on the meta device, as it comes to be.

    They are `model.mapped_experts`, by name. Raises FolderError where the files of `folder` have neither one tensor for a stack
    nor one for each of its experts: in memory it would take more than there is.
    """
    files = [MappedFile(path) for path in sorted(folder.glob("[!.]*.safetensors"))]
    stacks, state = expert_stacks(model), model.state_dict()
    quantizer = None
    if getattr(model.config, "quantization_config", None):
        quantizer = AutoHfQuantizer.from_config(model.config.quantization_config, pre_quantized=True)
    mapping = get_model_conversion_mapping(model, hf_quantizer=quantizer)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    sources = {name: defaultdict(list) for name in stacks}
    tensors = [(key, file) for file in files for key in file.names]
    for key, owner in sorted(tensors, key=lambda tensor: dot_natural_key(tensor[0])):
        name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, state)
        if name in stacks:
            sources[name][pattern].append((owner, key))
    model._keys_to_ignore_on_load_unexpected = {
        *(model._keys_to_ignore_on_load_unexpected or ()),
        *map(re.escape, stacks),
    }
    model.mapped_experts = {}
    for name, parameter in stacks.items():
        if not sources[name] or any(len(names) not in (1, len(parameter)) for names in sources[name].values()):
            raise FolderError(
                f"is larger than memory, and its files have {name!r} in a form that cannot be read by the expert."
            )
        module, key = model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
        delattr(module, key)
        converter = by_pattern.get(next(iter(sources[name])))
        stack = MappedStack(model, name, parameter, converter, dict(sources[name]), cache)
        setattr(module, key, stack)
        model.mapped_experts[name] = stack
        for owner in (module, model.get_submodule(name.rpartition(".")[0].rpartition(".")[0])):
            owner._is_hf_initialized = True  # or transformers would fill them with random numbers
        if type(module).__name__ == "Llama4TextExperts":
            module.forward = partial(_llama4_experts, module)
    modules = list(dict.fromkeys(name.rpartition(".")[0] for name in stacks))
    for number, name in enumerate(modules, 1):
        model.get_submodule(name).register_forward_pre_hook(_prefetch)
        model.get_submodule(name).register_forward_hook(partial(_end_layer, cache, number / len(modules)))


def _end_layer(cache: ExpertCache, fraction: float, _module, _args, _output) -> None:
    """Tells how far a pass is, which takes as long as the experts of all layers take to be read; counts it at its end."""
    report(EXPERTS, fraction)
    cache.num_passes += fraction == 1


def _prefetch(module: nn.Module, args: tuple) -> None:
    """Begins to read the experts that a batch is routed to, as many as half of the cache holds."""
    stacks = [stack for stack in vars(module).values() if isinstance(stack, MappedStack)]
    for indices in args:
        if isinstance(indices, torch.Tensor) and not indices.is_floating_point():
            left = stacks[0]._cache.max_bytes // 2
            for expert in indices.unique().tolist():
                for stack in stacks:
                    left -= stack.prefetch(expert)
                if left <= 0:
                    return


def mapped_class(model_class: type, folder: Path, cache: ExpertCache) -> type:
    """A subclass of `model_class` whose `from_pretrained` leaves the experts in the files of `folder`."""

    class Mapped(model_class):
        def __init__(self, config, *args, **kwargs):
            super().__init__(config, *args, **kwargs)
            map_experts(self, folder, cache)

    # What transformers knows of a class, as how its weights are converted, it finds by its name and module.
    Mapped.__name__, Mapped.__module__ = model_class.__name__, model_class.__module__
    return Mapped
