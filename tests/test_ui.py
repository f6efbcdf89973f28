"""The page's own functions, and its named endpoints on the running app."""

import json
import threading
import urllib.request

import pytest
from gradio_client import Client
from starlette.datastructures import QueryParams

from deepseek import SamplingParams, load, stream
from deepseek.ui import about, compare, controls, keep, playground, served, strip


@pytest.fixture(scope="session")
def client(app_url):
    return Client(app_url, verbose=False)


@pytest.fixture(scope="session")
def demo():
    return load("assets/demo")


def test_generate_streams_and_repeats(client):
    job = client.submit("Once upon a time", temperature=0.8, top_k=40, max_new_tokens=40, seed=3, api_name="/generate")
    answers = list(job)
    assert len(answers) > 1
    assert [answer["tokens"] for answer in answers] == sorted(answer["tokens"] for answer in answers)
    assert answers[-1]["finish"] and not answers[0]["finish"]
    again = client.predict(
        "Once upon a time", temperature=0.8, top_k=40, max_new_tokens=40, seed=3, api_name="/generate"
    )
    assert again["text"] == answers[-1]["text"]


def test_only_the_prompt_is_required(client):
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    assert {"/generate", "/trace", "/compare"} == set(endpoints)
    for name, required in (("/generate", 1), ("/trace", 1), ("/compare", 1)):
        assert sum(not parameter["parameter_has_default"] for parameter in endpoints[name]["parameters"]) == required
    names = {parameter["parameter_name"] for parameter in endpoints["/generate"]["parameters"]}
    assert set(SamplingParams.__dataclass_fields__) <= names


def test_traces_come_along_when_asked_for(client):
    answer = client.predict("Once", max_new_tokens=5, seed=0, traces=True, api_name="/generate")
    assert [token["text"] for token in answer["traces"]] and len(answer["traces"]) == 5
    assert answer["traces"][0]["stages"] and answer["traces"][0]["candidates"]


def test_trace_is_that_of_the_model(client, demo):
    from deepseek import trace

    answer = client.predict("The cat sat on the mat.", attention_layer=2, api_name="/trace")
    seen = trace(*demo, "The cat sat on the mat.")
    assert answer["tokens"] == seen.tokens and "".join(answer["tokens"][1:]) == "The cat sat on the mat."
    assert answer["routing"][1]["indices"] == seen.routing[1].indices.tolist()
    assert answer["attention"] == pytest.approx(seen.attention(2).numpy(), abs=1e-5)


@pytest.mark.parametrize(
    "arguments, named",
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
    ],
)
def test_bad_input_is_refused_in_one_sentence(client, arguments, named):
    with pytest.raises(Exception) as caught:
        client.predict(**arguments, api_name="/generate")
    message = str(caught.value)
    assert message.startswith(f"{named} ") and ("it must" in message or "the model reads" in message)
    assert "Traceback" not in message and "\n" not in message


@pytest.mark.parametrize(
    "value, shown", [("NaN", "nan"), ("1e999", "inf"), ("null", "None"), ("[]", "[]"), ("true", "True")]
)
def test_plain_http_takes_names_and_refuses_what_is_no_number(app_url, value, shown):
    body = f'{{"prompt": "x", "temperature": {value}}}'.encode()
    address = f"{app_url}/gradio_api/call/v2/generate"
    request = urllib.request.Request(address, body, {"content-type": "application/json"})
    event = json.load(urllib.request.urlopen(request, timeout=30))["event_id"]
    answer = urllib.request.urlopen(f"{app_url}/gradio_api/call/v2/generate/{event}", timeout=30).read().decode()
    assert f"temperature is {shown}; it must be a number from 0 to 10." in answer


@pytest.mark.parametrize("a", [5, {"nope": 1}, {"top_p": 9}, {"stop": 3}])
def test_compare_refusals_name_the_side(client, a):
    with pytest.raises(Exception, match="^a: .* must be"):
        client.predict("x", a, {}, api_name="/compare")


def test_trace_refusals_name_the_field(client):
    for arguments in (dict(text=""), dict(text=[1]), dict(text="word " * 3000), dict(text="x", attention_layer=99)):
        with pytest.raises(Exception, match=r"^(text|attention_layer) "):
            client.predict(**arguments, api_name="/trace")


def test_compare_finds_where_two_settings_part(client):
    same = client.predict("Once upon a time", {"max_new_tokens": 12}, {"max_new_tokens": 12}, 3, api_name="/compare")
    assert same["first_difference"] is None and same["settings"] == {}
    b = {"max_new_tokens": 12, "temperature": 0.0}
    other = client.predict("Once upon a time", {"max_new_tokens": 12, "temperature": 3.0}, b, 3, api_name="/compare")
    assert other["first_difference"] is not None and other["settings"] == {"temperature": [3.0, 0.0]}


def test_concurrent_generations_equal_their_solo_runs(demo):
    params = [SamplingParams(seed=seed, max_new_tokens=16) for seed in range(4)]
    solo = [[token.id for token in stream(*demo, "The old man", p)] for p in params]
    found = [None] * 4

    def work(index):
        *_, generation = playground.generate(*demo, "The old man", params[index])
        found[index] = [token.id for token in generation.tokens]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert found == solo


def test_a_branch_keeps_the_text_before_it_and_goes_on_as_from_there(demo):
    params = SamplingParams(temperature=0.9, top_k=50, presence_penalty=0.4, seed=11, max_new_tokens=30)
    *_, first = playground.generate(*demo, "Once upon a time", params)
    other = next(c.id for c in first.tokens[10].candidates if c.id != first.tokens[10].id)
    *_, branch = playground.generate(*demo, "Once upon a time", params, {10: other}, first)
    ids = [token.id for token in branch.tokens]
    assert ids[:10] == [token.id for token in first.tokens[:10]] and ids[10] == other
    everything = {place: token for place, token in enumerate(ids[:11])}
    assert [t.id for t in stream(*demo, "Once upon a time", params, everything)] == ids
    unchanged = {10: first.tokens[10].id}
    *_, same = playground.generate(*demo, "Once upon a time", params, unchanged, first)
    assert [token.id for token in same.tokens] == [token.id for token in first.tokens]


def test_a_link_restores_prompt_settings_and_branch():
    params = SamplingParams(
        temperature=0.3, dynamic_temperature=True, order="llama.cpp", stop=("a&b", "\n"), seed=2**40
    )
    query = QueryParams(keep.to_query("Once & “upon”\n?", params, {3: 17, 9: 4}))
    assert keep.from_query(query, 100) == ("Once & “upon”\n?", params, {3: 17, 9: 4})


@pytest.mark.parametrize("query", ["temperature=x", "top_k=1.5", "force=1-999", "force=a-b", "order=%00", "seed=-1"])
def test_a_bad_link_is_refused_by_name(query):
    with pytest.raises(ValueError, match=f"^{query.split('=')[0]} is "):
        keep.from_query(QueryParams("prompt=x&" + query), 100)


def test_presets_from_the_browser_are_checked():
    good = {"temperature": 0.5}
    saved = {"mine": good, "bad": {"temperature": -1}, "odd": {"__class__": 1}, "none": None}
    assert keep.checked_presets(saved) == {"mine": good}
    assert keep.checked_presets("junk") == {}
    assert list(keep.named({"mine": good}, " new ", good)) == ["mine", "new"]
    for name in ("", " ", "x" * 41, None):
        with pytest.raises(Exception, match="name is"):
            keep.named({}, name, good)


def test_every_preset_is_valid():
    for preset in controls.PRESETS.values():
        SamplingParams(**preset)
    card = SamplingParams(**controls.PRESETS["card, calm"])
    assert (card.top_p, card.top_k, card.repetition_penalty) == (0.9, 40, 1.3)


def test_strip_lines_are_appended_json_without_markup(demo):
    params = SamplingParams(seed=1, max_new_tokens=20)
    values = [g.strip for g in playground.generate(*demo, "<script>alert(1)</script> ${1+1}", params)]
    assert all(later.startswith(earlier) for earlier, later in zip(values, values[1:]))
    records = [json.loads(line) for line in values[-1].splitlines()]
    assert records[0]["prompt"] == "<script>alert(1)</script> ${1+1}"
    assert len(records) == 21 and "<" not in values[-1]
    assert json.loads(strip.mark_line(3)) == {"mark": 3}


def test_figures_of_a_repeating_text():
    class Token:
        milliseconds, probability = 10.0, 0.5

        def __init__(self, id):
            self.id = id

    generation = playground.Generation("", SamplingParams())
    generation.tokens = [Token(i % 4) for i in range(16)]
    figures = compare.figures(generation)
    assert figures["tokens_per_second"] == 100 and figures["mean_probability"] == 0.5
    assert figures["distinct_2_grams"] == 4 / 15
    assert figures["repeated_4_grams"] == pytest.approx(1 - 4 / 13)


def test_model_facts_are_those_of_the_configuration(demo):
    rows = dict(about.facts(demo[0]))
    assert rows["experts"] == "8 routed, 2 of them and 1 shared one a token"
    layers, bytes_each = demo[0].config.num_hidden_layers, demo[0].dtype.itemsize
    assert rows["cache of a token"].startswith(f"{160 * layers * bytes_each:,} bytes")
    assert f"{1152 * layers * bytes_each:,}" in rows["cache of a token"]


def test_facts_of_other_families(mixtral, llama, tmp_path):
    for model in (mixtral, llama):
        model.save_pretrained(tmp_path)
        rows = dict(about.facts(load(tmp_path)[0]))
        assert ("experts" in rows) == (model is mixtral) and "cache of a token" not in rows


def test_only_offered_checkpoints_open():
    assert served.choices("elsewhere")[:2] == ["elsewhere", "assets/demo"]
    assert served.chosen("assets/demo", "assets/demo") is served.chosen("assets/demo", "assets/demo")
    for path in ("/etc", "../deepseek", "tests"):
        with pytest.raises(ValueError, match="it must be one of"):
            served.chosen(path, "assets/demo")
