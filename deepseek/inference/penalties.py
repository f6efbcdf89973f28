"""Samplers that judge a token by its id or by the text before it: bias, bans, and penalties on repetition.

Each is a function (ids, logits, params, state) -> (ids, logits) of the candidates, ascending by id, as sampling.py says.

Shape letters: V vocabulary, N candidates, T tokens of the text.
"""

import math

import numpy as np
import torch
from transformers import NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor


def logit_bias(ids_N, logits_N, params, state):
    """z_j + b_j (OpenAI's API); a text's bias is added to each of its tokens, as in llama.cpp."""
    indices, tokens = _present(ids_N, state.rules.bias)
    logits_N = logits_N.copy()
    logits_N[indices] += np.array([state.rules.bias[token] for token in tokens], np.float32)
    return ids_N, logits_N


def banned_tokens(ids_N, logits_N, params, state):
    """Removes banned tokens, and the last token of a banned text once those before it stand there (vLLM's bad_words)."""
    tokens = state.tokens("all")
    last = [ids[-1] for ids in state.rules.banned if tokens[len(tokens) - len(ids) + 1 :] == list(ids[:-1])]
    return _without(ids_N, logits_N, last)


def min_new_tokens(ids_N, logits_N, params, state):
    """Removes the tokens that end a text while it has fewer new tokens."""
    is_short = len(state.output_ids) < params.min_new_tokens
    return _without(ids_N, logits_N, state.rules.eos_token_ids if is_short else ())


def repetition(ids_N, logits_N, params, state):
    """Divides positive and multiplies negative logits of tokens that occurred (CTRL, Keskar et al. 2019)."""
    tokens = state.tokens(params.repetition_scope)
    return ids_N, _process(RepetitionPenaltyLogitsProcessor(params.repetition_penalty), ids_N, logits_N, tokens)


def ngram(ids_N, logits_N, params, state):
    """Removes tokens that would complete an n-gram that occurred (Paulus et al. 2017)."""
    tokens = state.tokens(params.repetition_scope)
    if len(tokens) < params.no_repeat_ngram_size:
        return ids_N, logits_N
    processed_N = _process(NoRepeatNGramLogitsProcessor(params.no_repeat_ngram_size), ids_N, logits_N, tokens)
    indices = np.flatnonzero(processed_N > -math.inf)
    return ids_N[indices], logits_N[indices]


def presence_frequency(ids_N, logits_N, params, state):
    """z_j - c_j * frequency - [c_j > 0] * presence, where c_j counts token j (OpenAI's API)."""
    token_ids = np.array(state.tokens(params.penalty_scope), np.int64)
    count_N = np.bincount(token_ids, minlength=ids_N[-1] + 1)[ids_N].astype(np.float32)
    return ids_N, logits_N - count_N * params.frequency_penalty - (count_N > 0) * np.float32(params.presence_penalty)


def dry(ids_N, logits_N, params, state):
    """z_j - multiplier * base^(n - allowed_length) for a token j that occurred after the last n tokens of the text.

    n is the longest such sequence, of `allowed_length` or more, without a sequence breaker in it ("Don't Repeat Yourself",
    p-e-w 2024, text-generation-webui pull 5677; conventions of llama.cpp). Reports the longest n in the state.
    """
    tokens, breakers = state.tokens("all"), state.rules.breakers
    lengths = repeated_lengths(tokens, sequence_limit(tokens, breakers), params.dry_allowed_length)
    lengths = {token: n for token, n in lengths.items() if () not in breakers.get(token, ())}
    state.details["DRY"] = {"match": max(lengths.values(), default=0)}
    indices, penalized = _present(ids_N, lengths)
    exponents = np.array([lengths[token] - params.dry_allowed_length for token in penalized], np.float64)
    with np.errstate(over="ignore"):
        penalties = params.dry_multiplier * params.dry_base**exponents
    logits_N = logits_N.copy()
    logits_N[indices] -= np.minimum(penalties, np.finfo(np.float32).max / 2).astype(np.float32)
    return ids_N, logits_N


def sequence_limit(tokens: list[int], breakers: dict[int, list[tuple[int, ...]]]) -> int:
    """The number of tokens after the last sequence breaker; `breakers` are {its first token: [its other tokens, ...]}."""
    for index in range(len(tokens) - 1, -1, -1):
        rests = breakers.get(tokens[index], ())
        ends = [index + len(rest) for rest in rests if tuple(tokens[index + 1 : index + 1 + len(rest)]) == rest]
        if ends:
            return len(tokens) - 1 - max(ends)
    return len(tokens)


def repeated_lengths(tokens: list[int], limit: int, shortest: int) -> dict[int, int]:
    """{token: the largest n from `shortest` to `limit` for which the last n tokens occurred before it}."""
    tokens_T, lengths = np.array(tokens, np.int64), {}
    ends, length = np.arange(len(tokens) - 1), 0  # of the earlier sequences that equal the last `length` tokens
    while length < limit and len(ends):
        ends = ends[ends >= length]
        ends = ends[tokens_T[ends - length] == tokens_T[-1 - length]]
        length += 1
        if length >= shortest:
            lengths |= dict.fromkeys(tokens_T[ends + 1].tolist(), length)
    return lengths


def _present(ids_N, tokens) -> tuple[np.ndarray, list[int]]:
    """(indices, tokens) of those `tokens` that are candidates."""
    tokens = np.array(sorted(tokens), np.int64)
    indices = np.minimum(ids_N.searchsorted(tokens), len(ids_N) - 1)
    is_candidate = ids_N[indices] == tokens
    return indices[is_candidate], tokens[is_candidate].tolist()


def _without(ids_N, logits_N, tokens):
    indices, _ = _present(ids_N, tokens)
    return (np.delete(ids_N, indices), np.delete(logits_N, indices)) if len(indices) else (ids_N, logits_N)


def _process(processor, ids_N, logits_N, tokens: list[int]):
    """The candidates' logits after one of transformers' processors, which wants those of a whole vocabulary."""
    tokens_1T, size = torch.tensor([tokens], dtype=torch.long), max([int(ids_N[-1]), *tokens]) + 1
    if len(ids_N) == size:
        return processor(tokens_1T, torch.from_numpy(logits_N)[None])[0].numpy()
    logits_V = np.full(size, -np.inf, np.float32)
    logits_V[ids_N] = logits_N
    return processor(tokens_1T, torch.from_numpy(logits_V)[None])[0].numpy()[ids_N]
