"""The decode loop: `stream` yields one TokenTrace a token, with everything that happened to it; `step` takes many on at once.

Our own loop, because transformers' `generate` takes no random generator, hides the stages, and cannot be stopped
between tokens from outside.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache

import numpy as np
import torch

from deepseek.data.tokenizer import IncrementalDetokenizer, encode_prompt
from deepseek.inference.decode_model import DecodeModel, supports
from deepseek.inference.sampling import MAX_STOP_CHARACTERS, SamplingParams, SamplingState, apply_samplers
from deepseek.interpret.interventions import Intervention, intervened, router_biases
from deepseek.interpret.trace import context_length, recorded_routing
from deepseek.kernels.sampling import array_equal, lookup_probs, sample_index, softmax_entropy, top_k_indices
from deepseek.model.deepseek_v3 import DeepseekV3ForCausalLM
from deepseek.model.mla_cache import MLACache

NUM_CANDIDATES = 10  # candidates recorded: this many of the model's and of the sampler's first choices


@dataclass
class Candidate:
    """A token that could have come, with its probability after each stage; 0 once removed."""

    id: int
    text: str
    probabilities: list[float]  # raw, then one a stage
    removed_by: str | None  # the stage that removed it


@dataclass
class Stage:
    """One step of the sampler: whether the settings asked for it, whether it changed anything, who was left."""

    name: str
    active: bool
    changed: bool
    num_candidates: int


@dataclass
class TokenTrace:
    """One generated token. The texts of all tokens of a stream join to its whole text."""

    id: int
    text: str
    position: int  # in prompt and output together, from 0
    probability: float  # under the model
    sampler_probability: float  # after all stages: the chance with which it was drawn
    rank: int  # under the model, 1 is the most likely
    entropy: float  # of the model's distribution, nats
    temperature: float  # the one used; 0 is greedy
    stages: list[Stage]
    candidates: list[Candidate]  # the sampler's first choices, then the model's others; empty without `record`
    experts: dict[int, list[tuple[int, float]]]  # MoE layer: (expert, weight) this token was sent to, strongest first
    milliseconds: float
    finish_reason: str | None = None  # on the last token: "end of text", "stop string", "length" or "context full"
    temperature_entropy: float | None = None  # of the candidates that a dynamic temperature was made from, nats

    def as_dict(self) -> dict:
        """As JSON has it: layers become texts."""
        return {**asdict(self), "experts": {str(layer): chosen for layer, chosen in self.experts.items()}}


class Request:
    """A text in the making: all that its next token depends on. `step` takes it on, a token at a time.

    The arguments are those of `stream`. Raises ValueError as `stream` does.
    """

    def __init__(
        self, model, tokenizer, prompt, params=None, forced_tokens=None, interventions=(), record: bool = True
    ):
        self.model, self.tokenizer, self.record = model, tokenizer, record
        self.params, self.forced_tokens, self.interventions = (
            params or SamplingParams(),
            forced_tokens or {},
            list(interventions),
        )
        for token in self.forced_tokens.values():
            if not 0 <= token < model.config.get_text_config().vocab_size:
                raise ValueError(
                    f"force holds id {token}; it must be in the vocabulary of {model.config.vocab_size:,} tokens."
                )
        limit = context_length(model)
        self.ids = encode_prompt(tokenizer, prompt, limit)
        self.bias = router_biases(model, self.interventions) if self.interventions else {}
        self.generator = torch.Generator()
        self.seed = self.generator.seed() if self.params.seed is None else self.params.seed
        new = self.params.max_new_tokens
        self.room = min(new, limit - len(self.ids)) if limit else new
        self.cache = None
        if isinstance(model, DeepseekV3ForCausalLM):
            self.cache = MLACache(model.config, len(self.ids) + self.room)
        eos_token_ids = model.generation_config.eos_token_id
        self.eos_token_ids = {eos_token_ids} if isinstance(eos_token_ids, int) else set(eos_token_ids or [])
        self.decoded, self.tail = IncrementalDetokenizer(tokenizer), ""
        self.name = cache(lambda token: tokenizer.decode([token]))  # the same candidates come again and again
        self.context = SamplingState(self.ids, [])
        self.finish_reason: str | None = None
        self.read(self.ids)

    @torch.inference_mode()
    def read(self, ids: list[int]) -> dict:
        """Takes up `ids` by the model's own forward; returns the experts of the last one by layer."""
        with intervened(self.model, self.interventions), recorded_routing(self.model) as record:
            tokens = torch.tensor([ids], device=self.model.device)
            output = self.model(tokens, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.logits_V, self.cache = output.logits[0, -1].float().cpu().numpy(), output.past_key_values
        return {layer: (indices[-1:], weights[-1:]) for layer, (weights, indices, _) in record.items()}

    def draw(self) -> dict:
        """Chooses the next token and whether it is the last; returns the fields of its TokenTrace that tell how."""
        place = len(self.context.output)
        position = len(self.ids) + place
        self.generator.manual_seed((self.seed * 1_000_003 + position) % 2**63)
        forced = self.forced_tokens.get(place)
        token, how = _draw(self.logits_V, self.params, self.context, self.generator, self.name, self.record, forced)
        self.context.output.append(token)
        chunk = self.decoded.push(token)
        self.tail = self.tail[-MAX_STOP_CHARACTERS:] + chunk
        if token in self.eos_token_ids:
            self.finish_reason = "end of text"
        elif any(stop in self.tail for stop in self.params.stop):
            self.finish_reason = "stop string"
        elif place + 1 == self.room:
            self.finish_reason = "length" if self.room == self.params.max_new_tokens else "context full"
        text = chunk + self.decoded.end() if self.finish_reason else chunk
        return dict(id=token, text=text, position=position, finish_reason=self.finish_reason, **how)


def decode_step(texts: list[Request], decoder: DecodeModel | None = None) -> list[TokenTrace]:
    """The next token of each of several texts, none of them finished, all of one model and of its `decoder` if it has one.

    None of them can tell that the others are there. Raises ValueError for damaged weights.
    """
    began = time.perf_counter()
    drawn = [text.draw() for text in texts]
    going = [text for text in texts if text.record or not text.finish_reason]  # a last token is read only to be traced
    last = [text.context.output[-1] for text in going]
    if decoder and going:
        layers = {layer for text in going for layer in text.bias}
        none = torch.zeros(texts[0].model.config.n_routed_experts)
        more = {layer: torch.stack([text.bias.get(layer, none) for text in going]).numpy() for layer in layers}
        logits_RV, routing = decoder(last, [text.cache for text in going], more)
        for text, logits_V in zip(going, logits_RV.numpy()):
            text.logits_V = logits_V
        chosen = _strongest_first(routing, len(going))
    else:
        chosen = [_strongest_first(text.read([token]), 1)[0] for text, token in zip(going, last)]
    experts = {id(text): found for text, found in zip(going, chosen)}
    milliseconds = (time.perf_counter() - began) * 1e3
    return [
        TokenTrace(**how, experts=experts.get(id(text), {}), milliseconds=milliseconds)
        for text, how in zip(texts, drawn)
    ]


def stream(
    model,
    tokenizer,
    prompt,
    params: SamplingParams | None = None,
    forced_tokens: Mapping[int, int] | None = None,
    interventions: Iterable[Intervention] = (),
    record: bool = True,
) -> Iterator[TokenTrace]:
    """Continues `prompt` (text or ids) on any transformers causal language model, a TokenTrace at a time.

    The same seed, settings and checkpoint give the same tokens, whatever else runs: a draw depends on the seed, the
    position and the text before it alone. So `force`, ids by their place in the output from 0, puts single tokens in
    another's place and leaves the text before them as it was. `changes` are made to the experts, for this text alone.
    Closing the generator ends the work. Without `record` candidates, stages and the last token's experts stay empty.
    Raises ValueError for a prompt that is empty or too long, an id that is not in the vocabulary, a change that cannot be
    made, and damaged weights.
    """
    text = Request(model, tokenizer, prompt, params, forced_tokens, interventions, record)
    decoder = DecodeModel(model) if supports(model) else None
    while not text.finish_reason:
        yield from decode_step([text], decoder)


def _strongest_first(routing: dict, rows: int) -> list[dict[int, list[tuple[int, float]]]]:
    """{layer: [(expert, weight), ...]} of each row, from {layer: (indices (rows, K), weights (rows, K))}."""
    experts: list[dict] = [{} for _ in range(rows)]
    for layer, (indices, weights) in sorted(routing.items()):
        for row, ids, shares in zip(experts, indices.tolist(), weights.tolist()):
            row[layer] = sorted(zip(ids, shares), key=lambda pair: -pair[1])
    return experts


@torch.inference_mode()
def _draw(logits_V, params, context, generator, name, record: bool, forced: int | None):
    """Draws the next token; returns it and the fields of TokenTrace that tell how."""
    if np.isnan(logits_V.max()):
        raise ValueError("the model's answer is not a number; its weights are damaged.")
    steps = list(apply_samplers(logits_V, params, context))
    *_, ids_N, logits_N = steps[-1]
    (raw_V, entropy), (final_N, _) = softmax_entropy(logits_V), softmax_entropy(logits_N)
    # By one uniform number. (torch.multinomial draws one for each token: texts of one seed would share their unlikely ones.)
    uniform = torch.rand(1, dtype=torch.float64, generator=generator).item()
    token = int(ids_N[sample_index(final_N, uniform)]) if forced is None else forced
    chance, _ = lookup_probs(ids_N, final_N, np.array([token]))  # 0 of a forced token that was removed
    stages, candidates = _record(logits_V, raw_V, steps, token, name) if record else ([], [])
    return token, dict(
        probability=float(raw_V[token]),
        sampler_probability=float(chance[0]),
        rank=int(np.count_nonzero(logits_V > logits_V[token])) + 1,
        entropy=entropy,
        temperature=context.temperature,
        temperature_entropy=context.entropy,
        stages=stages,
        candidates=candidates,
    )


def _first(logits_N, count: int):
    """The places of the highest logits, `count` of them or as many as there are; the highest first."""
    places = top_k_indices(logits_N, count)
    return places[np.argsort(-logits_N[places], kind="stable")[:count]]


def _record(logits_V, raw_V, steps, token: int, name) -> tuple[list[Stage], list[Candidate]]:
    """Stages and candidates from what `apply` gave; `raw_V` are the shares before it."""
    *_, ids_N, logits_N = steps[-1]
    shown = [*ids_N[_first(logits_N, NUM_CANDIDATES)].tolist(), token, *_first(logits_V, NUM_CANDIDATES).tolist()]
    ids = np.array(list(dict.fromkeys(shown)))
    stages, before_N = [], logits_V
    columns, there = [raw_V[ids].tolist()], [[True] * len(ids)]  # of each candidate, after each stage
    for stage, active, ids_N, logits_N in steps:
        changed = active and not array_equal(before_N, logits_N)
        if changed:
            shares, stays = lookup_probs(ids_N, softmax_entropy(logits_N)[0], ids)
            columns.append(shares.tolist())
            there.append(stays.tolist())
            before_N = logits_N
        else:
            columns.append(columns[-1])
            there.append(there[-1])
        stages.append(Stage(stage, active, changed, len(ids_N)))
    candidates = []
    for candidate, shares, stays in zip(ids.tolist(), zip(*columns), zip(*there)):
        removed_by = stages[stays.index(False) - 1].name if False in stays else None
        candidates.append(Candidate(candidate, name(candidate), list(shares), removed_by))
    candidates.sort(key=lambda c: (-c.probabilities[-1], -c.probabilities[0]))
    return stages, candidates
