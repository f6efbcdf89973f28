"""The named endpoints on the running app, and requests of version 0.1."""

import json
import re
import urllib.request

import gradio as gr
import pytest
from chatting import CHAT, RENDERED
from gradio_client import Client
from gradio_client.exceptions import AppError
from running import ROOT, wait_until

from deepseek import SamplingParams, load, stream
from deepseek.interpret.interventions import Intervention
from deepseek.training import runs
from deepseek.ui import api


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
