"""The decode loop: `stream` yields a TokenTrace for each token; `decode_step` advances a batch of requests by one token.

It replaces transformers' `generate`, which accepts no torch.Generator, hides the sampler's steps, and cannot be stopped
between two tokens from outside.

Shape letters: V vocabulary, N candidates, R requests, E experts.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache

import numpy as np
import torch

from deepseek.data.tokenizer import IncrementalDetokenizer, encode_prompt
from deepseek.inference.decode_model import DecodeModel, supports
from deepseek.inference.sampling import MAX_STOP_CHARACTERS, SamplingParams, SamplingState, apply_samplers
from deepseek.interpret.interventions import Intervention, intervened, router_biases
from deepseek.interpret.trace import context_length, recorded_routing
from deepseek.kernels.sampling import lookup_probs, sample_index, softmax_entropy, top_k_indices
from deepseek.model.deepseek_v3 import DeepseekV3ForCausalLM
from deepseek.model.mla_cache import MLACache

NUM_CANDIDATES = 10  # recorded candidates: the 10 most likely before the samplers and the 10 most likely after them


@dataclass
class Candidate:
    """A token that could have been sampled, with its probability after each sampler; 0 once removed."""

    id: int
    text: str
    probabilities: list[float]  # under the model, then after each sampler
    removed_by: str | None  # the sampler that removed it


@dataclass
class Stage:
    """What one sampler did: whether the settings enable it, whether it changed the logits, how many candidates it left."""

    name: str
    active: bool
    changed: bool
    num_candidates: int


@dataclass
class TokenTrace:
    """One generated token. The texts of a stream's tokens join to the generated text."""

    id: int
    text: str
    position: int  # in the sequence of prompt and output, from 0
    probability: float  # under the model
    sampler_probability: float  # after all samplers: the probability it was sampled with
    rank: int  # under the model; 1 is the most likely
    entropy: float  # of the model's distribution, nats
    temperature: float  # the temperature used; 0 is greedy
    stages: list[Stage]
    candidates: list[Candidate]  # most likely first: after all samplers, then under the model; empty without `record`
    experts: dict[int, list[tuple[int, float]]] = field(default_factory=dict)  # MoE layer: (expert, weight), by weight
    milliseconds: float = 0.0
    finish_reason: str | None = None  # last token: "stop", "length" (max_new_tokens) or "context" (context full)
    stop_string: str | None = None  # the stop string this token completed; None if "stop" is the end-of-text token
    temperature_entropy: float | None = None  # of the candidates that set a dynamic temperature, nats

    @property
    def ended_by(self) -> str | None:
        """The finish reason in words; None before the last token."""
        if self.stop_string is not None:
            return "stop string"
        return {"stop": "end of text", "context": "context full"}.get(self.finish_reason, self.finish_reason)

    def as_dict(self) -> dict:
        """The trace with JSON's types: the layers of `experts` become strings."""
        return {**asdict(self), "experts": {str(layer): experts for layer, experts in self.experts.items()}}


class Request:
    """A sequence being generated and everything its next token depends on; `decode_step` advances it by one token.

    Takes the arguments of `stream` and raises ValueError as `stream` does.
    """

    def __init__(self, model, tokenizer, prompt, params=None, forced_tokens=None, interventions=(), record=True):
        self.model, self.record, self.params = model, record, params or SamplingParams()
        self.forced_tokens, self.interventions = forced_tokens or {}, list(interventions)
        vocab_size = model.config.get_text_config().vocab_size
        for token in self.forced_tokens.values():
            if not 0 <= token < vocab_size:
                raise ValueError(f"forced_tokens holds id {token}; it must be from 0 to {vocab_size - 1}.")
        max_len = context_length(model)
        self.prompt_ids = encode_prompt(tokenizer, prompt, max_len)
        self.max_new_tokens = self.params.max_new_tokens
        if max_len:
            self.max_new_tokens = min(self.max_new_tokens, max_len - len(self.prompt_ids))
        self.router_bias = router_biases(model, self.interventions)
        self.generator = torch.Generator()
        self.seed = self.generator.seed() if self.params.seed is None else self.params.seed
        eos_token_id = model.generation_config.eos_token_id
        self.eos_token_ids = {eos_token_id} if isinstance(eos_token_id, int) else set(eos_token_id or [])
        self.detokenizer, self.recent_text = IncrementalDetokenizer(tokenizer), ""
        self.token_text = cache(lambda token: tokenizer.decode([token]))  # most candidates recur at later tokens
        self.state = SamplingState(self.prompt_ids, [])
        self.finish_reason: str | None = None
        self.stop_string: str | None = None
        self.cache = None
        if isinstance(model, DeepseekV3ForCausalLM):
            self.cache = MLACache(model.config, len(self.prompt_ids) + self.max_new_tokens)
        self.prefill(self.prompt_ids)

    @torch.inference_mode()
    def prefill(self, ids: list[int]) -> None:
        """Runs the model's own forward on `ids`, after those in the cache; sets the logits and experts of the last id."""
        with intervened(self.model, self.interventions), recorded_routing(self.model) as routing:
            ids_1S = torch.tensor([ids], device=self.model.device)
            output = self.model(ids_1S, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.logits_V, self.cache = output.logits[0, -1].float().cpu().numpy(), output.past_key_values
        self.experts = _row_experts({layer: (indices, weights) for layer, (weights, indices, _) in routing.items()}, -1)

    @torch.inference_mode()
    def sample(self) -> TokenTrace:
        """Samples the next token and decides whether it is the last; returns its trace, without experts and time.

        Raises ValueError for logits that are NaN.
        """
        if np.isnan(self.logits_V.max()):
            raise ValueError("the model's logits are NaN; its weights are damaged.")
        output_index = len(self.state.output_ids)
        position = len(self.prompt_ids) + output_index
        steps = list(apply_samplers(self.logits_V, self.params, self.state))
        *_, ids_N, logits_N = steps[-1]
        (model_probs_V, entropy), (probs_N, _) = softmax_entropy(self.logits_V), softmax_entropy(logits_N)
        token = self.forced_tokens.get(output_index)
        if token is None:
            # One uniform number: torch.multinomial takes one per token, so requests of one seed would share rare tokens.
            self.generator.manual_seed((self.seed * 1_000_003 + position) % 2**63)
            uniform = torch.rand(1, dtype=torch.float64, generator=self.generator).item()
            token = int(ids_N[sample_index(probs_N, uniform)])
        self.state.output_ids.append(token)
        stages, candidates = self._record_samplers(model_probs_V, steps, token) if self.record else ([], [])
        sampler_probs, _ = lookup_probs(ids_N, probs_N, np.array([token]))  # 0 for a forced token that was removed
        return TokenTrace(
            id=token,
            text=self._finish(token),
            position=position,
            probability=float(model_probs_V[token]),
            sampler_probability=float(sampler_probs[0]),
            rank=int(np.count_nonzero(self.logits_V > self.logits_V[token])) + 1,
            entropy=entropy,
            temperature=self.state.temperature,
            stages=stages,
            candidates=candidates,
            finish_reason=self.finish_reason,
            stop_string=self.stop_string,
            temperature_entropy=self.state.entropy,
        )

    def _record_samplers(self, probs_V, steps, token: int) -> tuple[list[Stage], list[Candidate]]:
        """The stages and candidates of a token, from the steps of `apply_samplers` and the model's probabilities."""
        *_, ids_N, logits_N = steps[-1]
        sampled, likely = _top_candidates(logits_N), _top_candidates(self.logits_V)
        ids = np.array(list(dict.fromkeys([*ids_N[sampled].tolist(), token, *likely.tolist()])))
        stages, previous_N, probs = [], self.logits_V, probs_V[ids]
        columns, removed_by = [probs], [None] * len(ids)
        for name, active, ids_N, logits_N in steps:
            changed = active and not np.array_equal(previous_N, logits_N)
            if changed:
                probs, present = lookup_probs(ids_N, softmax_entropy(logits_N)[0], ids)
                removed_by = [sampler or (None if left else name) for sampler, left in zip(removed_by, present)]
                previous_N = logits_N
            columns.append(probs)
            stages.append(Stage(name, active, changed, len(ids_N)))
        rows = zip(ids.tolist(), np.stack(columns, 1).tolist(), removed_by)
        candidates = [Candidate(i, self.token_text(i), row, sampler) for i, row, sampler in rows]
        candidates.sort(key=lambda c: (-c.probabilities[-1], -c.probabilities[0]))
        return stages, candidates

    def _finish(self, token: int) -> str:
        """Sets the finish reason if the newest token is the last; returns the text to emit with it."""
        text = self.detokenizer.add_token(token)
        self.recent_text = self.recent_text[-MAX_STOP_CHARACTERS:] + text
        if token in self.eos_token_ids:
            self.finish_reason = "stop"
        elif stops := [stop for stop in self.params.stop if stop in self.recent_text]:
            self.finish_reason, self.stop_string = "stop", stops[0]
        elif len(self.state.output_ids) == self.max_new_tokens:
            self.finish_reason = "length" if self.max_new_tokens == self.params.max_new_tokens else "context"
        return text + self.detokenizer.flush() if self.finish_reason else text


def decode_step(requests: list[Request], decode_model: DecodeModel | None = None) -> list[TokenTrace]:
    """Samples the next token of each request and runs the model on these tokens; returns their traces.

    The requests are unfinished and of one model; `decode_model` is its DecodeModel, None where that is not supported. A
    request gets the same tokens in any batch. Raises ValueError for damaged weights.
    """
    start = time.perf_counter()
    traces = [request.sample() for request in requests]
    # A last token runs through the model for its trace alone.
    running = [(r, trace) for r, trace in zip(requests, traces) if r.record or not r.finish_reason]
    if decode_model and running:
        zeros_E = torch.zeros(requests[0].model.config.n_routed_experts)
        expert_bias = {}
        for layer in {layer for request, _ in running for layer in request.router_bias}:
            biases_RE = [request.router_bias.get(layer, zeros_E) for request, _ in running]
            expert_bias[layer] = torch.stack(biases_RE).numpy()
        tokens, caches = [trace.id for _, trace in running], [request.cache for request, _ in running]
        logits_RV, routing = decode_model(tokens, caches, expert_bias)
        for row, (request, _) in enumerate(running):
            request.logits_V, request.experts = logits_RV[row].numpy(), _row_experts(routing, row)
    else:
        for request, trace in running:
            request.prefill([trace.id])
    for request, trace in running:
        trace.experts = request.experts
    for trace in traces:
        trace.milliseconds = (time.perf_counter() - start) * 1e3
    return traces


def stream(
    model,
    tokenizer,
    prompt,
    params: SamplingParams | None = None,
    forced_tokens: Mapping[int, int] | None = None,
    interventions: Iterable[Intervention] = (),
    record: bool = True,
) -> Iterator[TokenTrace]:
    """Generates from `prompt` (text or ids) with any transformers causal language model; yields a TokenTrace per token.

    The same seed, settings and checkpoint give the same tokens, whatever else runs: a sample depends on the seed, the
    position and the tokens before it alone. So `forced_tokens`, {index in the output from 0: id}, replaces single tokens
    and leaves those before them unchanged. `interventions` apply to this request alone. Closing the generator stops the
    work. Without `record`, the candidates, the stages and the last token's experts stay empty.

    Raises ValueError for a prompt that is empty or too long, an id outside the vocabulary, an intervention the model does
    not support, and damaged weights.
    """
    request = Request(model, tokenizer, prompt, params, forced_tokens, interventions, record)
    decode_model = DecodeModel(model) if supports(model) else None
    while not request.finish_reason:
        yield from decode_step([request], decode_model)


def _top_candidates(logits_N):
    """The indices of the NUM_CANDIDATES highest logits, or of all if there are fewer; highest first."""
    indices = top_k_indices(logits_N, NUM_CANDIDATES)
    return indices[np.argsort(-logits_N[indices], kind="stable")[:NUM_CANDIDATES]]


def _row_experts(routing: dict, row: int) -> dict[int, list[tuple[int, float]]]:
    """{layer: [(expert, weight), ...]}, largest weight first, of a row of {layer: (indices (R, K), weights (R, K))}."""
    return {
        layer: sorted(zip(indices[row].tolist(), weights[row].tolist()), key=lambda pair: -pair[1])
        for layer, (indices, weights) in sorted(routing.items())
    }
