"""The mixture-of-experts layers of any transformers model: found in its modules, recorded and steered while they run.

A layer's router is the module called `router` or `gate` beside its `experts`. What the experts module is given, indices and
weights, is what really runs; a router's logits do not tell (transformers issue 48911). A few families give their experts
sorted tokens instead; there the router's own choice is recorded.

Shape letters: T tokens, E experts, K experts per token.
"""

import re
import threading
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from deepseek.interpret.model_parts import decoder, is_hooked, layer_index
from deepseek.interpret.router_watch import RouterWatch

ROUTER_NAMES = ("router", "gate")
TOP_K_NAMES = ("num_experts_per_tok", "top_k_experts", "moe_topk")  # in a configuration, for modules that hold no top_k
OTHER_PARTS = re.compile("vision|attention|attn")  # whose experts are not those of the feed-forward network
SHARED_NAME = re.compile(r"shared_(experts?|mlp)")


@dataclass(eq=False)
class MoELayer:
    """The experts of one decoder layer. `num_experts` counts all that the router chooses from, `top_k` those that run."""

    router: nn.Module
    experts: nn.Module | None  # None where the layer itself runs the experts
    num_experts: int
    top_k: int
    shared: list[nn.Module]  # experts that every token runs besides

    @property
    def has_shared(self) -> bool:
        return len(self.shared) > 0

    @property
    def ranks(self) -> bool:
        """Whether the router ranks the experts; False if it looks them up in a table by token id."""
        return all(buffer.is_floating_point() for buffer in self.router.buffers())


@dataclass
class RanExperts:
    """What ran in one MoE layer."""

    indices: torch.Tensor  # (T, K) int64
    weights: torch.Tensor  # (T, K)
    scores: torch.Tensor  # (T, E) float32, what the router weighs every expert by
    ranks: (
        torch.Tensor
    )  # (T, E) float32, what it ranks them by to choose: with biases, and -inf outside the best groups
    scoring: str | None  # "softmax" or "sigmoid", how it gets scores from logits; None if otherwise


# Context variables separate threads: the hooks stay on a model that others run at the same time.
_record: ContextVar[dict[int, RanExperts] | None] = ContextVar("record of experts", default=None)
_biases: ContextVar[dict[int, torch.Tensor | Callable] | None] = ContextVar("biases on experts", default=None)
_without_shared: ContextVar[dict[int, int] | None] = ContextVar("layers without their shared experts", default=None)
_replaced: ContextVar[tuple | None] = ContextVar("replaced experts of one token", default=None)
_running = threading.local()  # .watch: the RouterWatch of the router that runs in this thread
_hook_lock = threading.Lock()


def moe_layers(model) -> dict[int, MoELayer]:
    """{decoder layer: its MoELayer} of a transformers model; empty for a dense one."""
    found, parts, config = {}, dict(decoder(model).named_modules()), model.config.get_text_config()
    for name, block in parts.items():
        index, experts = layer_index(name), _child(block, "experts")
        router = next(filter(None, (_child(block, each) for each in ROUTER_NAMES)), None)
        if index is None or OTHER_PARTS.search(name) or not router or not (experts or hasattr(router, "num_experts")):
            continue
        counts = [getattr(part, "num_experts", 0) for part in (router, experts)]
        counts += [weight.shape[0] for weight in _weights(experts) if len(weight.shape) == 3]
        top_k = [getattr(part, "top_k", None) for part in (router, block)]
        top_k += [getattr(config, each, None) for each in TOP_K_NAMES]
        shared = [part for each, part in parts.items()
                  if layer_index(each) == index and SHARED_NAME.fullmatch(each.rpartition(".")[2])]  # fmt: skip
        found[index] = MoELayer(router, experts, max(counts), next(filter(None, top_k)), shared)
    return found


def _child(module, name: str) -> nn.Module | None:
    part = getattr(module, name, None)
    return part if isinstance(part, nn.Module) else None


def _weights(experts: nn.Module | None) -> list:
    """The weights of an experts module, in memory or mapped from their files."""
    parts = experts.modules() if experts else ()
    found = [weight for part in parts for weight in (*part._parameters.values(), *vars(part).values())]
    return [weight for weight in found if hasattr(weight, "numel")]


def why_no_experts(model) -> str:
    """A sentence on a model for which `moe_layers` is empty."""
    other = {type(module).__name__ for module in decoder(model).modules() if type(module).__name__.endswith("MoE")}
    if other:
        return f"This model's experts, in {', '.join(sorted(other))}, are rows of a matrix, which are neither traced nor ablated."
    return "This model is dense: it has no experts."


def parameter_counts(model) -> tuple[int, int]:
    """(all parameters, parameters active for one token): of the experts of a layer, the fraction top_k / num_experts."""
    mapped = getattr(model, "mapped_experts", {})  # those that stay in their files
    total, idle = sum(weight.numel() for weight in (*model.parameters(), *mapped.values())), 0.0
    for layer in moe_layers(model).values():
        size = sum(weight.numel() for weight in _weights(layer.experts))
        idle += size * (1 - layer.top_k / layer.num_experts)
    return total, round(total - idle)


@contextmanager
def recorded_experts(model):
    """Yields a dict that every MoE layer run in this thread fills: {layer: RanExperts}."""
    with _set(model, _record, {}):
        yield _record.get()


@contextmanager
def biased_experts(model, biases: dict[int, torch.Tensor | Callable]):
    """Within it, and in this thread, experts are ranked with `biases` {layer: (E,)}: -inf bars, inf forces, 0 changes nothing.

    A number from -1 to 1 steers by that strength (`router_watch.steered`). Biases may differ from token to token, (T, E), or
    be a function of the router's ranks (T, E) that returns them. Replaces an outer context's. Raises ValueError when a layer
    runs whose router does not rank its experts.
    """
    with _set(model, _biases, biases):
        yield


@contextmanager
def without_shared_experts(model, layers: Iterable[int], more_routed: int = 0):
    """Within it, and in this thread, the shared experts of `layers` add nothing; a layer that has none is unaffected.

    `more_routed` experts run for every token besides its top-k, in their place: those that its router ranks next, weighed by
    the router's own rule. Raises ValueError when a layer runs that weighs no more than its own number.
    """
    own = moe_layers(model)
    with _set(model, _without_shared, {index: more_routed for index in layers if own[index].shared}):
        yield


@contextmanager
def replaced_experts(model, layer: int, token: int, indices_K: torch.Tensor, weights_K: torch.Tensor):
    """Within it, and in this thread, one layer runs these experts with these weights for one token, in place of its own choice.

    `token` counts the rows of the batch. A layer whose experts are not given indices and weights runs as it is.
    """
    with _set(model, _replaced, (layer, token, indices_K, weights_K)):
        yield


@contextmanager
def _set(model, variable: ContextVar, value):
    _hook(model)
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)
        _stop_watch()  # of a forward pass that failed between a router and its experts


def _hook(model) -> None:
    """Hooks every MoE layer once."""
    with _hook_lock:
        for index, layer in moe_layers(model).items():
            if is_hooked(layer.router._forward_pre_hooks, _before_router):
                continue
            for shared in layer.shared:
                shared.register_forward_hook(partial(_after_shared, index))
            layer.router.register_forward_pre_hook(partial(_before_router, index, layer.num_experts, layer.top_k))
            if layer.experts is None:
                layer.router.register_forward_hook(partial(_after_own_router, index))
            else:
                layer.router.register_forward_hook(_after_router)
                layer.experts.register_forward_pre_hook(partial(_before_experts, index), with_kwargs=True)


def _after_shared(index: int, _shared, _inputs, output):
    return torch.zeros_like(output) if index in (_without_shared.get() or {}) else None


def _before_router(index: int, num_experts: int, top_k: int, _router, _inputs) -> None:
    bias, more = (_biases.get() or {}).get(index), (_without_shared.get() or {}).get(index, 0)
    if bias is not None or more or _record.get() is not None:
        _running.watch = RouterWatch(num_experts, top_k, bias, more)
        _running.watch.start()


def _after_router(_router, _inputs, _output) -> None:
    watch = getattr(_running, "watch", None)
    if watch and watch.indices is not None:  # else the layer itself chooses, before it runs the experts
        watch.stop()


def _after_own_router(index: int, _router, _inputs, _output) -> None:
    _keep(index, None)


def _before_experts(index: int, _experts, arguments, keywords) -> tuple | None:
    tensors = [value for value in (*arguments, *keywords.values()) if torch.is_tensor(value)]
    indices = next((tensor for tensor in tensors if not tensor.is_floating_point()), None)
    weights = [tensor for tensor in tensors if tensor.is_floating_point() and indices is not None]
    given = next(((indices, tensor) for tensor in weights if tensor.shape == indices.shape), None)
    if indices is not None and given is None and (_without_shared.get() or {}).get(index):
        raise ValueError(
            f"layer {index} weighs no more experts than its own number, so no others can run in their place."
        )
    layer, token, *row = _replaced.get() or (None, None)
    if given is None or layer != index:
        _keep(index, given)
        return None
    changed = tuple(tensor.clone() for tensor in given)
    for tensor, new_K in zip(changed, row):
        tensor.view(-1, tensor.shape[-1])[token] = new_K.to(tensor)
    _keep(index, changed)
    swap = {id(old): new for old, new in zip(given, changed)}
    return (
        tuple(swap.get(id(value), value) for value in arguments),
        {name: swap.get(id(value), value) for name, value in keywords.items()},
    )


def _keep(index: int, given: tuple[torch.Tensor, torch.Tensor] | None) -> None:
    """Records a layer's experts: those that its module was given, (indices, weights), or else the watched choice."""
    watch, record = _stop_watch(), _record.get()
    if watch and watch.bias is not None and watch.indices is None:
        raise ValueError(f"layer {index} does not rank its experts, so none can be ablated or forced there.")
    if record is None or not watch:
        return
    indices, weights = given or (watch.indices, watch.weights)
    indices, weights = indices.flatten(0, -2), weights.flatten(0, -2)
    scores = watch.scores
    if scores is None:
        scores = torch.zeros(len(indices), watch.num_experts).scatter(1, indices.cpu(), weights.float().cpu())
    ranks = scores if watch.ranks is None else watch.ranks
    columns = (..., slice(watch.num_experts))  # a router may have one more, for none
    record[index] = RanExperts(indices, weights, scores[columns], ranks[columns], watch.scoring)


def _stop_watch() -> RouterWatch | None:
    """Ends the watch of this thread and returns it, None if there was none."""
    watch, _running.watch = getattr(_running, "watch", None), None
    if watch:
        watch.stop()
    return watch
