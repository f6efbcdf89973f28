"""The page's own functions, and its named endpoints on the running app."""

import json
import re
import shutil
import threading
import urllib.request

import gradio as gr
import numpy as np
import plotly.graph_objects as go
import pytest
from gradio_client import Client
from starlette.datastructures import QueryParams
from test_trace import dense, families
from transformers import AutoModelForCausalLM

from deepseek import SamplingParams, load, stream, trace
from deepseek.checkpoints import model_cache
from deepseek.interpret.interventions import ablation_effects
from deepseek.ui.components import sampler_controls, share
from deepseek.ui.components.token_strip import mark_line
from deepseek.ui.generation import Generation, generate, side_by_side
from deepseek.ui.server import model_registry
from deepseek.ui.tabs import attention, compare, experts, model_info
from deepseek.ui.tabs import layers as layer_tab


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
    assert {"/generate", "/trace", "/compare", "/train_start", "/train_status", "/train_stop"} == set(endpoints)
    for name, required in (("/generate", 1), ("/trace", 1), ("/compare", 1)):
        assert sum(not parameter["parameter_has_default"] for parameter in endpoints[name]["parameters"]) == required
    names = {parameter["parameter_name"] for parameter in endpoints["/generate"]["parameters"]}
    assert set(SamplingParams.__dataclass_fields__) <= names


def test_traces_come_along_when_asked_for(client):
    answer = client.predict("Once", max_new_tokens=5, seed=0, traces=True, api_name="/generate")
    assert [token["text"] for token in answer["traces"]] and len(answer["traces"]) == 5
    assert answer["traces"][0]["stages"] and answer["traces"][0]["candidates"]


def test_trace_is_that_of_the_model(client, demo):
    answer = client.predict("The cat sat on the mat.", attention_layer=2, api_name="/trace")
    seen = trace(*demo, "The cat sat on the mat.")
    assert answer["tokens"] == seen.tokens and "".join(answer["tokens"][1:]) == "The cat sat on the mat."
    assert answer["routing"][1]["indices"] == seen.routing[1].indices.tolist()
    assert answer["attention"] == pytest.approx(seen.attention(2).numpy(), abs=1e-5)
    assert answer["lens"]["choices"] == seen.lens().choices.tolist()
    assert answer["lens"]["first_match_layer"] == seen.lens().first_match_layer
    assert np.allclose(answer["cache"]["kept_norms"], seen.cache().kept, atol=1e-4)
    assert np.allclose(answer["cache"]["raw_norms"], seen.cache().raw, atol=1e-4)
    assert answer["cache"]["uncompressed"] / answer["cache"]["bytes"] == 1152 / 160
    for layer, routed in zip(answer["routing"], seen.routing):
        shares = [(routed.indices == expert).sum().item() / routed.indices.numel() for expert in range(8)]
        assert layer["load"] == pytest.approx(shares, abs=1e-5)
        assert layer["max_violation"] == pytest.approx(8 * max(shares) - 1, abs=1e-4)
        mean = (routed.scores / routed.scores.sum(-1, keepdim=True)).mean(0)
        assert layer["kl"] == pytest.approx(float((mean * (8 * mean).log()).sum()), abs=1e-4)
        taken = [(routed.indices == expert).any(1).sum().item() for expert in range(8)]
        assert [sum(times for _, times, _ in texts) for texts in layer["favourites"]] == taken  # of a text this short
        assert [row[expert] for expert, row in enumerate(layer["together"])] == [None] * 8
    assert "compared" not in answer and "loss_change" not in answer  # not asked for
    first = [routed.indices[:, 0].tolist() for routed in seen.routing]
    for place, expert, following, tokens in answer["flow"]:
        assert tokens == list(zip(first[place], first[place + 1])).count((expert, following))
    assert sum(step[3] for step in answer["flow"]) == len(seen.ids) * (len(seen.routing) - 1)


def test_trace_compares_texts_and_weighs_experts(client, demo):
    text, other = "The cat sat on the mat.", "def f(x): return x + 1"
    answer = client.predict(text, other=other, losses=True, api_name="/trace")
    found = []
    for one, two in zip(trace(*demo, text).routing, trace(*demo, other).routing):
        p, q = (np.bincount(r.indices.flatten(), minlength=8) / r.indices.numel() for r in (one, two))
        kl = lambda x, y: sum(a * np.log2(a / b) for a, b in zip(x, y) if a)  # noqa: E731
        found.append((kl(p, (p + q) / 2) + kl(q, (p + q) / 2)) / 2)
    assert answer["compared"]["divergence"] == pytest.approx(found, abs=1e-6)
    assert answer["compared"]["mean"] == pytest.approx(sum(found) / 5) and len(answer["compared"]["chance"]) == 5
    rows = {(layer, expert): change for layer, expert, change in ablation_effects(*demo, text)}
    for row, layer in zip(answer["loss_change"], range(1, 6), strict=True):
        assert row == pytest.approx([rows[layer, expert] for expert in range(8)], abs=2e-2)


def test_traces_of_eight_readers_at_once_never_mix(client, demo):
    texts = ["The cat sat on the mat. " * (1 + i % 3) + str(i) for i in range(8)]
    jobs = [client.submit(text, attention_layer=3, api_name="/trace") for text in texts]
    for text, job in zip(texts, jobs):
        answer, alone = job.result(120), trace(*demo, text)
        assert answer["tokens"] == alone.tokens
        assert [layer["indices"] for layer in answer["routing"]] == [layer.indices.tolist() for layer in alone.routing]
        assert np.allclose(answer["attention"], alone.attention(3), atol=1e-5)


def test_generate_under_changed_experts(client):
    options = dict(max_new_tokens=12, seed=3, traces=True, api_name="/generate")
    plain = client.predict("Once", **options)
    same = client.predict("Once", changes=[], **options)
    assert same["text"] == plain["text"]
    forced = client.predict("Once", changes=[{"expert": 5, "action": "force", "layer": 2}], **options)
    assert all(5 in dict(token["experts"]["2"]) for token in forced["traces"])
    off = client.predict("Once", changes=[{"expert": 5, "action": "off"}], **options)
    assert not any(5 in dict(to) for token in off["traces"] for to in token["experts"].values())
    for bad in (5, [5], [{"expert": 1}], [{"expert": "a", "action": "off"}], [{"expert": 9, "action": "off"}]):
        with pytest.raises(Exception, match="^(changes are|expert is) .* must be"):
            client.predict("Once", changes=bad, **options)


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


def test_compare_wants_a_seed_for_both_sides(client):
    with pytest.raises(Exception, match="seed is None; it must be a whole number"):
        client.predict("x", {}, {}, None, api_name="/compare")


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
        *_, generation = generate(*demo, "The old man", params[index])
        found[index] = [token.id for token in generation.tokens]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert found == solo


def test_a_branch_keeps_the_text_before_it_and_goes_on_as_from_there(demo):
    params = SamplingParams(temperature=0.9, top_k=50, presence_penalty=0.4, seed=11, max_new_tokens=30)
    *_, first = generate(*demo, "Once upon a time", params)
    other = next(c.id for c in first.tokens[10].candidates if c.id != first.tokens[10].id)
    *_, branch = generate(*demo, "Once upon a time", params, {10: other}, first)
    ids = [token.id for token in branch.tokens]
    assert ids[:10] == [token.id for token in first.tokens[:10]] and ids[10] == other
    everything = {place: token for place, token in enumerate(ids[:11])}
    assert [t.id for t in stream(*demo, "Once upon a time", params, everything)] == ids
    unchanged = {10: first.tokens[10].id}
    *_, same = generate(*demo, "Once upon a time", params, unchanged, first)
    assert [token.id for token in same.tokens] == [token.id for token in first.tokens]


def test_a_link_restores_prompt_settings_and_branch():
    params = SamplingParams(
        temperature=0.3, dynamic_temperature=True, order="llama.cpp", stop=("a&b", "\n"), seed=2**40
    )
    query = QueryParams(share.to_query("Once & “upon”\n?", params, {3: 17, 9: 4}, "runs/a&b/step-000100"))
    assert query["checkpoint"] == "runs/a&b/step-000100"
    assert share.from_query(query, 100) == ("Once & “upon”\n?", params, {3: 17, 9: 4})


@pytest.mark.parametrize("query", ["temperature=x", "top_k=1.5", "force=1-999", "force=a-b", "order=%00", "seed=-1"])
def test_a_bad_link_is_refused_by_name(query):
    with pytest.raises(ValueError, match=f"^{query.split('=')[0]} is "):
        share.from_query(QueryParams("prompt=x&" + query), 100)


def test_presets_from_the_browser_are_checked():
    good = {"temperature": 0.5}
    saved = {"mine": good, "bad": {"temperature": -1}, "odd": {"__class__": 1}, "none": None}
    assert share.checked_presets(saved) == {"mine": good}
    assert share.checked_presets("junk") == {}
    assert list(share.named({"mine": good}, " new ", good)) == ["mine", "new"]
    for name in ("", " ", "x" * 41, None, "greedy"):
        with pytest.raises(Exception, match="name is"):
            share.named({}, name, good)


def test_every_preset_is_valid():
    for preset in sampler_controls.PRESETS.values():
        SamplingParams(**preset)
    card = SamplingParams(**sampler_controls.PRESETS["card, calm"])
    assert (card.top_p, card.top_k, card.repetition_penalty) == (0.9, 40, 1.3)


def test_strip_lines_are_appended_json_without_markup(demo):
    params = SamplingParams(seed=1, max_new_tokens=20)
    values = [g.strip for g in generate(*demo, "<script>alert(1)</script> ${1+1}", params)]
    assert all(later.startswith(earlier) for earlier, later in zip(values, values[1:]))
    records = [json.loads(line) for line in values[-1].splitlines()]
    assert records[0]["prompt"] == "<script>alert(1)</script> ${1+1}"
    assert len(records) == 21 and "<" not in values[-1]
    assert json.loads(mark_line(3)) == {"mark": 3}


def test_figures_of_a_repeating_text():
    class Token:
        milliseconds, probability = 10.0, 0.5

        def __init__(self, id):
            self.id = id

    generation = Generation("", SamplingParams())
    generation.tokens = [Token(i % 4) for i in range(16)]
    figures = compare.figures(generation)
    assert figures["tokens_per_second"] == 100 and figures["mean_probability"] == 0.5
    assert figures["distinct_2_grams"] == 4 / 15
    assert figures["repeated_4_grams"] == pytest.approx(1 - 4 / 13)


def test_an_empty_seed_is_refused_where_it_is_to_be_kept():
    """Two sides would each draw their own."""
    with pytest.raises(gr.Error, match="^'?seed is empty; it must be"):
        sampler_controls.to_params([], [], None, locked=True)
    assert sampler_controls.to_params([], [], None, locked=False).seed is not None


def test_a_report_lists_what_differed_and_the_figures_of_both_sides(demo, checkpoint):
    """Two settings and two checkpoints at once."""
    a, b = SamplingParams(seed=3, max_new_tokens=9), SamplingParams(seed=3, max_new_tokens=9, top_k=4)
    other = load(checkpoint)
    *_, (one, two) = side_by_side(demo, other, "Once upon", a, b)
    for generation, opened, params in ((one, demo, a), (two, other, b)):
        assert [t.id for t in generation.tokens] == [t.id for t in stream(*opened, "Once upon", params)]
    rows = {name: values for name, *values in compare.report(one, two, ("assets/demo", checkpoint))}
    assert list(rows)[:3] == ["checkpoint", "top k", "first different token"]
    assert rows["checkpoint"] == ["assets/demo", checkpoint] and rows["top k"] == ["0", "4"]
    place = next(i for i, (s, t) in enumerate(zip(one.tokens, two.tokens), 1) if s.id != t.id)
    assert rows["first different token"] == [str(place)] * 2
    for column, generation in enumerate((one, two)):
        mean = sum(token.probability for token in generation.tokens) / len(generation.tokens)
        assert float(rows["mean probability"][column]) == pytest.approx(mean, abs=5e-4)
    assert {"tokens per second", "distinct 2-grams", "repeated 4-grams"} <= set(rows)


def test_model_facts_are_those_of_the_configuration(demo):
    rows = dict(model_info.facts(demo[0]))
    every = dict(demo[0].named_parameters())
    total = sum(p.numel() for p in every.values())
    routed = sum(p.numel() for name, p in every.items() if re.search(r"mlp\.experts", name))
    assert (
        rows["parameters"] == f"{total / 1e6:.1f} M, {(total - routed * 6 / 8) / 1e6:.1f} M of them used for one token"
    )
    assert "demo" in rows["came from"] and "DeepseekV3ForCausalLM" in rows["architecture"]
    assert rows["experts"] == "8 routed in each of 5 layers, 2 of them and 1 shared one a token"
    layers, bytes_each = demo[0].config.num_hidden_layers, demo[0].dtype.itemsize
    assert rows["cache of a token"].startswith(f"{160 * layers * bytes_each:,} bytes")
    assert f"{1152 * layers * bytes_each:,}" in rows["cache of a token"]


@pytest.mark.parametrize("name", [*families(), *dense()])
def test_every_panel_draws_any_model_from_a_folder(name, tokenizer, tmp_path):
    """Saved by transformers, opened by `load`; a dense model has every panel but those of experts."""
    model = AutoModelForCausalLM.from_config({**families(), **dense()}[name])
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, tokenizer = load(tmp_path)
    seen = trace(model, tokenizer, "Once upon a time there was a fox.")
    layers, heads = model.config.num_hidden_layers, model.config.num_attention_heads
    for small in attention.SMALL:
        everything = dict(layers=(0, layers - 1), heads=(0, heads - 1))
        _, lines, large, maps, average, token = attention.draw(seen, model.config, layer=1, small=small, **everything)
        assert len(maps.data) == (heads if small == attention.SMALL[0] else layers)
        expected = seen.attention(1)[0].numpy()
        assert np.abs(np.array(large.data[0].z) / 100 - expected).max() < 0.00501
        assert json.loads(lines.splitlines()[-1])["a"] == [round(100 * float(weight)) for weight in expected[token]]
        given = sum(seen.attention(layer).mean((0, 1)) for layer in range(layers)) / layers
        assert np.abs(np.array(average.data[0].y) - given.numpy()).max() <= 0.0001
    note, lens, kept, sizes, norms = layer_tab.draw(model, seen)
    assert np.array(lens.data[0].z).shape == (layers + 1, len(seen.ids))
    assert (norms is None) == ("no latents" in kept) == (not name.startswith("deepseek"))
    rows = dict(model_info.facts(model))
    assert type(model).__name__ in rows["architecture"] and "folder" in rows["came from"]
    assert (rows["experts"] == "none: the model is dense") == (name in dense())
    assert f"{seen.cache().bytes:,} bytes" in rows["cache of a token"]
    drawn = experts.draw(seen)
    if name in dense():
        assert experts.DENSE in drawn and not any(isinstance(part, go.Figure) for part in drawn)
    else:
        assert sum(isinstance(part, go.Figure) for part in drawn) >= 3


def test_an_attention_update_of_512_tokens_is_under_a_megabyte(demo):
    model, tokenizer = demo
    seen = trace(model, tokenizer, list(range(100, 612)))
    note, lines, *figures, _ = attention.draw(seen, model.config, layers=(0, 5), heads=(0, 8))
    assert note == "512 tokens"
    assert len(lines) + sum(len(figure.to_json()) for figure in figures) < 1e6


@pytest.mark.parametrize("text", ["0-3", "3-1", "1-70", "x", "1", "-", "1-2-3"])
def test_a_bad_range_of_tokens_is_refused(text):
    with pytest.raises(gr.Error, match="tokens are .* within 1-60"):
        attention.window(text, 60)


def test_a_range_of_tokens_is_counted_from_one():
    assert attention.window(" 2 – 5 ", 60) == (1, 5) and attention.window("", 60) == (0, 60)
    assert attention.window("", 1000) == (0, 512) and attention.window("489-1000", 1000) == (488, 1000)
    with pytest.raises(gr.Error, match="of 512 tokens at most"):
        attention.window("1-513", 1000)


# Checkpoints


@pytest.mark.parametrize("path", ["/etc", "tests", "", None, 5, "a/b/c"])
def test_what_is_no_checkpoint_is_refused(path):
    with pytest.raises(ValueError, match="^checkpoint "):
        model_registry.open_requested(path, "assets/demo")


def test_a_public_space_opens_no_folder_but_runs_and_only_small_models_of_the_hub(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("SPACE_ID", "somebody/space")
    with pytest.raises(ValueError, match="here it must be one of .*, or a Hub id"):
        model_registry.open_requested(checkpoint, "assets/demo")
    monkeypatch.setattr(model_registry, "RUNS", tmp_path)
    commits = [str(shutil.copytree(checkpoint, tmp_path / "run" / f"step-{step:06d}")) for step in (100, 200)]
    for path in commits:  # the older one too: the Train tab offers it
        assert model_registry.open_requested(path, "assets/demo")[0].name_or_path == path
    with pytest.raises(ValueError, match="here it must be one of"):
        model_registry.open_requested(f"{commits[0]}/../step-000100", "assets/demo")
    limits = []
    monkeypatch.setattr(model_cache, "load", lambda path, most: limits.append(most) or load(checkpoint))
    model_registry.open_requested("somebody/model", "assets/demo")
    assert limits == [model_registry.PUBLIC_LIMIT]
