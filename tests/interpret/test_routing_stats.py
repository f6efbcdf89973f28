"""Figures of routing against counts made by hand, token by token."""

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
def seen(model, tokenizer):
    return trace(model, tokenizer, TEXT)


def layer_of(indices, experts):
    indices = torch.tensor(indices)
    return Routing(0, experts, indices, torch.ones(indices.shape), torch.ones(len(indices), experts))


def test_soft_kl_is_the_training_loss_of_our_model(model, seen):
    with torch.no_grad():
        output = model(torch.tensor([seen.ids]), output_router_logits=True)
    found = [routing_stats.soft_kl(layer) for layer in seen.routing]
    assert found == pytest.approx(
        [float(load_balancing.kl_to_uniform(logits)) for logits in output.router_logits], abs=1e-6
    )
    assert sum(found) / len(found) == pytest.approx(
        float(load_balancing.load_balancing_loss(output.router_logits)), abs=1e-6
    )


def test_soft_kl_of_a_softmax_router(mixtral, tokenizer):
    seen = trace(mixtral, tokenizer, "Once upon a time")
    with torch.no_grad():
        output = mixtral(torch.tensor([seen.ids]), output_router_logits=True)
    for layer, logits in zip(seen.routing, output.router_logits):
        mean = [float(p) for p in logits.softmax(-1).mean(0)]
        assert routing_stats.soft_kl(layer) == pytest.approx(sum(p * math.log(4 * p) for p in mean), abs=1e-6)


def test_a_long_text_is_read_in_windows(model, tokenizer):
    text = TEXT * 8
    told = []
    reading = routing_stats.trace_long_text(model, tokenizer, text, told.append)
    ids = tokenizer(text)["input_ids"]
    assert len(ids) > 2 * 256 and told == [start / len(ids) for start in range(0, len(ids), 256)]
    assert "".join(reading.tokens) == "<|endoftext|>" + text and len(reading.tokens) == len(ids)
    middle = trace(model, tokenizer, ids[256:512])
    for whole, window in zip(reading.routing, middle.routing):
        assert whole.layer == window.layer and whole.experts == window.experts == 8
        assert torch.equal(whole.indices[256:512], window.indices)
        assert torch.equal(whole.weights[256:512], window.weights) and len(whole.scores) == len(ids)


def test_too_long_and_empty_texts_are_refused(model, tokenizer):
    with pytest.raises(ValueError, match="^text has 20,001 characters; it must have at most 20,000"):
        routing_stats.trace_long_text(model, tokenizer, "a" * 20_001)
    with pytest.raises(ValueError, match="^text is empty"):
        routing_stats.trace_long_text(model, tokenizer, " ")


def test_a_dense_model_reads_without_routing(llama, tokenizer):
    reading = routing_stats.trace_long_text(llama, tokenizer, TEXT)
    assert reading.routing == [] and len(reading.tokens) == len(tokenizer(TEXT)["input_ids"])


def test_favourites_are_what_each_expert_took_most(seen):
    layer = seen.routing[1]
    for expert, found in enumerate(routing_stats.vocabulary_specialization(seen.tokens, layer, most=3)):
        mine = Counter(token for token, chosen in zip(seen.tokens, layer.indices.tolist()) if expert in chosen)
        assert [times for _, times, _ in found] == sorted(mine.values(), reverse=True)[:3]
        for token, times, total in found:
            assert times == mine[token] and total == seen.tokens.count(token)


def test_co_firing_against_loops(seen):
    layer = seen.routing[0]
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


def test_co_firing_of_even_pairs_is_one():
    every = [[i, j] for i in range(5) for j in range(5) if i < j]
    ratio = routing_stats.co_activation(layer_of(every, 5))
    assert torch.allclose(ratio[~ratio.isnan()], torch.ones(20))
    assert routing_stats.co_activation(layer_of([[0], [1]], 2)).isnan().all()


def test_flow_counts_first_experts(seen):
    steps = routing_stats.transitions(seen.routing)
    one, other = (layer.indices[:, 0].tolist() for layer in seen.routing)
    assert {(e, f): n for _, e, f, n in steps} == dict(Counter(zip(one, other)))
    assert {i for i, *_ in steps} == {0} and sum(n for *_, n in steps) == len(seen.tokens)


@pytest.mark.parametrize(
    "one, other, bits",
    [([1, 1], [2, 2], 0.0), ([5, 0], [0, 3], 1.0), ([1, 0, 0], [1, 1, 0], 0.311278), ([0, 0], [0, 0], 0.0)],
)
def test_divergence_in_bits(one, other, bits):
    found = routing_stats.js_divergence(torch.tensor(one), torch.tensor(other))
    assert found == pytest.approx(bits, abs=1e-6) == routing_stats.js_divergence(torch.tensor(other), torch.tensor(one))


def test_chance_is_what_deals_of_the_same_tokens_give():
    """Texts of one kind differ by chance alone; of two kinds by more; and chance shrinks with length."""
    generator = torch.Generator().manual_seed(1)

    def text(length, low):
        return [layer_of(torch.randint(low, low + 4, (length, 1), generator=generator).tolist(), 8)]

    alike, apart = (text(200, 0), text(200, 0)), (text(200, 0), text(200, 4))
    assert routing_stats.layer_divergences(*alike)[0] < 4 * routing_stats.permutation_baseline(*alike)[0]
    assert (
        routing_stats.layer_divergences(*apart) == [pytest.approx(1.0)]
        and routing_stats.permutation_baseline(*apart)[0] < 0.05
    )
    assert (
        routing_stats.permutation_baseline(text(2000, 0), text(2000, 0))[0]
        < routing_stats.permutation_baseline(*alike)[0] / 4
    )
    assert routing_stats.permutation_baseline(*alike) == routing_stats.permutation_baseline(*alike)
