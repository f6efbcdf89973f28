"""What a model did with a text: the experts of every token and what every head looked at, for any transformers MoE."""

import copy
import threading
import weakref
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property

import torch

from deepseek.text import prompt_ids, token_texts


@dataclass
class Routing:
    """Experts of one MoE layer: `indices` (tokens, K) and `weights` (tokens, K), the most heavily weighted first."""

    layer: int
    experts: int
    indices: torch.Tensor
    weights: torch.Tensor


@dataclass
class Lens:
    """What each layer would say next (nostalgebraist's logit lens, 2020): its output through the final norm and head.

    Row 0 is the embedding, row i the output of layer i - 1, the last row the model's own answer; columns are tokens.
    """

    choices: torch.Tensor  # (layers + 1, tokens) int64: the most likely next token
    probabilities: torch.Tensor  # (layers + 1, tokens) float32: that token's
    texts: list[list[str]]  # the choices as text

    @property
    def first_lead(self) -> list[int]:
        """For each token the first row whose choice is the model's own."""
        return (self.choices == self.choices[-1]).int().argmax(0).tolist()


@dataclass
class Trace:
    """A text seen through a model. `routing` has one entry a MoE layer, none for a dense model."""

    ids: list[int]
    tokens: list[str]
    routing: list[Routing]
    probabilities: list[float | None]  # of each token given those before it; None for the first
    _model: object = field(repr=False)
    _tokenizer: object = field(repr=False)

    def attention(self, layer: int) -> torch.Tensor:
        """Attention weights of one layer, float32 (heads, tokens, tokens): row i is what token i looked at."""
        if not 0 <= layer < len(self._attentions):
            raise ValueError(f"layer is {layer}; it must be from 0 to {len(self._attentions) - 1}.")
        return self._attentions[layer][0].float()

    @torch.inference_mode()
    def lens(self) -> Lens:
        """The logit lens of the text. Raises ValueError for a model whose final norm is not where it is looked for."""
        model = self._model
        norm = getattr(getattr(model, model.base_model_prefix), "norm", None)
        if norm is None:
            raise ValueError(f"{type(model).__name__} has no final norm under the name it is looked for, `norm`.")
        output = model(torch.tensor([self.ids], device=model.device), use_cache=False, output_hidden_states=True)
        *inner, _ = output.hidden_states
        head = model.get_output_embeddings()
        choices, probabilities = [], []
        for logits in (*(head(norm(hidden))[0] for hidden in inner), output.logits[0]):
            best = logits.float().softmax(-1).max(-1)
            choices.append(best.indices)
            probabilities.append(best.values)
        choices = torch.stack(choices).cpu()
        texts = [[self._tokenizer.decode([token]) for token in row] for row in choices.tolist()]
        return Lens(choices, torch.stack(probabilities).cpu(), texts)

    @cached_property
    def _attentions(self):
        with torch.inference_mode():
            ids = torch.tensor([self.ids], device=self._model.device)
            return eager_twin(self._model)(ids, output_attentions=True, use_cache=False).attentions


_recorder: ContextVar[dict | None] = ContextVar("routing", default=None)
_hooked, _hooking = weakref.WeakSet(), threading.Lock()
_twins = weakref.WeakKeyDictionary()


def routers(model) -> dict:
    """{layer index: router module} of a transformers model, found by the class that transformers records itself."""
    recorded = {}
    for part in (getattr(model, model.base_model_prefix, model), model):
        recorded |= getattr(part, "_can_record_outputs", None) or {}
    spec = recorded.get("router_logits")
    kind = getattr(spec, "target_class", spec)
    if kind is None:
        return {}
    named = ((name.split("."), module) for name, module in model.named_modules() if isinstance(module, kind))
    return {next(int(part) for part in parts if part.isdigit()): module for parts, module in named}


@contextmanager
def recorded_routing(model):
    """Within it, every router that runs in this thread leaves (weights, indices) in the dict that it yields, by layer.

    The hooks are set once a model and see only the recorder of their own thread, so texts traced at once never mix.
    """
    with _hooking:
        if model not in _hooked:
            for layer, module in routers(model).items():
                module.register_forward_hook(lambda _, __, output, layer=layer: _keep(layer, output))
            _hooked.add(model)
    token = _recorder.set({})
    try:
        yield _recorder.get()
    finally:
        _recorder.reset(token)


def _keep(layer: int, output) -> None:
    record = _recorder.get()
    if record is not None:
        logits, weights, indices = output
        record[layer] = (weights, indices, logits.shape[-1])


def strongest_first(weights, indices):
    """Both (tokens, K), sorted by weight, as float32 and int64."""
    order = weights.argsort(-1, descending=True)
    return weights.gather(-1, order).float(), indices.gather(-1, order)


def eager_twin(model):
    """A second model of the same tensors that computes attention weights; the first one goes on undisturbed."""
    if model not in _twins:
        shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
        twin = copy.deepcopy(model, shared)
        twin.set_attn_implementation("eager")
        _twins[model] = twin
    return _twins[model]


def context_length(model) -> int | None:
    """Tokens that the model was made to read."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


@torch.inference_mode()
def trace(model, tokenizer, text) -> Trace:
    """One pass over `text` (or a list of ids). Raises ValueError for an empty text or one past the model's context."""
    ids = prompt_ids(tokenizer, text, context_length(model), room=0, what="text")
    with recorded_routing(model) as record:
        logits = model(torch.tensor([ids], device=model.device), use_cache=False).logits[0]
    routing = []
    for layer, (weights, indices, experts) in sorted(record.items()):
        weights, indices = strongest_first(weights, indices)
        routing.append(Routing(layer, experts, indices, weights))
    chosen = logits[:-1].float().softmax(-1).gather(1, torch.tensor(ids[1:], device=logits.device)[:, None])
    return Trace(ids, token_texts(tokenizer, ids), routing, [None, *chosen[:, 0].tolist()], model, tokenizer)
