"""The named endpoints on the running app, and requests of version 0.1."""

import json
import re
import urllib.request

import gradio as gr
import numpy as np
import pytest
import torch
from chatting import CHAT, RENDERED
from gradio_client import Client
from gradio_client.exceptions import AppError
from running import ROOT, wait_until

from deepseek import SamplingParams, load, stream, trace
from deepseek.interpret.corpus import trace_corpus
from deepseek.interpret.importance import cumulative, knock_outs, runner_ups, top_disabled
from deepseek.interpret.interventions import Intervention, intervened
from deepseek.interpret.specialization import domain_specialization
from deepseek.interpret.steering import held_out, measure_effect, rate_differences, trace_texts
from deepseek.training import runs
from deepseek.ui import api
from deepseek.ui.components.expert_sections import SECTIONS


@pytest.fixture(scope="module")
def client(app_url):
    return Client(app_url, verbose=False)


def test_generate_streams_and_repeats(client):
    job = client.submit("Once upon a time", temperature=0.8, top_k=40, max_new_tokens=40, seed=3, api_name="/generate")
    answers = list(job)
    assert len(answers) > 1
    assert [answer["tokens"] for answer in answers] == sorted(answer["tokens"] for answer in answers)
    assert answers[-1]["finish_reason"] == "length" and answers[0]["finish_reason"] is None
    again = client.predict(
        "Once upon a time", temperature=0.8, top_k=40, max_new_tokens=40, seed=3, api_name="/generate"
    )
    assert again["text"] == answers[-1]["text"]


def test_a_chat_needs_a_chat_template_and_a_prompt_or_messages(client):
    chat = [{"role": "user", "content": "Who?"}]
    for arguments, sentence in (
        (dict(messages=chat), "they need a chat template, and the tokenizer has none."),
        (dict(messages=chat, prompt="Once"), "prompt and messages are both given; it must be one of them."),
        (dict(messages=[{"role": "me", "content": "a"}]), "role of message 1 is 'me'; it must be one of system, "),
        (dict(), "prompt is empty; it must hold"),
    ):
        with pytest.raises(AppError, match=re.escape(sentence)):
            client.predict(**arguments, api_name="/generate")
    raw = client.predict("Once", chat=False, max_new_tokens=5, seed=0, api_name="/generate")
    assert raw["text"] == client.predict("Once", max_new_tokens=5, seed=0, api_name="/generate")["text"]
    assert raw["prompt"] == "Once"


def test_chats_are_compared_swept_and_traced_as_they_are_generated(chat_checkpoint):
    with gr.Blocks() as blocks:
        api.build(chat_checkpoint)
    endpoints = {endpoint.api_name: endpoint.fn for endpoint in blocks.fns.values()}
    opened, settings = load(chat_checkpoint), dict(temperature=0, min_new_tokens=4, max_new_tokens=4)
    outputs = set()
    for request, given in (
        (CHAT, dict(messages=CHAT)),
        ([{"role": "user", "content": "Who?"}], dict(prompt="Who?")),
        ("Who?", dict(prompt="Who?", chat=False)),
    ):
        output = "".join(token.text for token in stream(*opened, request, SamplingParams(**settings)))
        assert endpoints["compare"](a=settings, b={}, **given)["a"]["text"] == output
        swept = endpoints["sweep"](setting="seed", values=[1, 2, 3], settings=settings, **given)
        assert [sample["text"] for sample in swept["samples"]] == 3 * [output]
        outputs.add(output)
    assert len(outputs) == 3
    assert "".join(endpoints["trace"](messages=CHAT)["tokens"]) == RENDERED
    with pytest.raises(gr.Error, match="text and messages are given; it must be one of them"):
        endpoints["trace"](text="Who?", messages=CHAT)


def test_every_endpoint_is_offered_with_every_setting(client):
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    names = {"/generate", "/trace", "/compare", "/sweep", "/specialization", "/steer"}
    training = {f"/train_{name}" for name in ("start", "status", "routing", "stop")}
    assert names | training == set(endpoints)
    for name in names:  # a prompt may be given as messages
        assert all(parameter["parameter_has_default"] for parameter in endpoints[name]["parameters"])
    names = {parameter["parameter_name"] for parameter in endpoints["/generate"]["parameters"]}
    assert set(SamplingParams.__dataclass_fields__) <= names


def test_traces_and_what_became_of_a_word_come_along_when_asked_for(client):
    options = dict(max_new_tokens=5, seed=0, top_k=3, api_name="/generate")
    answer = client.predict("Once", traces=True, why_not="purple", **options)
    assert [token["text"] for token in answer["traces"]] and len(answer["traces"]) == 5
    assert answer["traces"][0]["stages"] and answer["traces"][0]["candidates"]
    assert [len(answers) for answers in answer["why_not"]] == [1] * 5
    for (word,) in answer["why_not"]:
        assert word["removed_by"] == "top-k" and [step["after"] for step in word["steps"]] == ["model", "top-k"]
        assert word["steps"][0]["rank"] > 3 and word["steps"][0]["probability"] > 0 == word["steps"][1]["rank"]
    other = answer["traces"][2]["candidates"][-1]["id"]
    branch = client.predict("Once", forced_tokens=[f"2-{other}"], why_not="purple", **options)
    assert branch["ids"][-5:-3] == answer["ids"][-5:-3] and branch["ids"][-3] == other != answer["ids"][-3]
    assert len(branch["why_not"]) == 5
    assert not {"traces", "why_not"} & client.predict("Once", **options).keys()


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
    """At this heat a text read anew mostly gives other tokens."""
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


def test_generate_under_interventions(client):
    options = dict(max_new_tokens=12, seed=3, traces=True, api_name="/generate")
    plain = client.predict("Once", **options)
    same = client.predict("Once", interventions=[], **options)
    assert same["text"] == plain["text"]
    forced = client.predict("Once", interventions=[{"expert": 5, "action": "force", "layer": 2}], **options)
    assert all(5 in dict(token["experts"]["2"]) for token in forced["traces"])
    off = client.predict("Once", interventions=[{"expert": 5, "action": "off"}], **options)
    assert not any(5 in dict(to) for token in off["traces"] for to in token["experts"].values())
    several = client.predict("Once", interventions=["off 5", {"expert": 1, "action": "promote", "layer": 2}], **options)
    for token in several["traces"]:
        assert 1 in dict(token["experts"]["2"]) and not any(5 in dict(to) for to in token["experts"].values())
    half = [{"expert": 1, "action": "promote", "layer": 2, "strength": 0.5}]
    assert client.predict("Once", interventions=half, **options)["text"] != several["text"]
    for bad in (5, [5], [{"expert": 1}], [{"expert": "a", "action": "off"}], [{"expert": 9, "action": "off"}], ["off"]):
        with pytest.raises(Exception, match="^(interventions are|intervention is|expert is) .* must be"):
            client.predict("Once", interventions=bad, **options)


@pytest.mark.parametrize(
    "arguments, field",
    [
        (dict(prompt=""), "prompt"),
        (dict(prompt=5), "prompt"),
        (dict(prompt="word " * 3000), "prompt"),
        (dict(prompt="x", temperature=1e300), "temperature"),
        (dict(prompt="x", temperature="NaN"), "temperature"),
        (dict(prompt="x", temperature="hot"), "temperature"),
        (dict(prompt="x", top_p=7), "top_p"),
        (dict(prompt="x", top_k=-1), "top_k"),
        (dict(prompt="x", max_new_tokens=10**400), "max_new_tokens"),
        (dict(prompt="x", order="sideways"), "order"),
        (dict(prompt="x", stop=[""]), "stop"),
        (dict(prompt="x", seed=-7), "seed"),
        (dict(prompt="x", why_not="  "), "why_not"),
        (dict(prompt="x", why_not=5), "why_not"),
        (dict(prompt="x", forced_tokens=["1"]), "forced_tokens"),
        (dict(prompt="x", forced_tokens=["0-8192"]), "forced_tokens"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(client, arguments, field):
    with pytest.raises(Exception) as caught:
        client.predict(**arguments, api_name="/generate")
    message = str(caught.value)
    assert message.startswith(f"{field} ") and ("it must" in message or "the model reads" in message)
    assert "Traceback" not in message and "\n" not in message


def call(url, endpoint, body):
    """(event, data) that end a call of an endpoint over plain HTTP; `body` is JSON."""
    address = f"{url}/gradio_api/call/v2/{endpoint}"
    request = urllib.request.Request(address, body.encode(), {"content-type": "application/json"})
    event = json.load(urllib.request.urlopen(request, timeout=30))["event_id"]
    answer = urllib.request.urlopen(f"{address}/{event}", timeout=60).read().decode()
    return re.findall(r"event: (\w+)\ndata: (.*)\n", answer)[-1]


def test_plain_http_refuses_what_is_no_number(app_url):
    for value, shown in (("NaN", "nan"), ("1e999", "inf"), ("null", "None"), ("[]", "[]"), ("true", "True")):
        event, data = call(app_url, "generate", f'{{"prompt": "x", "temperature": {value}}}')
        assert event == "error" and f"temperature is {shown}; it must be a number from 0 to 10." in data


def test_requests_of_version_0_1_still_work(training_app):
    url, root = training_app
    requests = json.loads((ROOT / "tests/fixtures/v0.1/requests.json").read_text())
    event, data = call(url, "generate", json.dumps(requests["generate"]))
    model, tokenizer = load("assets/demo")
    params = SamplingParams(no_repeat_ngram_size=3, seed=7, max_new_tokens=4)
    tokens = stream(model, tokenizer, "Once upon a time", params, interventions=[Intervention(0, "off")])
    assert event == "complete" and json.loads(data)[0]["text"] == "".join(token.text for token in tokens)
    event, data = call(url, "compare", '{"prompt": "a", "a": {"no_repeat_ngram": 2, "max_new_tokens": 2}}')
    assert event == "complete" and json.loads(data)[0]["settings"]["no_repeat_ngram_size"] == [2, 0]
    event, data = call(url, "train_start", json.dumps(requests["train_start"]))
    status = json.loads(data)[0]
    assert event == "complete" and (status["name"], status["steps"]) == ("old-request", 2)
    config = runs.find(root, "old-request").config
    runs.kill(root, "old-request")
    assert (config["max_steps"], config["max_seq_len"], config["save_every"]) == (2, 16, 2)


@pytest.mark.parametrize("a", [5, {"nope": 1}, {"top_p": 9}, {"stop": 3}])
def test_compare_refusals_name_the_side(client, a):
    with pytest.raises(Exception, match="^a: .* must be"):
        client.predict("x", a, {}, api_name="/compare")


def test_trace_refusals_name_the_field(client):
    for arguments in (dict(text=""), dict(text=[1]), dict(text="word " * 3000), dict(text="x", attention_layer=99),
                      dict(ids=[8192]), dict(ids=[[1]]), dict(ids=5), dict(text="x", ids=[1])):  # fmt: skip
        with pytest.raises(Exception, match=r"^(text|attention_layer|ids) "):
            client.predict(**arguments, api_name="/trace")


def test_compare_requires_a_seed_for_both_sides(client):
    with pytest.raises(Exception, match="seed is None; it must be a whole number"):
        client.predict("x", {}, {}, None, api_name="/compare")


def test_compare_finds_where_two_settings_part(client):
    same = client.predict("Once upon a time", {"max_new_tokens": 12}, {"max_new_tokens": 12}, 3, api_name="/compare")
    assert same["first_difference"] is None and same["settings"] == {}
    b = {"max_new_tokens": 12, "temperature": 0.0}
    other = client.predict("Once upon a time", {"max_new_tokens": 12, "temperature": 3.0}, b, 3, api_name="/compare")
    assert other["first_difference"] is not None and other["settings"] == {"temperature": [3.0, 0.0]}


def test_sweep_samples_every_value_and_says_where_the_texts_part(client, demo):
    settings = {"max_new_tokens": 8, "top_k": 40}
    short = client.predict("Once", "temp", [0, 1, 2], {"max_new_tokens": 1}, api_name="/sweep")
    assert short["setting"] == "temperature" and [sample["value"] for sample in short["samples"]] == [0, 1, 2]
    answer = client.predict("Once upon a time", "seed", [3, 4, 5], settings, api_name="/sweep")
    assert [sample["value"] for sample in answer["samples"]] == [3, 4, 5] and answer["setting"] == "seed"
    for sample in answer["samples"]:
        params = SamplingParams(**settings, seed=sample["value"])
        assert sample["text"] == "".join(token.text for token in stream(*demo, "Once upon a time", params))
        assert sample["figures"]["tokens"] == 8

    def texts(node, before=""):
        text = before + node["text"]
        if not node["children"]:
            return {sample: text for sample in node["samples"]}
        return {sample: whole for child in node["children"] for sample, whole in texts(child, text).items()}

    assert texts(answer["tree"]) == {index: sample["text"] for index, sample in enumerate(answer["samples"])}
    for arguments, message in (
        (("heat", [1, 2]), "setting is 'heat'; it must be one of"),
        (("top_p", [0.5, 7]), "top_p is 7; it must be"),
        (("top_p", 5), "values are 5; they must be"),
        (("top_p", [0.5, 1], {"nope": 1}), "settings: settings are .* must be fields"),
        (("top_p", [0.5, 1], {}, None), "seed is None; it must be"),
    ):
        with pytest.raises(AppError, match=f"^{message}"):
            client.predict("x", *arguments, api_name="/sweep")


def test_endpoints_start_report_and_stop_a_run(training_app):
    url, root = training_app
    client = Client(url, verbose=False)

    def call(endpoint, **values):
        return client.predict(**values, api_name=f"/train_{endpoint}")

    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    for name in ("/train_start", "/train_status", "/train_routing", "/train_stop"):
        assert all(parameter["parameter_has_default"] for parameter in endpoints[name]["parameters"])
        assert endpoints[name]["description"]
    for wrong, message in (
        ({"max_steps": 0}, "max_steps is 0"),
        ({"preset": "huge"}, "preset is 'huge'"),
        ({"name": "a/b"}, "a/b"),
    ):
        with pytest.raises(AppError, match=message):
            call("start", **wrong)
    with pytest.raises(AppError, match="run is 'none'"):
        call("status", name="none")
    begun = call("start", max_steps=100_000, max_seq_len=32, batch_size=2, lr=1e-3, save_every=10)
    assert begun["state"] == "running" and begun["steps"] == 100_000
    with pytest.raises(AppError, match=begun["name"]):
        call("start")
    wait_until(lambda: runs.find(root, begun["name"]).step >= 12)
    call("stop")
    wait_until(lambda: call("status")["state"] != "running")
    status = call("status", name=begun["name"])
    assert status["state"] == "stopped" and status["metrics"]["step"] == status["step"] >= 12
    assert root.parent / status["checkpoint"] == root / begun["name"] / f"step-{status['step']:06d}"
    assert status["best"] is None or (root.parent / status["best"] / "validation.json").is_file()
    routing, history = call("routing"), runs.history(root / begun["name"])
    assert routing["steps"] == [record.step for record in history.router_records] and routing["steps"][:2] == [0, 10]
    assert routing["checkpoint"]["indices"] == history.router_records[-1].indices.tolist()
    assert call("routing", step=0)["checkpoint"]["load"] == pytest.approx(history.router_records[0].load)
    with pytest.raises(AppError, match="step is 3; it must be one of -1, 0, 10"):
        call("routing", name=begun["name"], step=3)


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
