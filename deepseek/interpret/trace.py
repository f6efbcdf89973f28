"""One traced pass over a text: routing, attention, logit lens and KV cache, for any transformers causal model."""

import copy
import threading
import weakref
from collections.abc import Callable
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial

import torch
from transformers import DynamicCache

from deepseek.data.tokenizer import encode_prompt, token_texts
from deepseek.model.config import kv_cache_elements_per_token

FINAL_NORM_NAMES = ("norm", "ln_f", "final_layernorm", "final_layer_norm", "embedding_norm")  # of the model families
MAX_ATTENTION_TOKENS = 512  # query tokens per attention() call


@dataclass
class Routing:
    """Top-k routing of one MoE layer: `indices` and `weights` (tokens, K), the largest weight first.

    `scores` (tokens, experts) are the router's scores of all experts, as in `router_scores`.
    """

    layer: int
    num_experts: int
    indices: torch.Tensor
    weights: torch.Tensor
    scores: torch.Tensor


@dataclass
class LogitLens:
    """The logit lens (nostalgebraist, 2020): each layer's output through the final norm and the output head.

    Row 0 is the embedding, row i the output of layer i - 1, the last row the model's own prediction; columns are tokens.
    """

    choices: torch.Tensor  # (layers + 1, tokens) int64, the most likely next token
    probabilities: torch.Tensor  # (layers + 1, tokens) float32, its probability
    texts: list[list[str]]  # `choices`, decoded

    @property
    def first_match_layer(self) -> list[int]:
        """For each token the first row whose choice is the model's own."""
        return (self.choices == self.choices[-1]).int().argmax(0).tolist()


@dataclass
class CacheStats:
    """Size of the KV cache and, for latent attention, the Euclidean norms of the latents c_kv, (layers, tokens) float32.

    Norms are None without latent attention: `raw_norms` of W_DKV's output, `cached_norms` after the RMSNorm behind it.
    """

    bytes: int  # per token, all layers
    uncompressed: int  # per token with keys and values of the same heads; equal to `bytes` without latent attention
    raw_norms: torch.Tensor | None = None
    cached_norms: torch.Tensor | None = None


@dataclass
class Trace:
    """A text as the model processed it. `routing` has one entry per MoE layer, none for a dense model."""

    ids: list[int]
    tokens: list[str]
    routing: list[Routing]
    probabilities: list[float | None]  # of each token given those before it; None for the first
    _model: object = field(repr=False)
    _tokenizer: object = field(repr=False)
    _hidden_states: tuple = field(repr=False)  # each layer's input, then the normed output; each (1, tokens, width)
    _predictions: tuple = field(repr=False)  # `top_prediction` of the logits
    _attentions: dict = field(default_factory=dict, init=False, repr=False)

    @torch.inference_mode()
    def attention(self, layer: int, first: int = 0, last: int | None = None) -> torch.Tensor:
        """Attention weights of one layer, float32 (heads, last - first, last), for query tokens first to last - 1.

        The default range is the whole text. Raises ValueError for a layer or range outside the model or text, and for a
        range of more than MAX_ATTENTION_TOKENS.
        """
        last = len(self.ids) if last is None else last
        if not 0 <= layer < self._model.config.num_hidden_layers:
            raise ValueError(f"layer is {layer}; it must be from 0 to {self._model.config.num_hidden_layers - 1}.")
        if not 0 <= first < last <= len(self.ids):
            raise ValueError(f"tokens are {first} to {last}; they must be a range within 0 to {len(self.ids)}.")
        if last - first > MAX_ATTENTION_TOKENS:
            raise ValueError(f"tokens are {first} to {last}; a range may hold {MAX_ATTENTION_TOKENS} at most.")
        if (first, last) not in self._attentions:
            ids, options = torch.tensor([self.ids], device=self._model.device), dict(use_cache=False)
            if first:  # the tokens before the range only fill the cache
                options = dict(past_key_values=DynamicCache(), use_cache=True)
                self._model(ids[:, :first], logits_to_keep=1, **options)
            output = eager_copy(self._model)(ids[:, first:last], logits_to_keep=1, output_attentions=True, **options)
            self._attentions = {(first, last): output.attentions}  # only the last range: it is large
        return self._attentions[first, last][layer][0].float()

    @torch.inference_mode()
    def lens(self) -> LogitLens:
        """The logit lens of the text. Raises ValueError if the final norm has none of the names FINAL_NORM_NAMES."""
        model = self._model
        inner = getattr(model, model.base_model_prefix)
        norm = next((getattr(inner, name) for name in FINAL_NORM_NAMES if hasattr(inner, name)), None)
        if norm is None:
            raise ValueError(f"{type(model).__name__} has no final norm named {' or '.join(FINAL_NORM_NAMES)}.")
        head = model.get_output_embeddings()
        rows = [top_prediction(head(norm(hidden))[0]) for hidden in self._hidden_states[:-1]] + [self._predictions]
        choices, probabilities = (torch.stack(columns).cpu() for columns in zip(*rows))
        texts = {token: self._tokenizer.decode([token]) for token in choices.unique().tolist()}
        return LogitLens(choices, probabilities, [[texts[token] for token in row] for row in choices.tolist()])

    @torch.inference_mode()
    def cache(self) -> CacheStats:
        """Bytes of KV cache per token, and the norms of this text's latents."""
        model = self._model
        scale = model.dtype.itemsize * model.config.num_hidden_layers
        stats = CacheStats(*(elements * scale for elements in kv_cache_elements_per_token(model.config)))
        rank = getattr(model.config, "kv_lora_rank", None)
        if rank:
            raw, cached = [], []
            for layer, hidden in zip(getattr(model, model.base_model_prefix).layers, self._hidden_states):
                attention = layer.self_attn
                latent = attention.kv_a_proj_with_mqa(layer.input_layernorm(hidden))[0, :, :rank]
                raw.append(latent.float().norm(dim=-1))
                cached.append(attention.kv_a_layernorm(latent).float().norm(dim=-1))
            stats.raw_norms, stats.cached_norms = torch.stack(raw).cpu(), torch.stack(cached).cpu()
        return stats


_record: ContextVar[dict | None] = ContextVar("routing", default=None)
rerouting: ContextVar[Callable | None] = ContextVar("rerouting", default=None)  # (router, output) -> another output
_hooked_models, _hook_lock = weakref.WeakSet(), threading.Lock()
_eager_copies = weakref.WeakKeyDictionary()


def routers(model) -> dict:
    """{layer index: router module} of a transformers model, by the class that transformers records as "router_logits".

    Routers that do not return (logits, weights, indices), such as Llama 4's, are left out.
    """
    outputs = {}
    for part in (getattr(model, model.base_model_prefix, model), model):
        outputs |= getattr(part, "_can_record_outputs", None) or {}
    spec = outputs.get("router_logits")
    router_class = getattr(spec, "target_class", spec)
    if not isinstance(router_class, type) or getattr(spec, "index", 0) != 0:
        return {}
    modules = ((name, module) for name, module in model.named_modules() if isinstance(module, router_class))
    return {next(int(part) for part in name.split(".") if part.isdigit()): module for name, module in modules}


def hook_routers(model) -> None:
    """Has every router of a model run under `rerouting` and `recorded_routing`, which records what then really ran."""
    with _hook_lock:
        if model not in _hooked_models:
            for layer, router in routers(model).items():
                router.register_forward_hook(partial(_after_router, layer), prepend=True)  # before transformers' own
            _hooked_models.add(model)


def _after_router(layer: int, router, _input, output):
    if reroute := rerouting.get():
        output = reroute(router, output)
    record = _record.get()
    if record is not None:
        logits, weights, indices = output
        record[layer] = (weights, indices, logits)
    return output


def router_scores(router, logits):
    """Scores (tokens, experts) float32 in [0, 1] that a router weighs its experts by.

    A sigmoid for routers with a correction bias, as DeepSeek-V3's (the bias only selects experts); else a softmax.
    """
    return logits.float().sigmoid() if hasattr(router, "e_score_correction_bias") else logits.float().softmax(-1)


@contextmanager
def recorded_routing(model):
    """Yields a dict that every router run in this thread fills: {layer: (weights, indices, logits)}.

    A context variable separates threads, so concurrent traces of one model never mix.
    """
    hook_routers(model)
    token = _record.set({})
    try:
        yield _record.get()
    finally:
        _record.reset(token)


def eager_copy(model):
    """A copy of the model on the same tensors with eager attention, which returns its weights; `model` stays as it is."""
    if model not in _eager_copies:
        tensors = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
        eager = copy.deepcopy(model, tensors)
        eager.set_attn_implementation("eager")
        _eager_copies[model] = eager
    return _eager_copies[model]


def top_prediction(logits) -> tuple[torch.Tensor, torch.Tensor]:
    """The most likely token and its probability, both (tokens,), of logits (tokens, vocabulary)."""
    highest, choices = logits.float().max(-1)
    return choices, (highest - logits.float().logsumexp(-1)).exp()


def context_length(model) -> int | None:
    """Maximum number of tokens in a sequence, None if the configuration names none."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


@torch.inference_mode()
def trace(model, tokenizer, text) -> Trace:
    """One forward pass over `text` (a string or token ids). Raises ValueError for an empty text or one past the context."""
    ids = encode_prompt(tokenizer, text, context_length(model), min_new_tokens=0, name="text")
    with recorded_routing(model) as record:
        output = model(torch.tensor([ids], device=model.device), use_cache=False, output_hidden_states=True)
    logits = output.logits[0].float()
    routing, router = [], routers(model)
    for layer, (weights, indices, router_logits) in sorted(record.items()):
        order, scores = weights.argsort(-1, descending=True), router_scores(router[layer], router_logits)
        weights, indices = weights.gather(-1, order).float(), indices.gather(-1, order)
        routing.append(Routing(layer, scores.shape[-1], indices, weights, scores))
    next_ids = torch.tensor(ids[1:], device=logits.device)[:, None]
    log_probs = logits[:-1].gather(1, next_ids)[:, 0] - logits[:-1].logsumexp(-1)
    probabilities = [None, *log_probs.exp().tolist()]
    hidden = output.hidden_states, top_prediction(logits)
    return Trace(ids, token_texts(tokenizer, ids), routing, probabilities, model, tokenizer, *hidden)
