"""The logit lens: what a model would predict after each of its layers, by its own way from the last layer to the logits.

The model runs cut off behind layer i: final norms, merged residual streams, logit scaling and soft caps are its own, whatever
its family has. Nothing is computed twice: a copy of the model has, in place of its layers, their outputs in one traced pass.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from itertools import islice

import torch
from torch import nn

from deepseek.interpret.model_parts import cached_copy, decoder_layers, is_hooked, layer_list

_outputs: ContextVar[list | None] = ContextVar("outputs of layers", default=None)
_replay: ContextVar[tuple[list, int]] = ContextVar("outputs of layers, and how many layers run")
_hook_lock = threading.Lock()


@contextmanager
def recorded_layers(model):
    """Yields a list that a pass in this thread fills with what each decoder layer returns."""
    with _hook_lock:
        for layer in decoder_layers(model):
            if not is_hooked(layer._forward_hooks, _keep_output):
                layer.register_forward_hook(_keep_output)
    token = _outputs.set([])
    try:
        yield _outputs.get()
    finally:
        _outputs.reset(token)


def _keep_output(_layer, _inputs, output) -> None:
    if (outputs := _outputs.get()) is not None:
        outputs.append(output)


class _CutLayers(nn.ModuleList):
    """Layers that return what was recorded of them, and of which the first few run."""

    def __iter__(self):
        return islice(super().__iter__(), _replay.get()[1])


def _replace_layers(model) -> None:
    for index, layer in enumerate(decoder_layers(model)):
        layer.forward = partial(_recorded_output, index)
    parent, name = layer_list(model)
    setattr(parent, name, _CutLayers(getattr(parent, name)))


def _recorded_output(index: int, *_, **__):
    return _replay.get()[0][index]


@torch.inference_mode()
def lens_logits(model, ids: list[int], outputs: list) -> Iterator[torch.Tensor]:
    """Yields logits (tokens, vocabulary) after the embedding and after each layer; `outputs` are what the layers returned."""
    cut, ids_1T = cached_copy(model, _replace_layers), torch.tensor([ids], device=model.device)
    for num_layers in range(len(outputs) + 1):
        token = _replay.set((outputs, num_layers))
        try:
            logits = cut(ids_1T, use_cache=False).logits[0]
        finally:
            _replay.reset(token)
        yield logits
