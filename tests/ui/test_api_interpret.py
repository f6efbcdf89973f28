"""The endpoints that look into a model: traces, importance, steering and specialization, against the package."""

import numpy as np
import pytest
import torch
from gradio_client.exceptions import AppError

from deepseek import trace
from deepseek.interpret.corpus import trace_corpus
from deepseek.interpret.importance import cumulative, knock_outs, runner_ups, top_disabled
from deepseek.interpret.interventions import Intervention, intervened
from deepseek.interpret.specialization import domain_specialization
from deepseek.interpret.steering import held_out, measure_effect, rate_differences, trace_texts
from deepseek.ui.components.expert_sections import SECTIONS


def test_trace_is_that_of_the_model(client, demo):
    answer = client.predict("The cat sat on the mat.", attention_layer=2, api_name="/trace")
    traced = trace(*demo, "The cat sat on the mat.")
    assert answer["tokens"] == traced.tokens and "".join(answer["tokens"][1:]) == "The cat sat on the mat."
    assert answer["routing"][1]["indices"] == traced.routing[1].indices.tolist()
    assert answer["attention"] == pytest.approx(traced.attention(2).numpy(), abs=1e-5)
    assert answer["lens"]["choices"] == traced.lens().choices.tolist()
    assert answer["lens"]["first_match_layer"] == traced.lens().first_match_layer
    assert np.allclose(answer["cache"]["kept_norms"], traced.cache().cached_norms, atol=1e-4)
    assert np.allclose(answer["cache"]["raw_norms"], traced.cache().raw_norms, atol=1e-4)
    assert answer["cache"]["uncompressed"] / answer["cache"]["bytes"] == 1152 / 160
    for layer, routed in zip(answer["routing"], traced.routing):
        shares = [(routed.indices == expert).sum().item() / routed.indices.numel() for expert in range(8)]
        assert layer["load"] == pytest.approx(shares, abs=1e-5)
        assert layer["max_violation"] == pytest.approx(8 * max(shares) - 1, abs=1e-4)
        mean = (routed.scores / routed.scores.sum(-1, keepdim=True)).mean(0)
        assert layer["kl"] == pytest.approx(float((mean * (8 * mean).log()).sum()), abs=1e-4)
        counts = [(routed.indices == expert).any(1).sum().item() for expert in range(8)]
        totals = [sum(count for _, count, _ in tokens) for tokens in layer["vocabulary_specialization"]]
        assert totals == counts  # the text is short enough for all of them
        assert [row[expert] for expert, row in enumerate(layer["co_activation"])] == [None] * 8
    assert "compared" not in answer and "loss_change" not in answer  # not asked for
    top = [routed.indices[:, 0].tolist() for routed in traced.routing]
    for index, expert, next_expert, tokens in answer["transitions"]:
        assert tokens == list(zip(top[index], top[index + 1])).count((expert, next_expert))
    assert sum(tokens for *_, tokens in answer["transitions"]) == len(traced.ids) * (len(traced.routing) - 1)


def test_trace_takes_the_ids_that_were_sampled(client, demo):
    """Tokenizing the sampled output again mostly gives other tokens at this temperature."""
    options = dict(temperature=1.8, max_new_tokens=40, traces=True, api_name="/generate")
    answers = [client.predict("Once", seed=seed, **options) for seed in range(4)]
    for answer in answers:
        traced = client.predict(ids=answer["ids"], api_name="/trace")
        sampled = [token["probability"] for token in answer["traces"]]
        rounding = 1e-4 if demo[0].dtype == torch.float32 else 2e-2  # one pass adds up in another order than many steps
        assert traced["ids"] == answer["ids"]
        assert traced["probabilities"][-len(sampled) :] == pytest.approx(sampled, abs=rounding)
        experts = [token["experts"]["2"][0][0] for token in answer["traces"]]
        same = np.mean(np.array([top for top, *_ in traced["routing"][1]["indices"]][-len(sampled) :]) == experts)
        assert same == 1 or (demo[0].dtype != torch.float32 and same > 0.9)  # rounding decides where two are level
    assert any(demo[1]("Once" + answer["text"])["input_ids"] != answer["ids"] for answer in answers)


def test_trace_compares_texts_and_ablates_experts(client, demo):
    text, other = "The cat sat on the mat.", "def f(x): return x + 1"
    answer = client.predict(text, other=other, losses=True, api_name="/trace")
    divergences = []
    for pair in zip(trace(*demo, text).routing, trace(*demo, other).routing):
        p, q = (np.bincount(routed.indices.flatten(), minlength=8) / routed.indices.numel() for routed in pair)
        kl = lambda x, y: sum(a * np.log2(a / b) for a, b in zip(x, y) if a)  # noqa: E731
        divergences.append((kl(p, (p + q) / 2) + kl(q, (p + q) / 2)) / 2)
    compared = answer["compared"]
    assert compared["divergence"] == pytest.approx(divergences, abs=1e-6)
    assert compared["mean"] == pytest.approx(sum(divergences) / 5) and len(compared["permutation_baseline"]) == 5
    rows = {(each.layer, each.expert): each.loss_change for each in knock_outs(*demo, text)}
    for row, layer in zip(answer["loss_change"], range(1, 6), strict=True):
        assert row == pytest.approx([rows[layer, expert] for expert in range(8)], abs=2e-2)


def test_trace_under_interventions(client, demo):
    text, changes = "The cat sat on the mat.", [Intervention(5, "force", 2), Intervention(1, "suppress")]
    answer = client.predict(text, interventions=["force 5@2", "suppress 1"], walk=3, api_name="/trace")
    with intervened(demo[0], changes):
        traced = trace(*demo, text)
    assert [row["indices"] for row in answer["routing"]] == [layer.indices.tolist() for layer in traced.routing]
    assert 5 in [each["expert"] for each in answer["walk"]["layers"][2]["router"]["chosen"]]
    with pytest.raises(Exception, match="^interventions and losses or importances are both given"):
        client.predict(text, interventions=["off 1"], losses=True, api_name="/trace")


def test_trace_gives_the_importance_of_every_expert(client, demo):
    text = "The cat sat on the mat."
    answer = client.predict(text, importances=True, api_name="/trace")["importance"]
    measured = list(knock_outs(*demo, text))
    for row, each in zip(answer["knock_outs"], measured, strict=True):
        assert (row["layer"], row["expert"], row["num_tokens"]) == (each.layer, each.expert, each.num_tokens)
        assert row["kl_T"] == pytest.approx(each.kl_T.tolist(), abs=2e-2) and row["kl"] == pytest.approx(
            each.mean_kl, abs=1e-2
        )
    order = [(row["layer"], row["expert"]) for row in sorted(answer["knock_outs"], key=lambda row: -row["loss_change"])]
    for name, points in (("top_disabled", top_disabled(*demo, text)), ("cumulative", cumulative(*demo, text, order))):
        for row, point in zip(answer[name], points, strict=True):
            assert (row["curve"], row["num_disabled"]) == (point.curve, point.num_disabled)
            assert row["loss"] == pytest.approx(point.loss, abs=5e-2)
    assert (
        [row["layer"] for row in answer["runner_ups"]]
        == [row.layer for row in runner_ups(*demo, text)]
        == [1, 2, 3, 4, 5]
    )


def test_steer_finds_experts_and_measures_them_on_held_out_texts(client, demo):
    a = ["The cat ran home.", "A little fox was sad.", "She saw a big dog.", "They played in the park."]
    b = ["def f(x): return x", "class A: pass", "import os, sys", "for i in range(9): print(i)"]
    answer = client.predict(a, b, 2, -0.5, api_name="/steer")
    found = rate_differences(*(trace_texts(*demo, held_out(texts)[0]) for texts in (a, b)))
    assert len(answer["differences"]) == len(found) == 40
    for row, each in zip(answer["differences"][:5], found):
        assert row["difference"] == pytest.approx(each.difference, abs=1e-6) and row["p_value"] == pytest.approx(
            each.p_value
        )
    changes = [Intervention(**each) for each in answer["interventions"]]
    assert len(changes) == 2 and all(change.strength == 0.5 for change in changes)
    effect = measure_effect(*demo, held_out(b)[1], changes)
    assert answer["effect"]["b"]["loss_change"] == pytest.approx(effect.loss_change, abs=5e-2)
    text = client.predict(
        "Once", interventions=answer["interventions"], max_new_tokens=4, seed=1, api_name="/generate"
    )["text"]
    assert text
    for bad, refusal in ((("x", b), "texts_a are"), ((a, [5]), "texts_b are"), ((a[:1], b), "list A has 1 texts")):
        with pytest.raises(Exception, match=f"^{refusal}"):
            client.predict(*bad, api_name="/steer")


def test_trace_gives_the_walk_of_a_token(client, demo):
    text = "The cat sat on the mat."
    answer = client.predict(text, walk=3, api_name="/trace")["walk"]
    walk = trace(*demo, text).walk(3)
    assert answer["token"] == " sat" and answer.keys() == walk.keys()
    for row, expected in zip(answer["layers"], walk["layers"], strict=True):
        assert row.keys() == expected.keys() and row["lens"][0]["id"] == expected["lens"][0]["id"]
        assert row["output_norm"] == pytest.approx(expected["output_norm"], rel=1e-2)
    with pytest.raises(Exception, match="^walk is 99; it must be a whole number from -1 to"):
        client.predict(text, walk=99, api_name="/trace")


def test_concurrent_traces_do_not_mix(client, demo):
    texts = ["The cat sat on the mat. " * (1 + i % 3) + str(i) for i in range(8)]
    jobs = [client.submit(text, attention_layer=3, api_name="/trace") for text in texts]
    for text, job in zip(texts, jobs):
        answer, alone = job.result(120), trace(*demo, text)
        assert answer["tokens"] == alone.tokens
        assert [layer["indices"] for layer in answer["routing"]] == [layer.indices.tolist() for layer in alone.routing]
        assert np.allclose(answer["attention"], alone.attention(3), atol=1e-5)


def test_specialization_is_that_of_the_package(client, demo):
    texts = {"foxes": "Once upon a time a fox ran over the hill. " * 5, "numbers": "12 34 56 78 " * 20}
    answer = client.predict(texts, 3, api_name="/specialization")
    corpus = trace_corpus(*demo, texts)
    assert (
        answer["kinds"] == list(texts) and answer["tokens"] == corpus.num_tokens and answer["layers"] == corpus.layers
    )
    assert list(answer["sections"]) == [section.name for section in SECTIONS]
    found = [domain_specialization(layer, corpus.kind_T, 2) for layer in corpus.routing]
    series = answer["sections"]["Kinds of text"]["series"]["foxes"]
    for name in ("observed", "chance", "spread"):
        assert series[name] == pytest.approx([float(getattr(each, name)[0]) for each in found], abs=1e-5)
    assert series["side"] == [int(each.side[0]) for each in found] and series["deviations"] is None
    table = answer["sections"]["Vocabulary"]["table"]
    assert len(table["rows"]) == 8 and all(len(row) == len(table["headers"]) for row in table["rows"])
    assert client.predict(api_name="/specialization")["kinds"] == ["story", "encyclopedia", "code"]


@pytest.mark.parametrize(
    "texts, layer, refusal",
    [
        ({"a": 5}, -1, "text 'a' of texts is 5; it must be text"),
        ({"a": "x" * 20_001}, -1, "text 'a' of texts has 20,001 characters"),
        ({"": "x"}, -1, "the name of a kind of texts is ''"),
        ({f"kind {i}": "a fox" for i in range(9)}, -1, "they must be an object of at most 8 names"),
        (["a"], -1, "texts are \\['a'\\]; they must be an object"),
        ({"a": "a fox"}, 0, "layer is 0; it must be -1 or a layer with experts: 1, 2, 3, 4, 5"),
        ({"a": "a fox"}, True, "layer is True"),
    ],
)
def test_wrong_kinds_of_text_are_refused_in_one_sentence(client, texts, layer, refusal):
    with pytest.raises(AppError, match=refusal):
        client.predict(texts, layer, api_name="/specialization")
