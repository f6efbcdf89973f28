"""Experts that two lists of texts use differently, and steering by them, on routers made so that they must, or must not."""

import copy
from itertools import combinations

import pytest
import torch

from deepseek.interpret.interventions import Intervention, intervened
from deepseek.interpret.router_inputs import recorded_router_inputs
from deepseek.interpret.steering import (
    Effect,
    RateDifference,
    held_out,
    measure_effect,
    rate_differences,
    split_texts,
    steering,
    trace_texts,
    verdict,
)
from deepseek.interpret.trace import trace

FOXES = [f"Once upon a time fox number {i} ran over the hill to see {i * i} dogs." for i in range(8)]
NUMBERS = [" ".join(str((i + 3) * k) for k in range(9, 20)) for i in range(8)]


@pytest.fixture(scope="module")
def split(model, tokenizer):
    """A model whose last router sends tokens of digits to experts 0 and 1, and all others never there."""
    model = copy.deepcopy(model)
    digits = [token for token in range(1, 300) if tokenizer.decode([token]).strip().isdigit()]
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = -3.0
        model.model.embed_tokens.weight[digits, 0] = 3.0
        for layer in model.model.layers:
            for part in (
                layer.self_attn.o_proj,
                getattr(layer.mlp, "down_proj", None) or layer.mlp.shared_experts.down_proj,
            ):
                part.weight[0] = 0  # nothing else writes the sign of a token
            if hasattr(layer.mlp, "experts"):
                layer.mlp.experts.down_proj[:, 0] = 0
        model.model.layers[1].mlp.gate.weight.zero_()  # its bias alone chooses
        router = model.model.layers[2].mlp.gate
        router.weight[:] *= 0.1
        router.weight[:2, 0] = 2.0
        router.e_score_correction_bias.zero_()
        model.model.layers[2].post_attention_layernorm.weight.fill_(1.0)
    return model


def rates(model, tokenizer, texts, layer, expert):
    """Share of tokens routed to an expert, counted text by text."""
    chosen = [[expert in row for row in routing.indices.tolist()]
              for text in texts for routing in trace(model, tokenizer, text).routing if routing.layer == layer]  # fmt: skip
    return sum(map(sum, chosen)) / sum(map(len, chosen))


def test_rates_errors_and_differences_are_counted(split, tokenizer):
    found = rate_differences(trace_texts(split, tokenizer, FOXES), trace_texts(split, tokenizer, NUMBERS))
    assert len(found) == 16 and [abs(f.difference) for f in found] == sorted(
        (abs(f.difference) for f in found), reverse=True
    )
    for each in found[:4]:
        for side, texts in ((each.rate_a, FOXES), (each.rate_b, NUMBERS)):
            assert side == pytest.approx(rates(split, tokenizer, texts, each.layer, each.expert))
    first = found[0]
    variance = 0
    for texts, rate in ((FOXES, first.rate_a), (NUMBERS, first.rate_b)):
        lengths = [len(tokenizer(text)["input_ids"]) for text in texts]
        counts = [rates(split, tokenizer, [text], first.layer, first.expert) * n for text, n in zip(texts, lengths)]
        residuals = [count - rate * n for count, n in zip(counts, lengths)]
        variance += sum(r * r for r in residuals) / 7 * 8 / sum(lengths) ** 2
    assert first.error == pytest.approx(variance**0.5, rel=1e-5)


def test_a_router_made_to_tell_the_lists_apart_is_found_and_steered(split, tokenizer):
    (used_a, held_a), (used_b, held_b) = held_out(FOXES), held_out(NUMBERS)
    found = rate_differences(trace_texts(split, tokenizer, used_a), trace_texts(split, tokenizer, used_b))
    assert found[0].is_significant and verdict(found).split()[1] == "of"
    found = sorted(found, key=lambda each: each.difference)  # a token that runs these two runs no other
    assert {(f.layer, f.expert) for f in found[:2]} == {(2, 0), (2, 1)} and all(f.difference < -0.3 for f in found[:2])
    assert all(f.is_significant for f in found[:2]) and found[2].difference > -0.15
    for strength in (-1, -0.5, 0.5, 1):
        changes = steering(found, 2, strength)
        toward_b = strength < 0
        assert {c.action for c in changes} == {"promote" if toward_b else "suppress"}
        for texts in (held_a, held_b):
            effect = measure_effect(split, tokenizer, texts, changes)
            before, after = effect.promoted_rates if toward_b else effect.suppressed_rates
            assert after >= before if toward_b else after <= before
            if abs(strength) == 1:
                assert (
                    after == (1.0 if toward_b else 0.0) and after != before or texts is (held_b if toward_b else held_a)
                )
            counted = [rates(split, tokenizer, [text], 2, expert) for text in texts for expert in (0, 1)]
            assert before == pytest.approx(sum(counted) / len(counted))
    assert steering(found, 2, 0) == []


def test_a_router_trained_to_tell_the_lists_apart_is_steered_toward_either(model, tokenizer):
    """Logistic regression of the last router's weights: expert 0 for the tokens of one list, expert 1 for the other's."""
    model = copy.deepcopy(model)
    (used_a, held_a), (used_b, held_b) = held_out(FOXES), held_out(NUMBERS)
    inputs = []
    for texts in (used_a, used_b):
        for text in texts:
            with torch.no_grad(), recorded_router_inputs(model) as read:
                model(torch.tensor([tokenizer(text)["input_ids"]]))
            inputs.append((read[2], torch.tensor([[1.0, 0.0] if texts is used_a else [0.0, 1.0]] * len(read[2]))))
    x_TD, wanted_T2 = map(torch.cat, zip(*inputs))
    router = model.model.layers[2].mlp.gate
    router.e_score_correction_bias.zero_()
    optimizer = torch.optim.Adam([router.weight], lr=0.1)
    for _ in range(100):
        logits_T2 = x_TD @ router.weight[:2].T
        torch.nn.functional.binary_cross_entropy_with_logits(logits_T2, wanted_T2).backward()
        optimizer.step()
        optimizer.zero_grad()
    found = rate_differences(trace_texts(model, tokenizer, used_a), trace_texts(model, tokenizer, used_b))
    of_last = {each.expert: each for each in found if each.layer == 2}
    assert of_last[0].difference > 0.3 and of_last[1].difference < -0.3
    assert of_last[0].is_significant and of_last[1].is_significant
    for strength, up, down in ((1, 0, 1), (-1, 1, 0)):
        changes = steering([of_last[0], of_last[1]], 2, strength)
        for texts in (held_a, held_b):
            effect = measure_effect(model, tokenizer, texts, changes)
            with intervened(model, changes):
                after = [rates(model, tokenizer, texts, 2, expert) for expert in (up, down)]
            assert after == [1, 0] == [effect.promoted_rates[1], effect.suppressed_rates[1]]
        toward, other = (held_a, held_b) if strength > 0 else (held_b, held_a)
        assert rates(model, tokenizer, other, 2, up) < 0.7 < rates(model, tokenizer, toward, 2, up)


def test_the_effect_is_the_loss_of_two_passes(split, tokenizer):
    changes, effects = [Intervention(3, "promote", 2, 0.5), Intervention(0, "suppress")], []
    for text in FOXES[:3]:
        ids, sides = tokenizer(text)["input_ids"], []
        for each in ([], changes):
            with torch.no_grad(), intervened(split, each):
                logits = split(torch.tensor([ids])).logits[0]
            sides.append(torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:])).item())
        effects.append(sides)
    calls = []
    effect = measure_effect(split, tokenizer, FOXES[:3], changes, lambda: calls.append(1))
    differences = torch.tensor([after - before for before, after in effects])
    assert isinstance(effect, Effect) and len(calls) == 3
    assert effect.loss == pytest.approx(sum(before for before, _ in effects) / 3, abs=1e-5)
    assert effect.loss_change == pytest.approx(differences.mean().item(), abs=1e-5)
    assert effect.loss_error == pytest.approx(differences.std().item() / 3**0.5, abs=1e-5)
    nothing = measure_effect(split, tokenizer, FOXES[:2], [])
    assert nothing.loss_change == 0 and nothing.promoted_rates == nothing.suppressed_rates == (0, 0)


def test_a_random_router_is_no_better_than_chance(model, tokenizer):
    """Lists of one kind of text: in most splits nothing counts; p values of permuted labels are even."""
    routing, significant = trace_texts(model, tokenizer, FOXES), 0
    splits = list(combinations(range(8), 4))[::5]
    for chosen in splits:
        a, b = [routing[i] for i in chosen], [routing[i] for i in range(8) if i not in chosen]
        found = rate_differences(a, b)
        significant += found[0].is_significant
        assert verdict(found).startswith("No better than chance: ") != found[0].is_significant
    assert significant <= 2  # of 14, at 1 in 20


def test_the_p_value_is_the_share_of_permutations_with_so_large_a_difference(model, tokenizer):
    routing = trace_texts(model, tokenizer, FOXES[:3] + NUMBERS[:3])
    found = rate_differences(routing[:3], routing[3:])
    largest = []
    for chosen in combinations(range(6), 3):  # all of them, in place of random ones
        a, b = [routing[i] for i in chosen], [routing[i] for i in range(6) if i not in chosen]
        largest.append(abs(rate_differences(a, b)[0].difference))
    for each in found[:5]:
        exact = sum(value >= abs(each.difference) - 1e-9 for value in largest) / len(largest)
        assert each.p_value == pytest.approx(exact, abs=0.05)


def test_texts_of_a_box():
    assert split_texts("One.\n\n Two. Three. \nFour") == ["One.", "Two. Three.", "Four"]
    assert split_texts('He ran. "Stop!" she said. Why? He fell') == [
        "He ran.",
        '"Stop!',
        "she said.",
        "Why?",
        "He fell",
    ]
    assert split_texts(" ") == [] and held_out([1, 2, 3]) == ([1, 3], [2])


def test_what_cannot_be_steered_is_refused(model, tokenizer, llama):
    routing = trace_texts(model, tokenizer, FOXES[:3])
    with pytest.raises(ValueError, match="^list B has 1 texts to find experts with; it must have at least 2"):
        rate_differences(routing, routing[:1])
    found = [RateDifference(1, 2, 0.5, 0.25, 0.1, 0.01)]
    assert steering(found, 3, -0.5) == [Intervention(2, "suppress", 1, 0.5)]
    for count, strength, refusal in (
        (0, 1, "count is 0"),
        (2.5, 1, "count is 2.5"),
        (1, 2, "strength is 2"),
        (1, "a", "strength is 'a'"),
    ):
        with pytest.raises(ValueError, match=f"^{refusal}; it must be"):
            steering(found, count, strength)
    with pytest.raises(ValueError, match="^texts are none"):
        measure_effect(model, tokenizer, [], [])
    with pytest.raises(ValueError, match="This model is dense"):
        measure_effect(llama, tokenizer, FOXES[:1], [Intervention(0, "off")])
