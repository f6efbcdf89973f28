"""How much a text needs each expert: losses and predictions without it, without the top ones, and with the next one instead.

Shape letters: T tokens, V vocabulary, E experts, B copies of the text in a batch.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from deepseek.data.tokenizer import encode_prompt
from deepseek.interpret.interventions import Intervention, intervened
from deepseek.interpret.moe_layers import (
    RanExperts,
    biased_experts,
    moe_layers,
    recorded_experts,
    without_shared_experts,
)
from deepseek.interpret.trace import context_length

MAX_POINTS = 12  # of a curve: each is a pass over the text
MAX_KNOCK_OUTS = 128  # experts measured without being asked for
MAX_LOGITS = 2**25  # of a batch of texts, in memory at once
SEED = 0  # of the random experts that a curve is compared with


@dataclass
class KnockOut:
    """A text without one expert, by the model's own rule (`Intervention`, off)."""

    layer: int
    expert: int
    num_tokens: int  # that had chosen it
    loss_change: float  # nats per token: the loss without it less the model's own
    kl_T: torch.Tensor  # (T,) float32, KL(model || without it) of the next token after each token, nats

    @property
    def mean_kl(self) -> float:
        """Mean of `kl_T`, nats per token."""
        return float(self.kl_T.mean())


@dataclass
class LossPoint:
    """The loss on a text with a number of experts disabled."""

    curve: str
    num_disabled: int
    loss: float  # mean cross-entropy, nats per token


@dataclass
class RunnerUps:
    """What the model predicts after each token if that token alone is re-routed in one layer: its top expert is barred."""

    layer: int
    experts: list[tuple[int, int]]  # of each token: its own expert of largest weight, one that ran in its place
    kl_T: torch.Tensor  # (T,) float32, KL(own || re-routed) of the next token after it, nats
    own: list[int]  # ids of the most likely next tokens
    rerouted: list[int]
    reach: list[int]  # at how many positions, from the token on, the most likely next token is another


def text_ids(model, tokenizer, text) -> list[int]:
    """Token ids of a text (or of its ids). Raises ValueError for a text of one token or past the context."""
    ids = encode_prompt(tokenizer, text, context_length(model), min_new_tokens=0, name="text")
    if len(ids) < 2:
        raise ValueError("text has 1 token; it must have at least 2, so that one can be predicted from the other.")
    return ids


def ranked_layers(model) -> list[int]:
    """The MoE layers whose routers rank their experts, in which experts can be disabled."""
    return [index for index, layer in moe_layers(model).items() if layer.ranks]


def affordable_layers(model) -> list[int]:
    """`ranked_layers`; of more than MAX_KNOCK_OUTS experts together only the last, since each takes a pass over the text."""
    layers = ranked_layers(model)
    return layers[-1:] if sum(moe_layers(model)[index].num_experts for index in layers) > MAX_KNOCK_OUTS else layers


def kl_divergence(before_TV, after_TV) -> torch.Tensor:
    """KL(before || after) of rows of logits, (T,) float32 in nats (Kullback and Leibler, 1951)."""
    rows = []
    for before, after in zip(before_TV.split(64), after_TV.split(64)):  # float64 of a few rows at a time
        log_p, log_q = before.double().log_softmax(-1), after.double().log_softmax(-1)
        rows.append(torch.where(log_p.isneginf(), 0, log_p.exp() * (log_p - log_q)).sum(-1).clamp(min=0))
    return torch.cat(rows).float().cpu()


@torch.inference_mode()
def knock_outs(model, tokenizer, text, layers: Iterable[int] | None = None) -> Iterator[KnockOut]:
    """Yields a KnockOut for every expert of `layers`, or of all MoE layers, one pass over the text each.

    An expert that no token chose has no effect and costs no pass, unless the router first chooses groups, which it may have
    decided. Raises ValueError for a text of one token or past the context.
    """
    ids = text_ids(model, tokenizer, text)
    with recorded_experts(model) as ran:
        own_TV = _logits(model, [ids])[0]
    loss, has_groups = _loss(own_TV, ids), (getattr(model.config.get_text_config(), "n_group", None) or 1) > 1
    for layer in ranked_layers(model):
        for expert in range(moe_layers(model)[layer].num_experts if layers is None or layer in layers else 0):
            num_tokens = int((ran[layer].indices == expert).any(-1).sum())
            change, kl_T = 0.0, torch.zeros(len(ids))
            if num_tokens or has_groups:
                with intervened(model, [Intervention(expert, "off", layer)]):
                    without_TV = _logits(model, [ids])[0]
                change, kl_T = _loss(without_TV, ids) - loss, kl_divergence(own_TV, without_TV)
            yield KnockOut(layer, expert, num_tokens, change, kl_T)


def top_disabled(model, tokenizer, text) -> Iterator[LossPoint]:
    """Yields the loss as each token's top routed experts are disabled in every MoE layer at once: figure 4 of DeepSeekMoE
    (Dai et al., 2024, arXiv 2401.06066).

    "top routed": the experts that a token's router ranks highest are barred, and it chooses among the others. The control,
    "random routed", bars as many experts at random for each token. "shared" is the loss without the shared experts, if the
    model has them, with no routed expert disabled; "shared, routed in their place" lets each token run as many more routed
    experts instead (section 4.5 there). Of many experts MAX_POINTS numbers are tried. Raises ValueError as `knock_outs` does.
    """
    ids, layers = text_ids(model, tokenizer, text), {index: moe_layers(model)[index] for index in ranked_layers(model)}
    if not layers:
        return
    own = _loss_under(model, ids, nullcontext())
    yield LossPoint("top routed", 0, own)
    most = min(layer.num_experts - layer.top_k for layer in layers.values())
    if any(layer.shared for layer in layers.values()):
        num_shared = getattr(model.config.get_text_config(), "n_shared_experts", None) or 1
        for name, more in (("shared", 0), ("shared, routed in their place", min(num_shared, most))):
            try:
                loss = _loss_under(model, ids, without_shared_experts(model, layers, more))
            except ValueError:  # of a router that weighs no more, such as Inkling's
                continue
            yield LossPoint(name, 0, own)
            yield LossPoint(name, num_shared, loss)
    for number in spread(most):
        barring = biased_experts(model, dict.fromkeys(layers, _bar_top(number)))
        yield LossPoint("top routed", number, _loss_under(model, ids, barring))
    yield LossPoint("random routed", 0, own)
    for number in spread(most):
        generator = torch.Generator().manual_seed(SEED)
        barring = biased_experts(model, dict.fromkeys(layers, _bar_random(number, generator)))
        yield LossPoint("random routed", number, _loss_under(model, ids, barring))


def cumulative(model, tokenizer, text, order: Sequence[tuple[int, int]]) -> Iterator[LossPoint]:
    """Yields the loss as experts (layer, expert) are switched off one after another, for all tokens, and stay off.

    `order` is from the most important on ("most important first"); the controls take them from its end ("least important
    first") and at random. An expert is left out where its layer would keep fewer than top-k. Of many experts MAX_POINTS
    numbers are tried. Raises ValueError as `knock_outs` does.
    """
    ids, layers = text_ids(model, tokenizer, text), moe_layers(model)
    shuffled = torch.randperm(len(order), generator=torch.Generator().manual_seed(SEED)).tolist()
    curves = {
        "most important first": list(order),
        "at random": [order[index] for index in shuffled],
        "least important first": list(order)[::-1],
    }
    own = _loss_under(model, ids, nullcontext())
    for name, experts in curves.items():
        free = {index: layer.num_experts - layer.top_k for index, layer in layers.items()}
        disabled = []
        for layer, expert in experts:
            if free[layer]:
                free[layer] -= 1
                disabled.append(Intervention(expert, "off", layer))
        yield LossPoint(name, 0, own)
        for number in spread(len(disabled)):
            yield LossPoint(name, number, _loss_under(model, ids, intervened(model, disabled[:number])))


@torch.inference_mode()
def runner_ups(model, tokenizer, text, layers: Iterable[int] | None = None) -> Iterator[RunnerUps]:
    """Yields for `layers`, or all MoE layers, what changes if a token's expert of largest weight is barred for it alone.

    Its router then chooses among the others by its own rule, so the token runs its runner-up; the tokens before and after it
    are routed as they are. Every token is tried, each in a copy of the text. Raises ValueError as `knock_outs` does.
    """
    ids = text_ids(model, tokenizer, text)
    size = max(1, MAX_LOGITS // (len(ids) * model.config.get_text_config().vocab_size) - 1)
    with recorded_experts(model) as ran:
        _logits(model, [ids])
    for layer in ranked_layers(model):
        num_experts = moe_layers(model)[layer].num_experts
        if layers is not None and layer not in layers or num_experts == moe_layers(model)[layer].top_k:
            continue
        chunks = torch.arange(len(ids)).split(size)
        parts = [_reroute(model, ids, layer, num_experts, ran[layer], chunk.tolist()) for chunk in chunks]
        experts, kl, own, rerouted, reach = (sum(part, []) for part in zip(*parts))
        yield RunnerUps(layer, experts, torch.tensor(kl), own, rerouted, reach)


def _reroute(
    model, ids: list[int], layer: int, num_experts: int, own: RanExperts, tokens: list[int]
) -> tuple[list, ...]:
    """The fields of RunnerUps for some of the tokens: copies of the text in one batch, the first as it is."""
    top_T = own.indices.gather(-1, own.weights.argmax(-1, keepdim=True))[:, 0]
    bias_BTE = torch.zeros(1 + len(tokens), len(ids), num_experts)
    for row, token in enumerate(tokens, 1):
        bias_BTE[row, token, top_T[token]] = -torch.inf
    with biased_experts(model, {layer: bias_BTE.flatten(0, 1)}), recorded_experts(model) as ran:
        logits_BTV = _logits(model, [ids] * len(bias_BTE))
    ran_BTK = ran[layer].indices.view(len(bias_BTE), len(ids), -1)
    experts, best_BT = [], logits_BTV.argmax(-1)
    for row, token in enumerate(tokens, 1):
        new = [expert for expert in ran_BTK[row, token].tolist() if expert not in own.indices[token].tolist()]
        experts.append((int(top_T[token]), new[0] if new else int(top_T[token])))
    rows = torch.arange(1, len(bias_BTE))
    kl_T = kl_divergence(logits_BTV[0, tokens], logits_BTV[rows, tokens])
    reach = [int((best_BT[row, token:] != best_BT[0, token:]).sum()) for row, token in enumerate(tokens, 1)]
    return experts, kl_T.tolist(), best_BT[0, tokens].tolist(), best_BT[rows, tokens].tolist(), reach


def verdict(measured: Sequence[KnockOut]) -> str:
    """One sentence on the three experts whose loss costs the text most."""
    top = sorted(measured, key=lambda each: -each.loss_change)[:3]
    names = (f"expert {each.expert} of layer {each.layer} ({each.loss_change:+.3f})" for each in top)
    return f"Largest effect, in nats per token: {', '.join(names)}."


def spread(last: int) -> list[int]:
    """Whole numbers from 1 to `last`, MAX_POINTS of many."""
    count = min(last, MAX_POINTS)
    return sorted({round(number) for number in torch.linspace(1, last, count).tolist()}) if count else []


def _bar_top(number: int):
    def bias(ranks_TE):
        return torch.zeros_like(ranks_TE).scatter(-1, ranks_TE.topk(number).indices, -torch.inf)

    return bias


def _bar_random(number: int, generator: torch.Generator):
    def bias(ranks_TE):
        order_TE = torch.rand(ranks_TE.shape, generator=generator).to(ranks_TE.device)
        return torch.zeros_like(ranks_TE).scatter(-1, order_TE.topk(number).indices, -torch.inf)

    return bias


@torch.inference_mode()
def _loss_under(model, ids: list[int], change) -> float:
    with change:
        return _loss(_logits(model, [ids])[0], ids)


def _logits(model, rows: list[list[int]]) -> torch.Tensor:
    """(B, T, V) of a batch of ids."""
    return model(torch.tensor(rows, device=model.device), use_cache=False).logits


def _loss(logits_TV, ids: list[int]) -> float:
    """Mean cross-entropy of token ids in nats per token, each predicted from those before it."""
    return F.cross_entropy(logits_TV[:-1].float(), torch.tensor(ids[1:], device=logits_TV.device)).item()
