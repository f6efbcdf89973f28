"""One traced pass over a text: routing, attention, logit lens and KV cache, for any transformers causal model."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch

from deepseek.data.tokenizer import encode_prompt, token_texts
from deepseek.interpret.attention import attention_layers, attention_maps
from deepseek.interpret.kv_cache import LatentNorms, cache_elements, recorded_latents
from deepseek.interpret.logit_lens import lens_logits, recorded_layers
from deepseek.interpret.moe_layers import recorded_experts
from deepseek.interpret.residual_stream import LayerResidual, measure_residual_stream

MAX_ATTENTION_TOKENS = 512  # query tokens per attention() call
NUM_LOGITS = 10  # kept of each token's prediction


@dataclass
class Routing:
    """Top-k routing of one MoE layer: `indices` and `weights` (tokens, K), the largest weight first.

    Both are what the experts were given. `scores` and `ranks` (tokens, experts) float32 are what the router weighs all experts
    by and what it ranks them by: with its biases, and -inf outside the best groups.
    """

    layer: int
    num_experts: int
    indices: torch.Tensor
    weights: torch.Tensor
    scores: torch.Tensor
    ranks: torch.Tensor
    scoring: str | None  # "softmax" or "sigmoid", how the router gets scores from logits; None if otherwise


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

    Norms are None without latent attention: `raw_norms` of W_DKV's output, `cached_norms` after the RMSNorm behind it, both
    of the `latent_layers`.
    """

    bytes: int  # per token, all layers
    uncompressed: int  # per token with keys and values of the same heads; equal to `bytes` without latent attention
    raw_norms: torch.Tensor | None = None
    cached_norms: torch.Tensor | None = None
    latent_layers: list[int] = field(default_factory=list)


class TopLogits(NamedTuple):
    """The largest logits of every token's prediction, as the model gives them: the largest first."""

    ids: torch.Tensor  # (tokens, count) int64, tokens of the vocabulary
    logits: torch.Tensor  # (tokens, count) float32
    log_normalizers: torch.Tensor  # (tokens,) float32, log sum exp of all logits

    @property
    def probabilities(self) -> torch.Tensor:
        """Of `ids`, (tokens, count) float32."""
        return (self.logits - self.log_normalizers[:, None]).exp()


@dataclass
class Trace:
    """A text as the model processed it. `routing` has one entry per MoE layer, none for a dense model."""

    ids: list[int]
    tokens: list[str]
    routing: list[Routing]
    probabilities: list[float | None]  # of each token given those before it; None for the first
    model: object = field(repr=False)
    tokenizer: object = field(repr=False)
    hidden_states: tuple = field(repr=False)  # each layer's input, then the normed output; each (1, tokens, width)
    top_logits: TopLogits = field(repr=False)
    _outputs: list = field(repr=False)  # what each layer returned
    _latents: dict[int, LatentNorms] = field(repr=False)
    _attentions: dict = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def residual_stream(self) -> list[LayerResidual]:
        """What each layer added to the residual stream; takes one forward pass, when first used."""
        return measure_residual_stream(self.model, self.ids)

    def walk(self, position: int) -> dict:
        """One token's way through the whole model, as numbers: see `deepseek.interpret.walk.walk`.

        Raises ValueError for a position outside the text.
        """
        from deepseek.interpret.walk import walk  # which builds on this module

        return walk(self, position)

    @torch.inference_mode()
    def attention(self, layer: int, first: int = 0, last: int | None = None) -> torch.Tensor:
        """Attention weights of one layer, float32 (heads, last - first, last), for query tokens first to last - 1.

        The default range is the whole text. Raises ValueError for a layer or range outside the model or text, for a layer
        without attention, and for a range of more than MAX_ATTENTION_TOKENS.
        """
        last, num_layers = len(self.ids) if last is None else last, len(self._outputs)
        if not 0 <= layer < num_layers:
            raise ValueError(f"layer is {layer}; it must be from 0 to {num_layers - 1}.")
        if layer not in (layers := attention_layers(self.model)):
            those = f"layers {', '.join(map(str, layers))} do" if layers else "no layer of this model does"
            raise ValueError(f"layer is {layer}, which does not compute attention; {those}.")
        if not 0 <= first < last <= len(self.ids):
            raise ValueError(f"tokens are {first} to {last}; they must be a range within 0 to {len(self.ids)}.")
        if last - first > MAX_ATTENTION_TOKENS:
            raise ValueError(f"tokens are {first} to {last}; a range may hold {MAX_ATTENTION_TOKENS} at most.")
        if (first, last) not in self._attentions:  # only the last range is kept: it is large
            self._attentions = {(first, last): attention_maps(self.model, self.ids, first, last)}
        if layer not in self._attentions[first, last]:
            raise ValueError(f"layer is {layer}, which attends to blocks of tokens; there is no map by token.")
        return self._attentions[first, last][layer].float()

    @torch.inference_mode()
    def lens_logits(self, tokens: slice = slice(None), count: int = 1) -> list[TopLogits]:
        """The logit lens's `count` most likely next tokens at a slice of the text, one entry per row of `lens`."""
        rows = lens_logits(self.model, self.ids, self._outputs)
        return [top_logits(logits[tokens], count) for logits in rows]

    def lens(self) -> LogitLens:
        """The logit lens of the text."""
        predictions = [(row.ids[:, 0], row.probabilities[:, 0]) for row in self.lens_logits()]
        choices, probabilities = (torch.stack(columns).cpu() for columns in zip(*predictions))
        texts = {token: self.tokenizer.decode([token]) for token in choices.unique().tolist()}
        return LogitLens(choices, probabilities, [[texts[token] for token in row] for row in choices.tolist()])

    def cache(self) -> CacheStats:
        """Bytes of KV cache per token, and the norms of this text's latents."""
        sizes = [sum(elements) * self.model.dtype.itemsize for elements in zip(*cache_elements(self.model))]
        if not self._latents:
            return CacheStats(*sizes)
        raw, cached = (torch.stack(norms) for norms in zip(*self._latents.values()))
        return CacheStats(*sizes, raw, cached, list(self._latents))


def top_logits(logits, count: int = NUM_LOGITS) -> TopLogits:
    """The `count` largest of logits (tokens, vocabulary)."""
    highest, ids = logits.float().topk(min(count, logits.shape[-1]))
    return TopLogits(ids, highest, logits.float().logsumexp(-1))


def context_length(model) -> int | None:
    """Maximum number of tokens in a sequence, None if the configuration names none."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


@torch.inference_mode()
def trace(model, tokenizer, text) -> Trace:
    """One forward pass over `text`: a string, token ids, or a chat as `stream` takes it, up to where the answer begins.

    Raises ValueError for an empty text, one past the context, an id outside the vocabulary, and messages that the chat template
    does not take.
    """
    limits = dict(min_new_tokens=0, vocab_size=model.config.get_text_config().vocab_size)
    ids = encode_prompt(tokenizer, text, context_length(model), name="text", **limits)
    with recorded_experts(model) as experts, recorded_layers(model) as outputs, recorded_latents(model) as latents:
        output = model(torch.tensor([ids], device=model.device), use_cache=False, output_hidden_states=True)
    logits = output.logits[0].float()
    routing = []
    for layer, ran in sorted(experts.items()):
        order = ran.weights.argsort(-1, descending=True)
        weights, indices = ran.weights.gather(-1, order).float(), ran.indices.gather(-1, order)
        routing.append(Routing(layer, ran.scores.shape[-1], indices, weights, ran.scores, ran.ranks, ran.scoring))
    next_ids = torch.tensor(ids[1:], device=logits.device)[:, None]
    log_probs = logits[:-1].gather(1, next_ids)[:, 0] - logits[:-1].logsumexp(-1)
    probabilities = [None, *log_probs.exp().tolist()]
    passed = output.hidden_states, top_logits(logits), outputs, latents
    return Trace(ids, token_texts(tokenizer, ids), routing, probabilities, model, tokenizer, *passed)
