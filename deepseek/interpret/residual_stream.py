"""What each layer adds to the residual stream, for any transformers causal model.

A layer reads the residual stream x and adds to it twice: x + attention, then + feed-forward (Elhage et al. 2021, "A
mathematical framework for transformer circuits"). Families name their parts differently and some norm them before they are
added, so the parts are found by what they do: they are the two whose outputs add up to what the layer changed.

Shape letters: T tokens, D hidden width.
"""

import threading
import weakref
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import torch
import torch.nn.functional as F

from deepseek.interpret.model_parts import decoder_layers

TOLERANCE = 0.01  # of what a layer added: outputs that add up to it so closely are its parts


@dataclass
class Addition:
    """One addition to the residual stream, each (T,) float32."""

    norm: torch.Tensor  # Euclidean norm of what is added
    residual_norm: torch.Tensor  # of the residual stream after it
    cosine: torch.Tensor  # between the residual stream before and after: 1 where it only grew or shrank


@dataclass
class LayerResidual:
    """The residual stream through one layer.

    `attention` and `feed_forward` are None where no two parts of the layer add up to what it changed. `routed_norm` and
    `shared_norm`, (T,) float32, are the Euclidean norms of what the routed and the shared experts add; None without them.
    """

    input_norm: torch.Tensor | None = None  # (T,) float32; None if the model's layers are not found
    output_norm: torch.Tensor | None = None
    cosine: torch.Tensor | None = None  # between the layer's input and output
    attention: Addition | None = None
    feed_forward: Addition | None = None
    routed_norm: torch.Tensor | None = None
    shared_norm: torch.Tensor | None = None


class _Recording:
    """What one forward pass fills."""

    def __init__(self):
        self.layers: dict[int, LayerResidual] = {}
        self.outputs: list[torch.Tensor] = []  # of the present layer's parts in the order in which they ran, (T, D)
        self.expert_outputs: dict[str, torch.Tensor] = {}  # "routed" and "shared" of the present layer, (T, D)


# A context variable separates threads: the hooks stay on a model that others run at the same time.
_recording: ContextVar[_Recording | None] = ContextVar("residual stream", default=None)
_hooked_models, _hook_lock = weakref.WeakSet(), threading.Lock()


@torch.inference_mode()
def measure_residual_stream(model, ids: list[int]) -> list[LayerResidual]:
    """The residual stream of token ids, a LayerResidual per layer; one forward pass."""
    _hook(model)
    recording = _Recording()
    token = _recording.set(recording)
    try:
        model(torch.tensor([ids], device=model.device), use_cache=False, logits_to_keep=1)
    finally:
        _recording.reset(token)
    return [recording.layers[index] for index in sorted(recording.layers)]


def _hook(model) -> None:
    with _hook_lock:
        if model in _hooked_models:
            return
        for index, layer in enumerate(decoder_layers(model)):
            layer.register_forward_pre_hook(_begin_layer)
            for part in layer.children():
                part.register_forward_hook(_keep_output)
            for name, module in layer.named_modules():
                name = name.rpartition(".")[2]
                if kind := "routed" if name == "experts" else "shared" if name.startswith("shared_expert") else None:
                    module.register_forward_hook(partial(_keep_expert_output, kind))
            layer.register_forward_hook(partial(_end_layer, index), with_kwargs=True)
        _hooked_models.add(model)


def _begin_layer(_layer, _inputs) -> None:
    if recording := _recording.get():
        recording.outputs, recording.expert_outputs = [], {}


def _keep_output(_part, _inputs, output) -> None:
    if recording := _recording.get():
        recording.outputs.append(_rows(output))


def _keep_expert_output(kind: str, _module, _inputs, output) -> None:
    if recording := _recording.get():
        recording.expert_outputs[kind] = _rows(output)


def _end_layer(index: int, _layer, inputs, keywords, output) -> None:
    if not (recording := _recording.get()):
        return
    hidden = output[0] if isinstance(output, tuple) else output
    before_TD, after_TD = _rows(inputs[0] if inputs else keywords["hidden_states"]), _rows(hidden)
    layer = LayerResidual(before_TD.norm(dim=-1), after_TD.norm(dim=-1), F.cosine_similarity(before_TD, after_TD))
    outputs = [part_TD for part_TD in recording.outputs if part_TD is not None and part_TD.shape == before_TD.shape]
    rounding = torch.finfo(hidden.dtype).eps * after_TD.norm()
    if parts := _adding_up(combinations(outputs, 2), after_TD - before_TD, rounding):
        middle_TD = before_TD + parts[0]
        layer.attention, layer.feed_forward = _addition(before_TD, middle_TD), _addition(middle_TD, after_TD)
        experts = recording.expert_outputs
        if "routed" in experts and _adding_up([tuple(experts.values())], after_TD - middle_TD, rounding):
            layer.routed_norm = experts["routed"].norm(dim=-1)
            layer.shared_norm = experts["shared"].norm(dim=-1) if "shared" in experts else None
    recording.layers[index] = layer


def _rows(output) -> torch.Tensor | None:
    """A part's output as float32 (T, D), None if it returned no tensor."""
    tensor = output[0] if isinstance(output, tuple) else output
    return tensor.float().flatten(0, -2) if torch.is_tensor(tensor) else None


def _adding_up(candidates: Iterable[tuple], change_TD, rounding) -> tuple | None:
    """The candidate whose tensors add up to a change, as closely as the model's own `rounding` allows; None without one."""
    errors = {candidate: (change_TD - sum(candidate)).norm() for candidate in candidates}
    best = min(errors, key=errors.get, default=None)
    return best if errors and errors[best] <= TOLERANCE * change_TD.norm() + rounding else None


def _addition(before_TD, after_TD) -> Addition:
    added_TD = after_TD - before_TD
    return Addition(added_TD.norm(dim=-1), after_TD.norm(dim=-1), F.cosine_similarity(before_TD, after_TD))
