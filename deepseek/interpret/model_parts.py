"""Where a transformers model keeps its decoder layers, and copies of a model on the same tensors."""

import copy
import threading
import weakref
from collections.abc import Callable

from torch import nn

_copies: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def decoder(model) -> nn.Module:
    """The part of a model that holds its decoder layers, without encoders of images."""
    return model.get_decoder() if hasattr(model, "get_decoder") else getattr(model, model.base_model_prefix, model)


def layer_list(model) -> tuple[nn.Module, str]:
    """(module, name) of the list of a model's decoder layers: the longest of those nested least."""
    lists = [(name, part) for name, part in decoder(model).named_modules() if isinstance(part, nn.ModuleList)]
    name, _ = min(lists, key=lambda entry: (entry[0].count("."), -len(entry[1])))
    parent, _, name = name.rpartition(".")
    return decoder(model).get_submodule(parent), name


def decoder_layers(model) -> nn.ModuleList:
    """The decoder layers of a model."""
    parent, name = layer_list(model)
    return getattr(parent, name)


def layer_index(name: str) -> int | None:
    """The decoder layer in the name of a module within the decoder: 3 for "layers.3.mlp.experts.0"; None outside of them."""
    number = next((part for part in name.split(".") if part.isdigit()), None)
    return number and int(number)


def is_hooked(hooks: dict, function: Callable) -> bool:
    """Whether a module has `function`, or a partial of it, among its `hooks`; a deep copy of a model comes with its hooks."""
    return any(getattr(hook, "func", hook) is function for hook in hooks.values())


def cached_copy(model, prepare: Callable):
    """A copy of the model on the same tensors, after `prepare(copy)` has changed its modules; made once for each `prepare`."""
    with _lock:
        copies = _copies.setdefault(model, {})
        if prepare not in copies:
            tensors = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
            copies[prepare] = copy.deepcopy(model, tensors)
            prepare(copies[prepare])
        return copies[prepare]
