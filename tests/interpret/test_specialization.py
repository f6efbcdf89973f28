"""What experts specialize in, against counts in plain Python; and what it says of a random and a perfectly specialised router."""

import math
from itertools import combinations
from statistics import fmean

import pytest
import torch
from routed import at_random, by_token, routed

from deepseek.interpret import specialization
from deepseek.interpret.chance import verdict
from deepseek.interpret.corpus import RoutedLayer, trace_corpus

TEXTS = {
    "foxes": "Once upon a time a fox ran over the hill. The fox saw a dog and ran home. " * 5,
    "numbers": "12 34 56 78 and 9 of 10. " * 14,
    "words": "déjà vu 漢字 hills, dogs, foxes: see over there! " * 8,
}


@pytest.fixture(scope="module")
def corpus(model, tokenizer):
    return trace_corpus(model, tokenizer, TEXTS)


def rows(layer):
    return layer.indices.tolist()


def test_vocabulary_specialization_against_loops(corpus):
    for ids_T in (corpus.ids_T, corpus.predicted_T):
        layer, ids = corpus.routing[0], ids_T.tolist()
        found = specialization.vocabulary_specialization(layer, ids_T)
        total = {token: ids.count(token) for token in ids}
        means = []
        for expert in range(8):
            mine = [token for token, experts in zip(ids, rows(layer)) if expert in experts]
            if mine:
                means.append(fmean(mine.count(token) / total[token] for token in mine))
                assert float(found.observed[1 + expert]) == pytest.approx(means[-1], abs=1e-5)
            else:
                assert found.observed[1 + expert].isnan()
        assert float(found.observed[0]) == pytest.approx(fmean(means), abs=1e-5)


def test_the_tokens_of_an_expert_are_those_that_it_gets_beyond_its_load(corpus):
    layer, ids = corpus.routing[1], corpus.ids_T.tolist()
    for expert, tokens in enumerate(specialization.expert_tokens(layer, corpus.ids_T, top=3)):
        mine = [token for token, experts in zip(ids, rows(layer)) if expert in experts]
        excess = {token: mine.count(token) - ids.count(token) * len(mine) / len(ids) for token in set(ids)}
        best = [value for value in sorted(excess.values(), reverse=True)[:3] if value > 0]
        assert [excess[token] for token, _, _ in tokens] == pytest.approx(best, abs=1e-4)
        assert all((times, total) == (mine.count(token), ids.count(token)) for token, times, total in tokens)
    shares = specialization.processed_shares(layer)
    assert shares == [sum(expert in row for row in rows(layer)) / len(ids) for expert in range(8)]


def test_domain_specialization_against_loops(corpus):
    layer, kinds = corpus.routing[0], corpus.kind_T.tolist()
    shares = specialization.domain_shares(layer, corpus.kind_T, 3).observed
    moved = specialization.domain_specialization(layer, corpus.kind_T, 3).observed
    everything = [expert for row in rows(layer) for expert in row]
    for kind in range(3):
        mine = [row for row, other in zip(rows(layer), kinds) if other == kind]
        flat = [expert for row in mine for expert in row]
        for expert in range(8):
            assert float(shares[kind, expert]) == pytest.approx(sum(expert in row for row in mine) / len(mine))
        distance = sum(abs(flat.count(e) / len(flat) - everything.count(e) / len(everything)) for e in range(8)) / 2
        assert float(moved[kind]) == pytest.approx(distance, abs=1e-5)


def test_co_activation_within_and_across_layers_against_loops(corpus):
    first, second = corpus.routing
    within = specialization.co_activation(first).observed
    across = specialization.cross_activation(first, second).observed
    partner, next_partner = (specialization.favourite_partner(*each).observed for each in ((first,), (first, second)))
    for i in range(8):
        mine = [place for place, row in enumerate(rows(first)) if i in row]
        if not mine:
            assert within[i].isnan().all() and across[i].isnan().all() and partner[1 + i].isnan()
            continue
        together = {j: sum(j in rows(first)[place] for place in mine) / len(mine) for j in range(8) if j != i}
        after = {j: sum(j in rows(second)[place] for place in mine) / len(mine) for j in range(8)}
        assert {j: float(within[i, j]) for j in together} == pytest.approx(together) and within[i, i].isnan()
        assert {j: float(across[i, j]) for j in after} == pytest.approx(after)
        assert float(partner[1 + i]) == pytest.approx(max(together.values()))
        assert float(next_partner[1 + i]) == pytest.approx(max(after.values()))
    assert float(partner[0]) == pytest.approx(float(partner[1:].nanmean()))


def test_the_strongest_pairs_are_those_furthest_above_chance(corpus):
    shares = specialization.co_activation(corpus.routing[0])
    pairs = specialization.strongest_pairs(shares, 5)
    deviations = sorted((float(d) for d in shares.deviations.flatten() if float(d) > 3), reverse=True)
    assert [pair.deviations for pair in pairs] == pytest.approx(deviations[:5]) and pairs
    for pair in pairs:
        assert pair.share == float(shares.observed[pair.expert, pair.partner]) > pair.chance


def test_repetition_against_loops(corpus):
    layer = corpus.routing[1]
    found = specialization.repetition_by_kind(layer, corpus).observed
    for kind in range(3):
        pairs = [
            (rows(layer)[place - 1], rows(layer)[place])
            for place in range(1, len(corpus.ids_T))
            if corpus.kind_T[place] == kind and corpus.follows_T[place]
        ]
        assert len(pairs) > 100
        assert float(found[kind, 0]) == pytest.approx(fmean(a[0] == b[0] for a, b in pairs))
        assert float(found[kind, 1]) == pytest.approx(fmean(bool({*a} & {*b}) for a, b in pairs))


def test_random_routing_with_even_loads_repeats_as_mixtral_says():
    first, either = specialization.uniform_repetition(8, 2)
    assert first == 0.125 and either == pytest.approx(1 - 6 / 8 * 5 / 7)  # "46 %"
    pairs = list(combinations(range(6), 3))
    assert specialization.uniform_repetition(6, 3)[1] == fmean(bool({0, 1, 2} & {*pair}) for pair in pairs)
    generator = torch.Generator().manual_seed(0)
    layer = RoutedLayer(0, 8, torch.rand(20_000, 8, generator=generator).topk(2).indices)
    found = specialization.repetition(layer, torch.ones(20_000, dtype=torch.bool))
    assert found.observed.tolist() == pytest.approx([first, either], abs=0.01)
    assert found.chance.tolist() == pytest.approx([first, either], abs=0.003) and not found.side.any()


def figures(corpus):
    """{name: Comparison} of every figure of a corpus."""
    first, second = corpus.routing
    return {
        "vocabulary": specialization.vocabulary_specialization(first, corpus.ids_T)[:1],
        "domains": specialization.domain_specialization(first, corpus.kind_T, 3),
        "within": specialization.favourite_partner(first)[:1],
        "across": specialization.favourite_partner(first, second)[:1],
        "repetition": specialization.repetition_by_kind(first, corpus),
    }


def test_a_random_router_is_no_better_than_chance(model, tokenizer):
    with routed(model, at_random()):
        found = figures(trace_corpus(model, tokenizer, TEXTS))
    assert {name: verdict(each) for name, each in found.items()} == dict.fromkeys(found, "no better than chance")


def test_a_router_by_token_is_perfectly_specialised(model, tokenizer):
    with routed(model, by_token):
        corpus = trace_corpus(model, tokenizer, TEXTS)
    found = figures(corpus)
    assert (found["domains"].side > 0).any(), "kinds of text have different tokens"
    for name in ("vocabulary", "within", "across"):
        assert float(found[name].observed) == pytest.approx(1) and float(found[name].deviations) > 10
    for expert, tokens in enumerate(specialization.expert_tokens(corpus.routing[0], corpus.ids_T)):
        assert all(token % 4 == expert % 4 and times == total for token, times, total in tokens)


def test_a_router_by_kind_of_text_is_perfectly_specialised(model, tokenizer):
    order = []

    def by_kind(ids):
        order.append(len(ids))
        window = (len(order) - 1) // 2  # two layers a window, one window a kind
        return torch.tensor([[window, window + 4]]).expand(len(ids), 2)

    with routed(model, by_kind):
        corpus = trace_corpus(model, tokenizer, {kind: text[:200] for kind, text in TEXTS.items()})
    assert len(order) == 6
    moved = specialization.domain_specialization(corpus.routing[0], corpus.kind_T, 3)
    shares = [count / len(corpus.ids_T) for count in corpus.num_tokens]
    assert moved.observed.tolist() == pytest.approx([1 - share for share in shares], abs=1e-5)
    assert (moved.side == 1).all() and (
        specialization.domain_shares(corpus.routing[0], corpus.kind_T, 3).side != 0
    ).any()
    repeated = specialization.repetition_by_kind(corpus.routing[0], corpus)
    assert (repeated.observed == 1).all() and not repeated.side.any(), "within a kind it cannot be otherwise"


def test_one_expert_per_token_has_no_partner_in_its_layer():
    layer = RoutedLayer(0, 4, torch.tensor([[0], [1], [2], [1]]))
    assert specialization.favourite_partner(layer).observed.isnan().all()
    assert specialization.strongest_pairs(specialization.co_activation(layer)) == []
    assert specialization.uniform_repetition(4, 1) == (0.25, 0.25) and math.comb(4, 1) == 4
