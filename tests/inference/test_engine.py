"""The decode loop: the right tokens, the right account of each, and nothing left running."""

import copy
import itertools
import json
import math
import threading

import pytest
import torch

from deepseek.inference.decode_model import DecodeModel, supports
from deepseek.inference.engine import Request, decode_step, stream
from deepseek.inference.sampling import MAX_STOP_CHARACTERS, SamplingParams, SamplingState, apply_samplers
from deepseek.interpret.interventions import Intervention

PROMPT = "Once upon a time"
# Few enough candidates are left that the trace lists them all.
SETTINGS = dict(temperature=1.5, top_k=8, top_p=0.8, min_p=0.05, repetition_penalty=1.2, frequency_penalty=0.5)


@pytest.fixture(scope="module")
def tokens(model, tokenizer):
    """A generated text, looked at from several sides."""
    return generate(model, tokenizer, seed=3, max_new_tokens=24, no_repeat_ngram_size=3, **SETTINGS)


def generate(model, tokenizer, prompt=PROMPT, force=None, record=True, **settings):
    return list(stream(model, tokenizer, prompt, SamplingParams(**settings), forced_tokens=force, record=record))


def ids_of(tokens):
    return [token.id for token in tokens]


def full_pass(model, tokenizer, tokens, **inputs):
    """One pass over the prompt and all tokens, without a cache."""
    with torch.no_grad():
        ids = tokenizer(PROMPT)["input_ids"] + ids_of(tokens)
        return model(torch.tensor([ids]), use_cache=False, **inputs)


# Which tokens


def test_greedy_tokens_are_those_of_transformers_generate(any_model, tokenizer):
    ids = torch.tensor([tokenizer(PROMPT)["input_ids"]])
    options = dict(do_sample=False, max_new_tokens=24, attention_mask=torch.ones_like(ids))
    expected = any_model.generate(ids, **options)[0, ids.shape[1] :].tolist()
    assert ids_of(generate(any_model, tokenizer, temperature=0, max_new_tokens=24)) == expected


def test_tokens_are_drawn_as_often_as_the_sampler_says(llama, tokenizer):
    settings = dict(max_new_tokens=1, temperature=0.7, top_k=8, top_p=0.9)
    (first,) = generate(llama, tokenizer, seed=0, **settings)
    offered = {c.id: c.probabilities[-1] for c in first.candidates if c.removed_by is None}
    drawn = [generate(llama, tokenizer, record=False, seed=seed, **settings)[0].id for seed in range(250)]
    assert set(drawn) == set(offered) and 3 < len(offered) <= 8
    for token, probability in offered.items():
        spread = math.sqrt(probability * (1 - probability) / 250)
        assert drawn.count(token) / 250 == pytest.approx(probability, abs=4 * spread)


def test_a_seed_repeats_and_another_differs(model, tokenizer):
    texts = [ids_of(generate(model, tokenizer, seed=seed, max_new_tokens=16)) for seed in (1, 1, 2, None, None)]
    assert texts[0] == texts[1]
    assert len(set(map(tuple, texts))) == 4


def test_a_seed_repeats_beside_another_stream(any_model, tokenizer):
    settings = [SamplingParams(seed=seed, max_new_tokens=12) for seed in (1, 2)]
    alone = [ids_of(stream(any_model, tokenizer, PROMPT, params)) for params in settings]
    pairs = itertools.zip_longest(*(stream(any_model, tokenizer, PROMPT, params) for params in settings))
    mixed = [ids_of(filter(None, column)) for column in zip(*pairs)]
    assert mixed == alone


def test_a_seed_repeats_in_four_threads_at_once(model, tokenizer):
    found = [None] * 4

    def work(index):
        found[index] = summary(index)

    def summary(index):
        tokens = generate(model, tokenizer, PROMPT[: 4 + index], seed=index, max_new_tokens=16)
        return [(token.id, token.experts) for token in tokens]

    alone = [summary(index) for index in range(4)]
    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for there, here in zip(found, alone):
        for (token, experts), (expected, expected_experts) in zip(there, here, strict=True):
            assert token == expected and list(experts) == list(expected_experts)
            for layer, chosen in experts.items():
                assert [e for e, _ in chosen] == [e for e, _ in expected_experts[layer]]


def test_texts_written_together_are_those_written_alone(any_model, tokenizer):
    """Others come and go; each text has settings of its own, and one of them changes to the experts."""
    experts = any_model.config.model_type != "llama"
    jobs = []
    for index in range(8):
        params = SamplingParams(seed=index, max_new_tokens=4 + 3 * index, top_k=(0, 8)[index % 2], temperature=1.2)
        changes = [Intervention(1, "off")] if experts and index == 5 else []
        jobs.append((PROMPT[: 4 + index], params, {2: 7} if index == 3 else None, changes))
    expected = [list(stream(any_model, tokenizer, *job)) for job in jobs]
    decoder = DecodeModel(any_model) if supports(any_model) else None
    texts, found = [], [[] for _ in jobs]
    waiting = list(enumerate(jobs))
    while waiting or texts:
        if waiting:  # a new one joins at every step
            index, job = waiting.pop()
            texts.append((index, Request(any_model, tokenizer, *job)))
        for (index, _), token in zip(texts, decode_step([text for _, text in texts], decoder)):
            token.milliseconds = expected[index][len(found[index])].milliseconds
            found[index].append(token)
        texts = [(index, text) for index, text in texts if not text.finish_reason]
    assert found == expected


def test_a_forced_token_takes_its_place_and_leaves_the_text_before_it(model, tokenizer):
    free = ids_of(generate(model, tokenizer, seed=5, max_new_tokens=12))
    other = (free[6] + 1) % 300 or 1
    forced = generate(model, tokenizer, seed=5, max_new_tokens=12, force={6: other})
    assert ids_of(forced)[:7] == [*free[:6], other]
    assert ids_of(forced)[7:] != free[7:]
    assert ids_of(generate(model, tokenizer, seed=5, max_new_tokens=12, force={6: free[6]})) == free


def test_a_branch_is_what_its_prefix_gives(model, tokenizer):
    """The text after a forced token is that of a prompt which ends with it; where it began decides nothing."""
    settings = dict(seed=5, temperature=0.9, top_k=40, presence_penalty=0.5, penalty_scope="all")
    branch = ids_of(generate(model, tokenizer, force={6: 77}, max_new_tokens=14, **settings))
    prefix = tokenizer(PROMPT)["input_ids"] + branch[:7]
    assert branch[6] == 77 and ids_of(generate(model, tokenizer, prefix, max_new_tokens=7, **settings)) == branch[7:]


# When it ends


@pytest.mark.parametrize("room, finish", [(3, "length"), (100, "context full")])
def test_length_and_context_end_the_text(model, tokenizer, room, finish_reason):
    prompt = [5] * (model.config.max_position_embeddings - 6)
    tokens = generate(model, tokenizer, prompt, seed=0, max_new_tokens=room)
    assert len(tokens) == min(room, 6)
    assert [token.finish_reason for token in tokens] == [None] * (len(tokens) - 1) + [finish_reason]


@pytest.mark.parametrize("several", [False, True])
def test_an_end_token_ends_the_text(any_model, tokenizer, monkeypatch, several):
    free = ids_of(generate(any_model, tokenizer, seed=0, max_new_tokens=8))
    end = free[4]
    monkeypatch.setattr(any_model.generation_config, "eos_token_id", [299, end] if several else end)
    tokens = generate(any_model, tokenizer, seed=0, max_new_tokens=8)
    assert ids_of(tokens) == free[: free.index(end) + 1] and tokens[-1].finish_reason == "end of text"


def test_a_stop_string_ends_the_text_where_it_is_complete(model, tokenizer):
    settings = dict(seed=0, max_new_tokens=200, temperature=0.5)
    free = generate(model, tokenizer, **settings)
    ends = list(itertools.gradient_accumulation_steps(len(token.text) for token in free))
    text = "".join(token.text for token in free)
    # The longest one allowed, complete in the middle of a token.
    middle = next(end - 1 for end, token in zip(ends, free) if end > MAX_STOP_CHARACTERS and len(token.text) > 1)
    for stop in (text[10:13], text[3:30], text[middle - MAX_STOP_CHARACTERS : middle]):
        tokens = generate(model, tokenizer, stop=["never there", stop], **settings)
        assert stop in "".join(token.text for token in tokens)
        assert stop not in "".join(token.text for token in tokens[:-1])
        assert tokens[-1].finish_reason == "stop string" and ids_of(tokens) == ids_of(free)[: len(tokens)]


def test_closing_the_stream_stops_the_work(any_model, tokenizer):
    passes = []
    hook = any_model.register_forward_hook(lambda *_: passes.append(1))
    try:
        running = stream(any_model, tokenizer, PROMPT, SamplingParams(seed=0))
        list(itertools.islice(running, 3))
        assert len(passes) <= 4, "no token is computed before it is asked for"
        running.close()
        before = len(passes)
        threading.Event().wait(0.1)
        assert len(passes) == before and list(running) == []
    finally:
        hook.remove()


def test_the_consumer_keeps_its_own_torch_state(model, tokenizer):
    """Inference mode or a reseeded generator that outlives a yield would quietly break code around the loop."""
    state = torch.get_rng_state()
    for _ in stream(model, tokenizer, PROMPT, SamplingParams(max_new_tokens=2)):
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("prompt", ["", [], [5] * 256])
def test_a_prompt_that_cannot_be_continued_is_refused(model, tokenizer, prompt):
    with pytest.raises(ValueError, match="^prompt "):
        generate(model, tokenizer, prompt)


# What is told of each token


def test_texts_join_to_the_full_decode(any_model, tokenizer):
    tokens = generate(any_model, tokenizer, seed=0, max_new_tokens=40)
    assert "".join(token.text for token in tokens) == tokenizer.decode(ids_of(tokens), skip_special_tokens=True)


def test_figures_are_those_of_a_full_pass(any_model, tokenizer):
    tokens = generate(any_model, tokenizer, seed=0, max_new_tokens=16)
    logits = full_pass(any_model, tokenizer, tokens).logits[0]
    prompt = tokenizer(PROMPT)["input_ids"]
    for place, token in enumerate(tokens):
        assert token.position == len(prompt) + place and token.milliseconds > 0
        p = logits[token.position - 1].softmax(-1)
        assert token.probability == pytest.approx(float(p[token.id]), abs=1e-5)
        assert token.rank == 1 + int((p > p[token.id]).sum())
        assert token.entropy == pytest.approx(float(-(p * p.log()).sum()), abs=1e-4)
        assert token.sampler_probability == token.probability and token.temperature == 1


def softmax(logits_N):
    return torch.from_numpy(logits_N).softmax(-1)


def test_sampler_probability_is_that_of_the_settings(any_model, tokenizer):
    params = SamplingParams(seed=1, max_new_tokens=16, dynamic_temperature=True, order="llama.cpp", **SETTINGS)
    tokens = list(stream(any_model, tokenizer, PROMPT, params))
    logits = full_pass(any_model, tokenizer, tokens).logits[0]
    for place, token in enumerate(tokens):
        context = SamplingState(tokenizer(PROMPT)["input_ids"], ids_of(tokens[:place]))
        *_, (*_, before), (name, _, ids, final) = apply_samplers(logits[token.position - 1].numpy(), params, context)
        assert token.sampler_probability == pytest.approx(float(softmax(final)[ids == token.id]), abs=1e-4)
        assert token.temperature == pytest.approx(context.temperature, abs=1e-4)
        left = softmax(before)
        assert name == "temperature" and len(left) == token.stages[-2].num_candidates
        assert token.temperature_entropy == pytest.approx(float(-(left * left.log()).sum()), abs=1e-4)


def test_experts_are_those_of_a_full_pass(model, tokenizer, tokens):
    output = full_pass(model, tokenizer, tokens, output_router_indices=True)
    for token in tokens:
        assert list(token.experts) == [1, 2]
        for (_, chosen), indices in zip(token.experts.items(), output.router_indices):
            experts, weights = zip(*chosen)
            assert sorted(experts) == sorted(indices[token.position].tolist())
            assert sum(weights) == pytest.approx(model.config.routed_scaling_factor, abs=1e-5)
            assert list(weights) == sorted(weights, reverse=True)


def test_dense_models_have_no_experts(llama, tokenizer):
    assert all(token.experts == {} for token in generate(llama, tokenizer, seed=0, max_new_tokens=2))


def test_candidates_say_which_stage_removed_them(tokens):
    removers = set()
    for token in tokens:
        names = ["raw", *(stage.name for stage in token.stages)]
        for candidate in token.candidates:
            gone = [name for name, p in zip(names, candidate.probabilities, strict=True) if p == 0]
            assert candidate.removed_by == (gone[0] if gone else None)
        removers |= {candidate.removed_by for candidate in token.candidates}
    assert {None, "top-k", "top-p"} <= removers


def test_survivors_are_counted_and_include_the_token_drawn(tokens):
    for token in tokens:
        left = [stage.num_candidates for stage in token.stages]
        assert left == sorted(left, reverse=True) and left[0] == 300
        support = [c for c in token.candidates if c.removed_by is None]
        assert len(support) == left[-1] <= 8 and token.id in ids_of(support)
        assert sum(c.probabilities[-1] for c in support) == pytest.approx(1, abs=1e-5)
        drawn = next(c for c in support if c.id == token.id)
        assert drawn.probabilities[-1] == pytest.approx(token.sampler_probability)
        assert drawn.probabilities[0] == pytest.approx(token.probability)


def test_a_stage_tells_whether_it_was_asked_for_and_whether_it_changed_anything(model, tokenizer):
    (token,) = generate(model, tokenizer, seed=0, max_new_tokens=1, top_k=8, min_p=1e-9, frequency_penalty=1)
    told = {stage.name: (stage.active, stage.changed) for stage in token.stages}
    assert told["top-k"] == (True, True)
    assert told["min-p"] == told["presence and frequency"] == (True, False)
    assert told["temperature"] == told["repetition"] == (False, False)


def test_without_record_the_same_tokens_come_with_less_said(model, tokenizer, tokens):
    plain = generate(model, tokenizer, seed=3, max_new_tokens=24, no_repeat_ngram_size=3, record=False, **SETTINGS)
    assert ids_of(plain) == ids_of(tokens)
    assert all(token.candidates == [] for token in plain)


def test_a_trace_is_json(tokens):
    assert json.loads(json.dumps(tokens[0].as_dict()))["stages"][0]["name"] == "repetition"


@pytest.mark.parametrize("token", [-1, 300, 10**9])
def test_an_id_outside_the_vocabulary_is_refused(model, tokenizer, token):
    with pytest.raises(ValueError, match=f"force holds id {token}"):
        generate(model, tokenizer, force={2: token})


def test_damaged_weights_are_told(model, tokenizer):
    damaged = copy.deepcopy(model)
    damaged.model.norm.weight.data[0] = float("nan")
    with pytest.raises(ValueError, match="damaged"):
        generate(damaged, tokenizer)
