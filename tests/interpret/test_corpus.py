"""Kinds of text as a model routed them, against traces of their windows."""

import pytest
import torch

from deepseek import trace
from deepseek.interpret.corpus import MAX_KEPT, MAX_SAMPLED, cached_corpus, trace_corpus
from deepseek.interpret.router_inputs import recorded_router_inputs

TEXTS = {"foxes": "Once upon a time a fox ran over the hill. " * 20, "numbers": "12 34 56 78 " * 30}


@pytest.fixture(scope="module")
def corpus(model, tokenizer):
    return trace_corpus(model, tokenizer, TEXTS)


def test_every_window_comes_without_its_first_token(model, tokenizer, corpus):
    expected = []
    for kind, text in enumerate(TEXTS.values()):
        ids = tokenizer(text)["input_ids"]
        for start in range(0, len(ids), 256):
            traced = trace(model, tokenizer, ids[start : start + 256])
            likely = model(torch.tensor([traced.ids])).logits[0].argmax(-1).tolist()
            for place in range(1, len(traced.ids)):
                experts = [layer.indices[place].tolist() for layer in traced.routing]
                expected.append((kind, traced.ids[place], likely[place], place > 1, experts))
    columns = corpus.kind_T, corpus.ids_T, corpus.predicted_T, corpus.follows_T
    experts = [list(rows) for rows in zip(*(layer.indices.tolist() for layer in corpus.routing))]
    assert [*zip(*(column.tolist() for column in columns), experts)] == expected
    assert len(tokenizer(TEXTS["foxes"])["input_ids"]) > 256, "more than one window"
    assert corpus.num_tokens == [sum(row[0] == kind for row in expected) for kind in range(2)]
    assert corpus.kinds == list(TEXTS) and corpus.layers == [1, 2] and corpus.cut == []
    assert all(corpus.texts[token] == tokenizer.decode([token]) for _, *tokens, _, _ in expected for token in tokens)


def test_the_dot_products_are_those_of_the_sampled_states(model, tokenizer, corpus):
    states = {1: [], 2: []}
    for text in TEXTS.values():
        ids = tokenizer(text)["input_ids"]
        for start in range(0, len(ids), 256):
            with torch.inference_mode(), recorded_router_inputs(model) as inputs:
                model(torch.tensor([ids[start : start + 256]]))
            for layer, read in inputs.items():
                states[layer].append(read[1:])
    total = len(corpus.ids_T)
    assert len(corpus.sample_S) == min(total, MAX_SAMPLED) and corpus.sample_S.unique().equal(corpus.sample_S)
    assert corpus.sample_S[0] == 0 and corpus.sample_S[-1] == total - 1
    for layer, dots in zip(corpus.layers, corpus.dots):
        sampled = torch.cat(states[layer])[corpus.sample_S]
        torch.testing.assert_close(dots, sampled @ sampled.T, atol=1e-3, rtol=1e-4)


def test_only_the_first_tokens_are_read_where_that_is_asked(model, tokenizer):
    progress = []
    corpus = trace_corpus(model, tokenizer, {**TEXTS, "short": "a fox"}, progress.append, max_tokens=100)
    assert corpus.num_tokens[:2] == [99, 99] and corpus.cut == ["foxes", "numbers"]
    assert progress[0] == 0 and progress == sorted(progress) and len(progress) == 3


def test_what_cannot_be_traced_is_refused(model, tokenizer):
    for texts, refusal in (
        ({}, "^texts are empty"),
        ({"a": " "}, "^text 'a' is empty"),
        ({"a": [5]}, "^text 'a' has 1 token"),
    ):
        with pytest.raises(ValueError, match=refusal):
            trace_corpus(model, tokenizer, texts)


def test_a_dense_model_has_no_routing(llama, tokenizer):
    corpus = trace_corpus(llama, tokenizer, TEXTS)
    assert corpus.routing == [] == corpus.dots and sum(corpus.num_tokens) == len(corpus.ids_T)


def test_the_newest_corpora_of_a_model_are_kept(model, tokenizer):
    texts = [{"a": f"a fox and {number} dogs"} for number in range(MAX_KEPT + 1)]
    first, *others = [cached_corpus(model, tokenizer, each) for each in texts]
    assert cached_corpus(model, tokenizer, texts[-1]) is others[-1]
    again = cached_corpus(model, tokenizer, texts[0])
    assert again is not first and again.digest == first.digest != others[0].digest
