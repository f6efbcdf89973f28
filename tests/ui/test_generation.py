"""Generations of the page, on the demo."""

import threading
import time
from types import SimpleNamespace

import gradio as gr

from deepseek import SamplingParams, load, stream
from deepseek.checkpoints import progress
from deepseek.ui import page
from deepseek.ui.components.traces import as_sampled, trace_text
from deepseek.ui.generation import generate


def test_concurrent_generations_equal_their_solo_runs(demo):
    params = [SamplingParams(seed=seed, max_new_tokens=16) for seed in range(4)]
    solo = [[token.id for token in stream(*demo, "The old man", p)] for p in params]
    outputs = [None] * 4

    def work(index):
        *_, generation = generate(*demo, "The old man", params[index])
        outputs[index] = [token.id for token in generation.tokens]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert outputs == solo


def test_the_first_token_of_a_model_in_its_files_comes_with_progress(checkpoint, monkeypatch):
    whole, tokenizer = load(checkpoint)
    size = sum(parameter.nbytes for parameter in whole.parameters())
    mapped, _ = load(checkpoint, whole.dtype, max_memory=int(1.1 * size))
    mapped.model.layers[1].register_forward_hook(lambda *_: time.sleep(0.1))  # half of the experts are read
    monkeypatch.setattr(progress, "UPDATE_S", 0.02)
    params = SamplingParams(seed=1, max_new_tokens=5)
    stats = [generation.stats for generation in generate(mapped, tokenizer, "The old man", params)]
    assert "reading the experts: 50%…" in stats[:-1] and stats[-1].startswith("5 tokens")
    *_, expected = generate(whole, tokenizer, "The old man", params)
    assert stats[-1].split(" · ")[-1] == expected.stats.split(" · ")[-1]


def test_a_branch_keeps_the_tokens_before_it_and_continues_from_there(demo):
    params = SamplingParams(temperature=0.9, top_k=50, presence_penalty=0.4, seed=11, max_new_tokens=30)
    *_, parent = generate(*demo, "Once upon a time", params)
    other = next(c.id for c in parent.tokens[10].candidates if c.id != parent.tokens[10].id)
    *_, branch = generate(*demo, "Once upon a time", params, {10: other}, parent.branches)
    ids = [token.id for token in branch.tokens]
    assert ids[:10] == [token.id for token in parent.tokens[:10]] and ids[10] == other
    forced = dict(enumerate(ids[:11]))
    assert [t.id for t in stream(*demo, "Once upon a time", params, forced)] == ids
    unchanged = {10: parent.tokens[10].id}
    *_, same = generate(*demo, "Once upon a time", params, unchanged, parent.branches)
    assert [token.id for token in same.tokens] == [token.id for token in parent.tokens]


def test_other_tabs_read_a_text_as_the_tokens_that_were_sampled(demo):
    """Not as those that its text is tokenized to, here fewer."""
    model, tokenizer = demo
    letters = dict(enumerate(tokenizer.convert_tokens_to_ids(list("once"))))
    *_, generation = generate(*demo, "At", SamplingParams(seed=3, max_new_tokens=6), letters)
    read = trace_text(*demo, as_sampled(generation.text, generation, model))
    assert tuple(read.ids) == generation.ids and read.ids[-6:] == [token.id for token in generation.tokens]
    assert len(trace_text(*demo, generation.text).ids) < len(read.ids)
    assert as_sampled("At", generation, model) == "At"
    generation.checkpoint = "another"
    assert as_sampled(generation.text, generation, model) == generation.text, "its ids mean nothing to another model"


def test_tabs_follow_the_sample_but_keep_a_text_of_the_user_s():
    sample = SimpleNamespace(text="new")
    assert page.give_text(sample, "old", "old", "", "mine") == ["new", "new", "new", gr.skip()]
