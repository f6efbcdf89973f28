"""Several kinds of text as a model routed them: what the figures about experts are computed from.

Shape letters: T tokens of all kinds together, K experts per token, S sampled tokens, D hidden width.
"""

import hashlib
import weakref
from collections.abc import Callable, Mapping
from threading import Lock
from typing import NamedTuple

import torch

from deepseek.data.tokenizer import encode_prompt
from deepseek.interpret.router_inputs import recorded_router_inputs
from deepseek.interpret.trace import context_length, trace

MAX_SAMPLED = 400  # tokens whose hidden states are compared, each with each
MAX_KEPT = 2  # corpora of one model
_corpora: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # model -> {texts: Corpus}, the newest last
_lock = Lock()


class RoutedLayer(NamedTuple):
    """Which experts one MoE layer ran for every token, the largest weight first."""

    layer: int
    num_experts: int
    indices: torch.Tensor  # (T, K) int64


class Corpus:
    """Tokens of several kinds of text, kind after kind, and their routing; without the first token of every window.

    That one has nothing before it, and models use it as a resting place of attention: its hidden state is like no other.
    No dataclass: gr.State would make it a dict.
    """

    def __init__(self, kinds, kind_T, ids_T, predicted_T, follows_T, texts, sample_S, routing, dots, digest, cut):
        self.kinds: list[str] = kinds
        self.kind_T: torch.Tensor = kind_T  # int64, index into `kinds`
        self.ids_T: torch.Tensor = ids_T  # int64
        self.predicted_T: torch.Tensor = predicted_T  # int64, the token that the model holds most likely to come next
        self.follows_T: torch.Tensor = (
            follows_T  # bool, whether the token before it in the text is the one before it here
        )
        self.texts: dict[int, str] = texts  # of the ids in `ids_T` and `predicted_T`
        self.sample_S: torch.Tensor = sample_S  # int64, tokens spread evenly over the corpus
        self.routing: list[RoutedLayer] = routing
        self.dots: list[torch.Tensor] = dots  # per MoE layer (S, S) float32, dot products of the routers' inputs
        self.digest: str = digest  # SHA-256 of the kinds and their texts
        self.cut: list[str] = cut  # kinds of which only the beginning was read
        self.measured: dict = {}  # what was computed from it, by the name of the figures

    @property
    def num_tokens(self) -> list[int]:
        """Of each kind."""
        return self.kind_T.bincount(minlength=len(self.kinds)).tolist()

    @property
    def layers(self) -> list[int]:
        """The decoder layers that have experts."""
        return [routed.layer for routed in self.routing]


def trace_corpus(
    model,
    tokenizer,
    texts: Mapping[str, str],
    on_progress: Callable[[float], None] = lambda fraction: None,
    max_tokens=None,
) -> Corpus:
    """Traces kinds of text {name: text} in windows as long as the model's context; no window sees the ones before it.

    Of each text the first `max_tokens` are read, or all. Calls `on_progress` with the fraction done before each window.
    Raises ValueError without a text, and for one that is empty or has fewer than two tokens.
    """
    if not texts:
        raise ValueError("texts are empty; there must be at least one kind of text.")
    ids_of = {kind: encode_prompt(tokenizer, text, None, name=f"text {kind!r:.40}") for kind, text in texts.items()}
    cut = [kind for kind, ids in ids_of.items() if max_tokens and len(ids) > max_tokens]
    ids_of = {kind: ids[:max_tokens] for kind, ids in ids_of.items()}
    if short := [kind for kind, ids in ids_of.items() if len(ids) < 2]:
        raise ValueError(f"text {short[0]!r:.40} has 1 token; it must have at least 2.")
    size = context_length(model) or max(map(len, ids_of.values()))
    windows = [
        (number, ids[start : start + size])
        for number, ids in enumerate(ids_of.values())
        for start in range(0, len(ids), size)
        if len(ids[start : start + size]) > 1
    ]
    total = sum(len(ids) - 1 for _, ids in windows)
    sample_S = torch.linspace(0, total - 1, min(total, MAX_SAMPLED)).round().long()
    begin, rows, states, routings = 0, [], [], []
    for number, ids in windows:
        on_progress(begin / total)
        with recorded_router_inputs(model) as inputs:
            traced = trace(model, tokenizer, ids)
        kept = torch.tensor(ids[1:])
        predicted = traced.top_logits.ids[1:, 0].cpu()
        rows.append((torch.full_like(kept, number), kept, predicted, torch.arange(len(kept)) > 0))
        routings.append([layer._replace(indices=layer.indices[1:]) for layer in map(_routed, traced.routing)])
        here = sample_S[(sample_S >= begin) & (sample_S < begin + len(kept))] - begin + 1
        states.append([inputs[layer.layer][here.to(model.device)].float().cpu() for layer in traced.routing])
        begin += len(kept)
    kind_T, ids_T, predicted_T, follows_T = map(torch.cat, zip(*rows))
    routing = [parts[0]._replace(indices=torch.cat([part.indices for part in parts])) for parts in zip(*routings)]
    dots = [_dot_products(torch.cat(parts)) for parts in zip(*states)]
    names = {token: tokenizer.decode([token]) for token in {*ids_T.tolist(), *predicted_T.tolist()}}
    digest = hashlib.sha256("\0".join(part for pair in texts.items() for part in pair).encode("utf-8", "replace"))
    tokens = kind_T, ids_T, predicted_T, follows_T
    return Corpus(list(texts), *tokens, names, sample_S, routing, dots, digest.hexdigest(), cut)


def _routed(routing) -> RoutedLayer:
    return RoutedLayer(routing.layer, routing.num_experts, routing.indices.cpu())


def _dot_products(states_SD) -> torch.Tensor:
    return (states_SD.double() @ states_SD.double().T).float()


def cached_corpus(model, tokenizer, texts: Mapping[str, str], on_progress=lambda fraction: None) -> Corpus:
    """`trace_corpus`, with the last MAX_KEPT corpora of each model kept: several figures read the same one."""
    key = tuple(texts.items())
    with _lock:
        kept = _corpora.setdefault(model, {})
        if key in kept:
            return kept[key]
    corpus = trace_corpus(model, tokenizer, texts, on_progress)
    with _lock:
        kept[key] = corpus
        for old in list(kept)[:-MAX_KEPT]:
            del kept[old]
    return corpus
