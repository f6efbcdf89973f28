"""The hidden states that routers read, of any transformers mixture of experts, recorded while it runs."""

from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from threading import Lock

import torch

from deepseek.interpret.model_parts import is_hooked
from deepseek.interpret.moe_layers import moe_layers

# A context variable separates threads: the hooks stay on a model that others run at the same time.
_record: ContextVar[dict[int, torch.Tensor] | None] = ContextVar("inputs of routers", default=None)
_hook_lock = Lock()  # two threads must not hook one router twice


@contextmanager
def recorded_router_inputs(model):
    """Yields a dict that every router run in this thread fills: {decoder layer: what it read, (tokens, width)}."""
    with _hook_lock:
        for index, layer in moe_layers(model).items():
            if not is_hooked(layer.router._forward_pre_hooks, _before_router):
                layer.router.register_forward_pre_hook(partial(_before_router, index), with_kwargs=True)
    token = _record.set({})
    try:
        yield _record.get()
    finally:
        _record.reset(token)


def _before_router(index: int, _router, arguments, keywords) -> None:
    if (record := _record.get()) is not None:
        tensors = [value for value in (*arguments, *keywords.values()) if torch.is_tensor(value)]
        record[index] = next(tensor for tensor in tensors if tensor.is_floating_point()).detach().flatten(0, -2)
