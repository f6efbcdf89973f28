"""Routing statistics against counts in plain Python, token by token."""

import math
from collections import Counter

import pytest
import torch

from deepseek import trace
from deepseek.interpret import routing_stats
from deepseek.interpret.trace import Routing
from deepseek.model import load_balancing

TEXT = "Once upon a time a fox 🦊 ran over the hill, and the fox saw a hill. " * 3


@pytest.fixture(scope="module")
def traced(model, tokenizer):
    return trace(model, tokenizer, TEXT)


def layer_of(indices, experts):
    indices = torch.tensor(indices)
    even = torch.ones(len(indices), experts)
    return Routing(0, experts, indices, torch.ones(indices.shape), even, even, "softmax")


def test_soft_kl_is_the_training_loss_of_our_model(model, traced):
    with torch.no_grad():
        output = model(torch.tensor([traced.ids]), output_router_logits=True)
    kl = [routing_stats.soft_kl(layer) for layer in traced.routing]
    expected = [float(load_balancing.kl_to_uniform(logits)) for logits in output.router_logits]
    assert kl == pytest.approx(expected, abs=1e-6)
    loss = float(load_balancing.load_balancing_loss(output.router_logits))
    assert sum(kl) / len(kl) == pytest.approx(loss, abs=1e-6)


def test_soft_kl_of_a_softmax_router(mixtral, tokenizer):
    traced = trace(mixtral, tokenizer, "Once upon a time")
    with torch.no_grad():
        output = mixtral(torch.tensor([traced.ids]), output_router_logits=True)
    for layer, logits in zip(traced.routing, output.router_logits):
        mean = [float(p) for p in logits.softmax(-1).mean(0)]
        assert routing_stats.soft_kl(layer) == pytest.approx(sum(p * math.log(4 * p) for p in mean), abs=1e-6)


def test_a_long_text_is_traced_in_windows(model, tokenizer):
    text = TEXT * 8
    progress = []
    long_trace = routing_stats.trace_long_text(model, tokenizer, text, progress.append)
    ids = tokenizer(text)["input_ids"]
    assert len(ids) > 2 * 256 and progress == [start / len(ids) for start in range(0, len(ids), 256)]
    assert "".join(long_trace.tokens) == "<|endoftext|>" + text and len(long_trace.tokens) == len(ids)
    middle = trace(model, tokenizer, ids[256:512])
    for whole, window in zip(long_trace.routing, middle.routing):
        assert whole.layer == window.layer and whole.num_experts == window.num_experts == 8
        assert torch.equal(whole.indices[256:512], window.indices)
        assert torch.equal(whole.weights[256:512], window.weights) and len(whole.scores) == len(ids)


def test_too_long_and_empty_texts_are_refused(model, tokenizer):
    with pytest.raises(ValueError, match="^text has 20,001 characters; it must have at most 20,000"):
        routing_stats.trace_long_text(model, tokenizer, "a" * 20_001)
    with pytest.raises(ValueError, match="^text is empty"):
        routing_stats.trace_long_text(model, tokenizer, " ")


def test_a_dense_model_has_no_routing(llama, tokenizer):
    long_trace = routing_stats.trace_long_text(llama, tokenizer, TEXT)
    assert long_trace.routing == [] and len(long_trace.tokens) == len(tokenizer(TEXT)["input_ids"])


def test_vocabulary_specialization_counts_the_tokens_of_each_expert(traced):
    layer = traced.routing[1]
    for expert, top in enumerate(routing_stats.vocabulary_specialization(traced.tokens, layer, top=3)):
        mine = Counter(token for token, chosen in zip(traced.tokens, layer.indices.tolist()) if expert in chosen)
        assert [times for _, times, _ in top] == sorted(mine.values(), reverse=True)[:3]
        for token, times, total in top:
            assert times == mine[token] and total == traced.tokens.count(token)


def test_co_activation_against_loops(traced):
    layer = traced.routing[0]
    ratio = routing_stats.co_activation(layer)
    chosen = layer.indices.tolist()
    load = [sum(e in row for row in chosen) for e in range(8)]
    pairs = [(i, j) for i in range(8) for j in range(8) if i != j]
    together = {pair: sum(pair[0] in row and pair[1] in row for row in chosen) for pair in pairs}
    scale = sum(together.values()) / sum(load[i] * load[j] for i, j in pairs)
    for i, j in pairs:
        if load[i] and load[j]:
            assert float(ratio[i, j]) == pytest.approx(together[i, j] / (scale * load[i] * load[j]), abs=1e-4)
        else:
            assert ratio[i, j].isnan()
    assert ratio.diagonal().isnan().all()


def test_the_busiest_experts_are_those_that_most_tokens_chose():
    layer = layer_of([[5, 1], [5, 3], [3, 5]], 8)
    assert routing_stats.busiest_experts(layer, 2) == [5, 3] and routing_stats.busiest_experts(layer, 7) == [5, 3, 1]
    assert routing_stats.busiest_experts(layer, 8) == list(range(8))


def test_co_activation_of_even_pairs_is_one():
    every = [[i, j] for i in range(5) for j in range(5) if i < j]
    ratio = routing_stats.co_activation(layer_of(every, 5))
    assert torch.allclose(ratio[~ratio.isnan()], torch.ones(20))
    assert routing_stats.co_activation(layer_of([[0], [1]], 2)).isnan().all()


def test_transitions_count_top_experts(traced):
    counts = routing_stats.transitions(traced.routing)
    first, second = (layer.indices[:, 0].tolist() for layer in traced.routing)
    assert {(e, f): n for _, e, f, n in counts} == dict(Counter(zip(first, second)))
    assert {i for i, *_ in counts} == {0} and sum(n for *_, n in counts) == len(traced.tokens)


@pytest.mark.parametrize(
    "a, b, bits",
    [([1, 1], [2, 2], 0.0), ([5, 0], [0, 3], 1.0), ([1, 0, 0], [1, 1, 0], 0.311278), ([0, 0], [0, 0], 0.0)],
)
def test_js_divergence_in_bits(a, b, bits):
    a, b = torch.tensor(a), torch.tensor(b)
    assert routing_stats.js_divergence(a, b) == pytest.approx(bits, abs=1e-6) == routing_stats.js_divergence(b, a)


def test_texts_of_one_domain_are_near_the_permutation_baseline_and_of_two_domains_far_above():
    generator = torch.Generator().manual_seed(1)

    def text(length, low):
        return [layer_of(torch.randint(low, low + 4, (length, 1), generator=generator).tolist(), 8)]

    same, different, longer = (text(200, 0), text(200, 0)), (text(200, 0), text(200, 4)), (text(2000, 0), text(2000, 0))
    (baseline,) = routing_stats.permutation_baseline(*same)
    assert routing_stats.layer_divergences(*same)[0] < 4 * baseline
    assert routing_stats.layer_divergences(*different) == [pytest.approx(1.0)]
    assert routing_stats.permutation_baseline(*different)[0] < 0.05
    assert routing_stats.permutation_baseline(*longer)[0] < baseline / 4, "it shrinks with length"
    assert routing_stats.permutation_baseline(*same) == [baseline], "the permutations come from a fixed seed"
