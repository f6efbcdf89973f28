"""The decode loop: `stream` yields a TokenTrace for each token; `decode_step` advances a batch of requests by one token.

It replaces transformers' `generate`, which accepts no torch.Generator, hides the sampler's steps, and cannot be stopped
between two tokens from outside.

Shape letters: V vocabulary, N candidates, R requests, E experts.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from functools import cache

import numpy as np
import torch

from deepseek.checkpoints.memory import free_memory
from deepseek.data.chat import end_of_turn_ids
from deepseek.data.tokenizer import IncrementalDetokenizer, encode_prompt
from deepseek.inference.adaptive import accept
from deepseek.inference.decode_model import DecodeModel, new_cache, supports
from deepseek.inference.grammar import Grammar, is_constrained
from deepseek.inference.sampling import MAX_STOP_CHARACTERS, SamplingParams, SamplingState, apply_samplers
from deepseek.inference.token_rules import token_rules
from deepseek.inference.token_trace import TokenTrace, record_samplers
from deepseek.interpret.attention import num_heads
from deepseek.interpret.interventions import Intervention, intervened, router_biases
from deepseek.interpret.kv_cache import cache_elements, cache_of
from deepseek.interpret.moe_layers import recorded_experts
from deepseek.interpret.trace import context_length
from deepseek.kernels.sampling import lookup_probs, sample_index, softmax_entropy

PREFILL_COPIES = 40  # of a hidden state, in fp32, that a layer's forward holds at most


class Request:
    """A sequence being generated and everything its next token depends on; `decode_step` advances it by one token.

    Takes the arguments of `stream` and raises ValueError as `stream` does.
    """

    def __init__(
        self, model, tokenizer, prompt, params=None, forced_tokens=None, interventions=(), record=True, probe=()
    ):
        self.model, self.record, self.params = model, record, params or SamplingParams()
        self.forced_tokens, self.interventions, self.probe = forced_tokens or {}, list(interventions), list(probe)
        vocab_size = model.config.get_text_config().vocab_size
        for name, ids in (("forced_tokens", self.forced_tokens.values()), ("probe", self.probe)):
            for token in ids:
                if not 0 <= token < vocab_size:
                    raise ValueError(f"{name} holds id {token}; it must be from 0 to {vocab_size - 1}.")
        max_len = context_length(model)
        self.prompt_ids = encode_prompt(tokenizer, prompt, max_len, vocab_size=vocab_size)
        self.max_new_tokens = self.params.max_new_tokens
        if max_len:
            self.max_new_tokens = min(self.max_new_tokens, max_len - len(self.prompt_ids))
        self._check_memory(len(self.prompt_ids) + self.max_new_tokens)
        self.router_bias = router_biases(model, self.interventions)
        self.generator = torch.Generator()
        self.seed = self.generator.seed() if self.params.seed is None else self.params.seed
        eos_token_id = model.generation_config.eos_token_id
        self.eos_token_ids = {eos_token_id} if isinstance(eos_token_id, int) else set(eos_token_id or [])
        self.eos_token_ids |= end_of_turn_ids(tokenizer)
        self.detokenizer, self.recent_text = IncrementalDetokenizer(tokenizer), ""
        self.token_text = cache(lambda token: tokenizer.decode([token]))  # most candidates recur at later tokens
        # Marks of a text's begin and end are no content: penalties for the prompt's must not keep the output from ending.
        marks = self.eos_token_ids | {tokenizer.bos_token_id}
        rules = token_rules(self.params, tokenizer, vocab_size, self.eos_token_ids)
        self.state = SamplingState([token for token in self.prompt_ids if token not in marks], [], rules)
        if is_constrained(self.params):
            self.state.grammar = Grammar(self.params, tokenizer, vocab_size, frozenset(self.eos_token_ids))
        self.finish_reason: str | None = None
        self.stop_string: str | None = None
        self.cache = new_cache(model, len(self.prompt_ids) + self.max_new_tokens)
        self.cache_name = "past_key_values"
        self.prefill(self.prompt_ids)

    def _check_memory(self, num_tokens: int) -> None:
        """Refuses a request for whose cache and prefill the memory does not suffice: the system would end the process."""
        config = self.model.config.get_text_config()
        cache = sum(elements for elements, _ in cache_elements(self.model)) * self.model.dtype.itemsize
        prefill = PREFILL_COPIES * config.hidden_size * 4
        if getattr(config, "_attn_implementation", None) == "eager":
            prefill += 2 * num_heads(self.model) * len(self.prompt_ids) * 4
        required, free = num_tokens * cache + len(self.prompt_ids) * prefill, free_memory()
        if free is not None and required > free:
            sizes = f"{required / 2**30:.1f} GiB of memory; {free / 2**30:.1f} GiB are free"
            raise ValueError(f"prompt and max_new_tokens are {num_tokens:,} tokens, which need {sizes}.")

    @torch.inference_mode()
    def prefill(self, ids: list[int]) -> None:
        """Runs the model's own forward on `ids`, after those in the cache; sets the logits and experts of the last id."""
        if self.cache is None:  # at first; and of a model whose cache cannot be continued from
            ids = self.prompt_ids + self.state.output_ids
        with intervened(self.model, self.interventions), recorded_experts(self.model) as experts:
            ids_1S = torch.tensor([ids], device=self.model.device)
            output = self.model(ids_1S, **{self.cache_name: self.cache}, use_cache=True, logits_to_keep=1)
        self.logits_V = output.logits[0, -1].float().cpu().numpy()
        self.cache_name, self.cache = cache_of(output, len(self.prompt_ids) + len(self.state.output_ids))
        self.experts = _row_experts({layer: (ran.indices, ran.weights) for layer, ran in experts.items()}, -1)

    @torch.inference_mode()
    def sample(self) -> TokenTrace:
        """Samples the next token and decides whether it is the last; returns its trace, without experts and time.

        Raises ValueError for logits that are NaN.
        """
        if np.isnan(self.logits_V.max()):
            raise ValueError("the model's logits are NaN; its weights are damaged.")
        output_index = len(self.state.output_ids)
        position = len(self.prompt_ids) + output_index
        # One uniform number: torch.multinomial takes one per token, so requests of one seed would share rare tokens.
        self.generator.manual_seed((self.seed * 1_000_003 + position) % 2**63)
        uniform, self.state.uniform = torch.rand(2, dtype=torch.float64, generator=self.generator).tolist()
        steps = list(apply_samplers(self.logits_V, self.params, self.state))
        *_, ids_N, logits_N = steps[-1]
        (model_probs_V, entropy), (probs_N, _) = softmax_entropy(self.logits_V), softmax_entropy(logits_N)
        token = self.forced_tokens.get(output_index)
        if token is None:
            token = int(ids_N[sample_index(probs_N, uniform)])
        accept(token, self.params, self.state)
        stages, candidates = [], []
        if self.record:
            trace = self.logits_V, model_probs_V, steps, dict(self.state.details), token, self.probe, self.token_text
            stages, candidates = record_samplers(*trace)
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

    def _finish(self, token: int) -> str:
        """Sets the finish reason if the newest token is the last; returns the text to emit with it, up to a stop string.

        An end token has no text: it ends the text and is no part of it.
        """
        text = "" if token in self.eos_token_ids else self.detokenizer.add_token(token)
        self.recent_text = self.recent_text[-MAX_STOP_CHARACTERS:] + text
        grammar = self.state.grammar
        if token in self.eos_token_ids or grammar and grammar.is_finished and not self.eos_token_ids:
            self.finish_reason = "stop"
        elif ends := [(self.recent_text.index(s) + len(s), s) for s in self.params.stop if s in self.recent_text]:
            end, self.stop_string = min(ends)
            self.finish_reason = "stop"
            return text[: len(text) - len(self.recent_text) + end]
        elif len(self.state.output_ids) == self.max_new_tokens:
            self.finish_reason = "length" if self.max_new_tokens == self.params.max_new_tokens else "context"
        return text + self.detokenizer.flush() if self.finish_reason else text


def decode_step(requests: list[Request], decode_model: DecodeModel | None = None) -> list[TokenTrace | BaseException]:
    """Samples the next token of each request and runs the model on these tokens; returns their traces.

    The requests are unfinished and of one model; `decode_model` is its DecodeModel, None where that is not supported. A
    request gets the same tokens in any batch, and one that fails, as for damaged weights, has its exception in place of a
    trace. Raises what the model raises on the whole batch.
    """
    start = time.perf_counter()
    traces = [_attempt(request.sample) for request in requests]
    sampled = [(request, trace) for request, trace in zip(requests, traces) if isinstance(trace, TokenTrace)]
    # A last token runs through the model for its trace alone.
    running = [(request, trace) for request, trace in sampled if request.record or not request.finish_reason]
    if decode_model and running:
        expert_bias = {}
        for layer in {layer for request, _ in running for layer in request.router_bias}:
            biases = [request.router_bias.get(layer, torch.zeros(1)) for request, _ in running]
            expert_bias[layer] = torch.stack(torch.broadcast_tensors(*biases)).numpy()
        tokens, caches = [trace.id for _, trace in running], [request.cache for request, _ in running]
        logits_RV, routing = decode_model(tokens, caches, expert_bias)
        for row, (request, _) in enumerate(running):
            request.logits_V, request.experts = logits_RV[row].numpy(), _row_experts(routing, row)
    else:
        failed = {request: error for request, trace in running if (error := _attempt(request.prefill, [trace.id]))}
        traces = [failed.get(request, trace) for request, trace in zip(requests, traces)]
    for request, trace in running:
        trace.experts = request.experts
    for _, trace in sampled:
        trace.milliseconds = (time.perf_counter() - start) * 1e3
    return traces


def _attempt(function, *arguments):
    """What a function returns, or the exception that it raises; a tokenizer written in Rust raises BaseExceptions."""
    try:
        return function(*arguments)
    except BaseException as error:
        return error


def stream(
    model,
    tokenizer,
    prompt,
    params: SamplingParams | None = None,
    forced_tokens: Mapping[int, int] | None = None,
    interventions: Iterable[Intervention] = (),
    record: bool = True,
    probe: Iterable[int] = (),
    decode_model: DecodeModel | None = None,
) -> Iterator[TokenTrace]:
    """Generates from `prompt` with any transformers causal language model; yields a TokenTrace per token.

    The prompt is text, ids, or a chat: a list of {"role", "content"}, which the tokenizer's chat template renders up to where the
    assistant's answer begins. Generation ends at the model's end tokens and at those of `chat.end_of_turn_ids`.

    The same seed, settings and checkpoint give the same tokens, whatever else runs: a sample depends on the seed, the
    position and the tokens before it alone. So `forced_tokens`, {index in the output from 0: id}, replaces single tokens
    and leaves those before them unchanged. `interventions` apply to this request alone. Closing the generator stops the
    work. Without `record`, the candidates, the stages and the last token's experts stay empty; the ids of `probe` are always
    among the candidates, with their ranks. A `decode_model` of this model, DecodeModel(model, "int8"), decodes in place of the
    one in the model's own precision that is otherwise made here, if it can be.

    Raises ValueError for a prompt that is empty or too long, messages that the chat template does not take, an id outside the
    vocabulary, an intervention the model does not support, and damaged weights.
    """
    batch = [params or SamplingParams()]
    options = forced_tokens, interventions, record, probe, decode_model
    for (token,) in stream_batch(model, tokenizer, prompt, batch, *options):
        yield token


def stream_batch(
    model,
    tokenizer,
    prompt,
    batch: Iterable[SamplingParams],
    forced_tokens=None,
    interventions=(),
    record: bool = True,
    probe: Iterable[int] = (),
    decode_model: DecodeModel | None = None,
) -> Iterator[list[TokenTrace | None]]:
    """`stream` for each of the settings in `batch`, decoded together; yields a token for each, None once an output has ended.

    Raises ValueError as `stream` does.
    """
    options = forced_tokens, interventions, record, probe
    requests = [Request(model, tokenizer, prompt, params, *options) for params in batch]
    if decode_model is None and supports(model):
        decode_model = DecodeModel(model)
    while running := [request for request in requests if not request.finish_reason]:
        outputs = dict(zip(running, decode_step(running, decode_model)))
        for output in outputs.values():
            if isinstance(output, BaseException):
                raise output
        yield [outputs.get(request) for request in requests]


def _row_experts(routing: dict, row: int) -> dict[int, list[tuple[int, float]]]:
    """{layer: [(expert, weight), ...]}, largest weight first, of a row of {layer: (indices (R, K), weights (R, K))}."""
    return {
        layer: sorted(zip(indices[row].tolist(), weights[row].tolist()), key=lambda pair: -pair[1])
        for layer, (indices, weights) in sorted(routing.items())
    }
