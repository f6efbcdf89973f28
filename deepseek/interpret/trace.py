"""What a model did with a text: the experts of every token and what every head looked at, for any transformers MoE."""

import copy
import threading
import weakref
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from transformers import DynamicCache

from deepseek.data.tokenizer import encode_prompt, token_texts
from deepseek.model.config import kv_cache_elements_per_token

FINAL_NORM_NAMES = ("norm", "ln_f", "final_layernorm", "final_layer_norm", "embedding_norm")  # what families call it
MAX_ATTENTION_TOKENS = 512  # tokens whose attention is computed at once; of more the caller takes a range


@dataclass
class Routing:
    """Experts of one MoE layer: `indices` (tokens, K) and `weights` (tokens, K), the most heavily weighted first.

    `scores` (tokens, experts) are the router's of all experts, as `router_scores` has them.
    """

    layer: int
    experts: int
    indices: torch.Tensor
    weights: torch.Tensor
    scores: torch.Tensor


@dataclass
class LogitLens:
    """What each layer would say next (nostalgebraist's logit lens, 2020): its output through the final norm and head.

    Row 0 is the embedding, row i the output of layer i - 1, the last row the model's own answer; columns are tokens.
    """

    choices: torch.Tensor  # (layers + 1, tokens) int64: the most likely next token
    probabilities: torch.Tensor  # (layers + 1, tokens) float32: that token's
    texts: list[list[str]]  # the choices as text

    @property
    def first_match_layer(self) -> list[int]:
        """For each token the first row whose choice is the model's own."""
        return (self.choices == self.choices[-1]).int().argmax(0).tolist()


@dataclass
class CacheStats:
    """What attention keeps of the tokens it has read, and how large the latents in it are.

    Sizes are Euclidean norms of c_kv, (layers, tokens) float32, None for a model that has no latents: `raw` as it comes
    out of W_DKV, `kept` after the RMSNorm that follows, which is what lies in the cache.
    """

    bytes: int  # of one token, in all layers
    uncompressed: (
        int  # of one token if keys and values of the same heads were kept; the same for a model that does that
    )
    raw: torch.Tensor | None = None
    kept: torch.Tensor | None = None


@dataclass
class Trace:
    """A text seen through a model. `routing` has one entry a MoE layer, none for a dense model."""

    ids: list[int]
    tokens: list[str]
    routing: list[Routing]
    probabilities: list[float | None]  # of each token given those before it; None for the first
    _model: object = field(repr=False)
    _tokenizer: object = field(repr=False)
    _hidden: tuple = field(repr=False)  # into every layer, then the last one's normed output; each (1, tokens, width)
    _answers: tuple = field(repr=False)  # the most likely next tokens (tokens,), and their probabilities
    _attentions: dict = field(default_factory=dict, init=False, repr=False)

    def attention(self, layer: int, first: int = 0, last: int | None = None) -> torch.Tensor:
        """Attention weights of one layer, float32 (heads, last - first, last): what tokens first to last - 1 looked at.

        Of all tokens unless told. Raises ValueError for a layer or a range that is not there, or one of more than
        MOST_ATTENTION tokens.
        """
        last = len(self.ids) if last is None else last
        if not 0 <= layer < self._model.config.num_hidden_layers:
            raise ValueError(f"layer is {layer}; it must be from 0 to {self._model.config.num_hidden_layers - 1}.")
        if not 0 <= first < last <= len(self.ids):
            raise ValueError(f"tokens are {first} to {last}; they must be a range within 0 to {len(self.ids)}.")
        if last - first > MAX_ATTENTION_TOKENS:
            raise ValueError(
                f"tokens are {first} to {last}; their attention is computed for {MAX_ATTENTION_TOKENS} at most."
            )
        if (first, last) not in self._attentions:
            self._attentions = {(first, last): self._attend(first, last)}  # one range at a time: they are large
        return self._attentions[first, last][layer][0].float()

    @torch.inference_mode()
    def _attend(self, first: int, last: int) -> tuple:
        """Attention weights of every layer for a range of tokens; those before it are only read into the cache."""
        ids, options = torch.tensor([self.ids], device=self._model.device), dict(use_cache=False)
        if first:
            options = dict(past_key_values=DynamicCache(), use_cache=True)
            self._model(ids[:, :first], logits_to_keep=1, **options)
        twin = eager_copy(self._model)
        return twin(ids[:, first:last], logits_to_keep=1, output_attentions=True, **options).attentions

    @torch.inference_mode()
    def lens(self) -> LogitLens:
        """The logit lens of the text. Raises ValueError for a model whose final norm is not where it is looked for."""
        model = self._model
        inner = getattr(model, model.base_model_prefix)
        norm = next((getattr(inner, name) for name in FINAL_NORM_NAMES if hasattr(inner, name)), None)
        if norm is None:
            raise ValueError(
                f"{type(model).__name__} has no final norm that is called {' or '.join(FINAL_NORM_NAMES)}."
            )
        head = model.get_output_embeddings()
        answers = [top_prediction(head(norm(hidden))[0]) for hidden in self._hidden[:-1]] + [self._answers]
        choices, probabilities = (torch.stack(rows).cpu() for rows in zip(*answers))
        texts = {token: self._tokenizer.decode([token]) for token in choices.unique().tolist()}
        return LogitLens(choices, probabilities, [[texts[token] for token in row] for row in choices.tolist()])

    @torch.inference_mode()
    def cache(self) -> CacheStats:
        """Bytes that the cache takes for a token, and the norms of this text's latents."""
        model = self._model
        token = model.dtype.itemsize * model.config.num_hidden_layers
        kept, uncompressed = (numbers * token for numbers in kv_cache_elements_per_token(model.config))
        if not getattr(model.config, "kv_lora_rank", None):
            return CacheStats(kept, uncompressed)
        raw, normed = [], []
        for layer, hidden in zip(getattr(model, model.base_model_prefix).layers, self._hidden):
            attention = layer.self_attn
            latent = attention.kv_a_proj_with_mqa(layer.input_layernorm(hidden))[0, :, : model.config.kv_lora_rank]
            raw.append(latent.float().norm(dim=-1))
            normed.append(attention.kv_a_layernorm(latent).float().norm(dim=-1))
        return CacheStats(kept, uncompressed, torch.stack(raw).cpu(), torch.stack(normed).cpu())


_recorder: ContextVar[dict | None] = ContextVar("routing", default=None)
_hooked, _hooking = weakref.WeakSet(), threading.Lock()
_twins = weakref.WeakKeyDictionary()


def routers(model) -> dict:
    """{layer index: router module} of a transformers model, found by the class that transformers records itself.

    Those of a few families, such as Llama 4, answer otherwise than (logits, weights, indices) and are left out.
    """
    recorded = {}
    for part in (getattr(model, model.base_model_prefix, model), model):
        recorded |= getattr(part, "_can_record_outputs", None) or {}
    spec = recorded.get("router_logits")
    kind = getattr(spec, "target_class", spec)
    if not isinstance(kind, type) or getattr(spec, "index", 0) != 0:
        return {}
    named = ((name.split("."), module) for name, module in model.named_modules() if isinstance(module, kind))
    return {next(int(part) for part in parts if part.isdigit()): module for parts, module in named}


def router_scores(router, logits):
    """What a router weighs its experts by, (tokens, experts) float32, each from 0 to 1.

    Sigmoids where it has a correction bias, as DeepSeek-V3's, which chooses and does not weigh; else a softmax.
    """
    return logits.float().sigmoid() if hasattr(router, "e_score_correction_bias") else logits.float().softmax(-1)


@contextmanager
def recorded_routing(model):
    """Within it, every router that runs in this thread leaves (weights, indices, logits) in the dict it yields, by layer.

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
        record[layer] = (weights, indices, logits)


def strongest_first(weights, indices):
    """Both (tokens, K), sorted by weight, as float32 and int64."""
    order = weights.argsort(-1, descending=True)
    return weights.gather(-1, order).float(), indices.gather(-1, order)


def eager_copy(model):
    """A second model of the same tensors that computes attention weights; the first one goes on undisturbed."""
    if model not in _twins:
        shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
        twin = copy.deepcopy(model, shared)
        twin.set_attn_implementation("eager")
        _twins[model] = twin
    return _twins[model]


def top_prediction(logits) -> tuple[torch.Tensor, torch.Tensor]:
    """(token ids, probabilities), both (tokens,), of logits (tokens, vocabulary)."""
    highest, choices = logits.float().max(-1)
    return choices, (highest - logits.float().logsumexp(-1)).exp()


def context_length(model) -> int | None:
    """Tokens that the model was made to read."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


@torch.inference_mode()
def trace(model, tokenizer, text) -> Trace:
    """One pass over `text` (or a list of ids). Raises ValueError for an empty text or one past the model's context."""
    ids = encode_prompt(tokenizer, text, context_length(model), room=0, what="text")
    with recorded_routing(model) as record:
        output = model(torch.tensor([ids], device=model.device), use_cache=False, output_hidden_states=True)
    logits = output.logits[0].float()
    routing, router = [], routers(model)
    for layer, (weights, indices, router_logits) in sorted(record.items()):
        weights, indices = strongest_first(weights, indices)
        scores = router_scores(router[layer], router_logits)
        routing.append(Routing(layer, scores.shape[-1], indices, weights, scores))
    following = torch.tensor(ids[1:], device=logits.device)[:, None]
    chosen = (logits[:-1].gather(1, following)[:, 0] - logits[:-1].logsumexp(-1)).exp()
    probabilities = [None, *chosen.tolist()]
    seen = output.hidden_states, top_prediction(logits)
    return Trace(ids, token_texts(tokenizer, ids), routing, probabilities, model, tokenizer, *seen)
