"""The decode loop: which tokens it gives, when it stops, and that nothing else changes them."""

import copy
import itertools
import math
import threading

import pytest
import torch

from deepseek.inference import engine
from deepseek.inference.decode_model import DecodeModel, supports
from deepseek.inference.engine import Request, decode_step, stream
from deepseek.inference.sampling import MAX_STOP_CHARACTERS, SamplingParams
from deepseek.interpret.interventions import Intervention

PROMPT = "Once upon a time"


def generate(model, tokenizer, prompt=PROMPT, forced_tokens=None, record=True, **settings):
    return list(stream(model, tokenizer, prompt, SamplingParams(**settings), forced_tokens, record=record))


def ids_of(tokens):
    return [token.id for token in tokens]


# Which tokens


def test_greedy_tokens_are_those_of_transformers_generate(any_model, tokenizer):
    ids = torch.tensor([tokenizer(PROMPT)["input_ids"]])
    options = dict(do_sample=False, max_new_tokens=24, attention_mask=torch.ones_like(ids))
    expected = any_model.generate(ids, **options)[0, ids.shape[1] :].tolist()
    assert ids_of(generate(any_model, tokenizer, temperature=0, max_new_tokens=24)) == expected


def test_tokens_are_sampled_as_often_as_the_sampler_says(llama, tokenizer):
    settings = dict(max_new_tokens=1, temperature=0.7, top_k=8, top_p=0.9)
    (first,) = generate(llama, tokenizer, seed=0, **settings)
    probabilities = {c.id: c.probabilities[-1] for c in first.candidates if c.removed_by is None}
    sampled = [generate(llama, tokenizer, record=False, seed=seed, **settings)[0].id for seed in range(250)]
    assert set(sampled) == set(probabilities) and 3 < len(probabilities) <= 8
    for token, probability in probabilities.items():
        deviation = math.sqrt(probability * (1 - probability) / 250)
        assert sampled.count(token) / 250 == pytest.approx(probability, abs=4 * deviation)


def test_a_seed_repeats_and_another_differs(model, tokenizer):
    outputs = [ids_of(generate(model, tokenizer, seed=seed, max_new_tokens=16)) for seed in (1, 1, 2, None, None)]
    assert outputs[0] == outputs[1]
    assert len(set(map(tuple, outputs))) == 4


def test_a_seed_repeats_beside_another_stream(any_model, tokenizer):
    settings = [SamplingParams(seed=seed, max_new_tokens=12) for seed in (1, 2)]
    separate = [ids_of(stream(any_model, tokenizer, PROMPT, params)) for params in settings]
    pairs = itertools.zip_longest(*(stream(any_model, tokenizer, PROMPT, params) for params in settings))
    interleaved = [ids_of(filter(None, column)) for column in zip(*pairs)]
    assert interleaved == separate


def test_a_seed_repeats_in_four_threads_at_once(model, tokenizer):
    results = [None] * 4

    def summary(index):
        tokens = generate(model, tokenizer, PROMPT[: 4 + index], seed=index, max_new_tokens=16)
        return [
            (token.id, {layer: [expert for expert, _ in pairs] for layer, pairs in token.experts.items()})
            for token in tokens
        ]

    def work(index):
        results[index] = summary(index)

    expected = [summary(index) for index in range(4)]
    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == expected


def test_a_batch_gives_each_request_the_traces_it_gets_alone(any_model, tokenizer):
    """Requests join and leave; each has settings of its own, one has interventions and one a forced token."""
    experts = any_model.config.model_type != "llama"
    jobs = []
    for index in range(8):
        params = SamplingParams(seed=index, max_new_tokens=4 + 3 * index, top_k=(0, 8)[index % 2], temperature=1.2)
        interventions = [Intervention(1, "off")] if experts and index == 5 else []
        jobs.append((PROMPT[: 4 + index], params, {2: 7} if index == 3 else None, interventions))
    expected = [list(stream(any_model, tokenizer, *job)) for job in jobs]
    decode_model = DecodeModel(any_model) if supports(any_model) else None
    requests, traces = {}, [[] for _ in jobs]
    waiting = list(enumerate(jobs))
    while waiting or requests:
        if waiting:  # one joins at every step
            index, job = waiting.pop()
            requests[index] = Request(any_model, tokenizer, *job)
        for index, token in zip(requests, decode_step(list(requests.values()), decode_model)):
            token.milliseconds = expected[index][len(traces[index])].milliseconds
            traces[index].append(token)
        requests = {index: request for index, request in requests.items() if not request.finish_reason}
    assert traces == expected


def test_a_request_that_fails_does_not_end_those_beside_it(any_model, tokenizer):
    requests = [Request(any_model, tokenizer, PROMPT, SamplingParams(seed=1, max_new_tokens=3)) for _ in range(3)]
    expected = ids_of(generate(any_model, tokenizer, seed=1, max_new_tokens=3))
    requests[1].logits_V[:] = float("nan")
    decode_model = DecodeModel(any_model) if supports(any_model) else None
    first, error, third = decode_step(requests, decode_model)
    assert isinstance(error, ValueError) and first.id == third.id == expected[0]
    pairs = [decode_step(requests[::2], decode_model) for _ in range(2)]
    assert [[a.id, b.id] for a, b in pairs] == [[token] * 2 for token in expected[1:]]


def test_a_request_that_memory_cannot_hold_is_refused(any_model, tokenizer, monkeypatch):
    monkeypatch.setattr(engine, "free_memory", lambda: 10_000)
    with pytest.raises(ValueError, match=r"are \d+ tokens, which need 0.0 GiB of memory; 0.0 GiB are free"):
        generate(any_model, tokenizer, seed=1, max_new_tokens=20)


def test_a_forced_token_replaces_one_and_leaves_those_before_it(model, tokenizer):
    free = ids_of(generate(model, tokenizer, seed=5, max_new_tokens=12))
    replacement = (free[6] + 1) % 300 or 1
    forced = ids_of(generate(model, tokenizer, seed=5, max_new_tokens=12, forced_tokens={6: replacement}))
    assert forced[:7] == [*free[:6], replacement] and forced[7:] != free[7:]
    assert ids_of(generate(model, tokenizer, seed=5, max_new_tokens=12, forced_tokens={6: free[6]})) == free


def test_a_branch_is_what_its_prefix_gives(model, tokenizer):
    """The output after a forced token is that of a prompt that ends with it, wherever the prompt ended before."""
    settings = dict(seed=5, temperature=0.9, top_k=40, presence_penalty=0.5, penalty_scope="all")
    branch = ids_of(generate(model, tokenizer, forced_tokens={6: 77}, max_new_tokens=14, **settings))
    prefix = tokenizer(PROMPT)["input_ids"] + branch[:7]
    assert branch[6] == 77 and ids_of(generate(model, tokenizer, prefix, max_new_tokens=7, **settings)) == branch[7:]


# When it stops


@pytest.mark.parametrize("max_new_tokens, finish_reason", [(3, "length"), (100, "context")])
def test_length_and_context_end_the_output(model, tokenizer, max_new_tokens, finish_reason):
    prompt = [5] * (model.config.max_position_embeddings - 6)
    tokens = generate(model, tokenizer, prompt, seed=0, max_new_tokens=max_new_tokens)
    assert len(tokens) == min(max_new_tokens, 6)
    assert [token.finish_reason for token in tokens] == [None] * (len(tokens) - 1) + [finish_reason]
    assert tokens[-1].ended_by == {"length": "length", "context": "context full"}[finish_reason]


@pytest.mark.parametrize("several", [False, True])
def test_an_end_of_text_token_ends_the_output(any_model, tokenizer, monkeypatch, several):
    free = ids_of(generate(any_model, tokenizer, seed=0, max_new_tokens=8))
    end = free[4]
    monkeypatch.setattr(any_model.generation_config, "eos_token_id", [299, end] if several else end)
    tokens = generate(any_model, tokenizer, seed=0, max_new_tokens=8)
    assert ids_of(tokens) == free[: free.index(end) + 1]
    assert (tokens[-1].finish_reason, tokens[-1].stop_string) == ("stop", None)
    assert tokens[-1].ended_by == "end of text"


def test_a_prompt_that_holds_the_end_token_does_not_keep_the_output_from_ending(model, tokenizer):
    """It begins with it: one token marks begin and end."""
    options = dict(no_repeat_ngram_size=1, repetition_penalty=5, presence_penalty=5, penalty_scope="all", temperature=0)
    request = Request(model, tokenizer, "Once<|endoftext|>Once", SamplingParams(**options))
    assert request.prompt_ids.count(0) == 2
    request.logits_V[0] = request.logits_V.max() + 1
    token = request.sample()
    assert (token.id, token.finish_reason) == (0, "stop")


def test_a_stop_string_ends_the_output_where_it_is_complete(model, tokenizer):
    settings = dict(seed=0, max_new_tokens=200, temperature=0.5)
    free = generate(model, tokenizer, **settings)
    ends = list(itertools.accumulate(len(token.text) for token in free))
    text = "".join(token.text for token in free)
    # The longest one allowed, complete in the middle of a token.
    middle = next(end - 1 for end, token in zip(ends, free) if end > MAX_STOP_CHARACTERS and len(token.text) > 1)
    for stop in (text[10:13], text[3:30], text[middle - MAX_STOP_CHARACTERS : middle]):
        tokens = generate(model, tokenizer, stop=["never there", stop], **settings)
        assert "".join(token.text for token in tokens) == text[: text.index(stop) + len(stop)], (
            "not the rest of its token"
        )
        assert stop not in "".join(token.text for token in tokens[:-1])
        assert (tokens[-1].finish_reason, tokens[-1].stop_string) == ("stop", stop)
        assert tokens[-1].ended_by == "stop string" and ids_of(tokens) == ids_of(free)[: len(tokens)]


def test_a_token_is_computed_when_it_is_asked_for(any_model, tokenizer):
    passes = []
    hook = any_model.register_forward_hook(lambda *_: passes.append(1))
    try:
        tokens = stream(any_model, tokenizer, PROMPT, SamplingParams(seed=0))
        list(itertools.islice(tokens, 3))
        num_passes, num_threads = len(passes), threading.active_count()
        assert num_passes <= 4
        tokens.close()
        assert list(tokens) == [] and len(passes) == num_passes and threading.active_count() == num_threads
    finally:
        hook.remove()


def test_the_consumer_keeps_its_own_torch_state(model, tokenizer):
    """Inference mode or a reseeded generator that outlives a yield would quietly break code around the loop."""
    state = torch.get_rng_state()
    for _ in stream(model, tokenizer, PROMPT, SamplingParams(max_new_tokens=2)):
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    assert torch.equal(torch.get_rng_state(), state)


# What is refused


@pytest.mark.parametrize("prompt", ["", [], [5] * 256])
def test_an_empty_or_too_long_prompt_is_refused(model, tokenizer, prompt):
    with pytest.raises(ValueError, match="^prompt "):
        generate(model, tokenizer, prompt)


@pytest.mark.parametrize("token", [-1, 300, 10**9])
def test_an_id_outside_the_vocabulary_is_refused(model, tokenizer, token):
    with pytest.raises(ValueError, match=f"forced_tokens holds id {token}; it must be from 0 to 299"):
        generate(model, tokenizer, forced_tokens={2: token})


def test_damaged_weights_are_reported(model, tokenizer):
    damaged = copy.deepcopy(model)
    damaged.model.norm.weight.data[0] = float("nan")
    with pytest.raises(ValueError, match="damaged"):
        generate(damaged, tokenizer)
