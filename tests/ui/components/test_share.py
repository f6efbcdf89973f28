"""Links, those of version 0.1 included."""

import pytest
from chatting import CHAT
from running import ROOT
from starlette.datastructures import QueryParams

from deepseek import SamplingParams
from deepseek.interpret.interventions import Intervention
from deepseek.ui.components import share

V01 = ROOT / "tests/fixtures/v0.1"


def test_a_link_restores_prompt_settings_and_branch():
    params = SamplingParams(
        temperature=0.3, dynamic_temperature=True, order="llama.cpp", stop=("a&b", "\n"), seed=2**40, regex="[&=]+\n"
    )
    query = QueryParams(share.to_query("Once & “upon”\n?", params, {3: 17, 9: 4}, "runs/a&b/step-000100"))
    assert query["checkpoint"] == "runs/a&b/step-000100"
    assert share.from_query(query, 100) == ("Once & “upon”\n?", params, {3: 17, 9: 4})


def test_a_link_restores_a_chat():
    query = QueryParams(share.to_query("Who? & “why”", SamplingParams(), {}, messages=CHAT))
    assert share.messages_from_query(query) == CHAT and share.from_query(query, 100)[0] == "Who? & “why”"
    assert share.messages_from_query(QueryParams("prompt=x")) == []
    for wrong in ("[", "{}", "[]", '[{"role": "user"}]', "[" * 10_000):
        with pytest.raises(ValueError, match="^messages? (1 )?(is|are) .*; (it|they) must be "):
            share.messages_from_query(QueryParams({"messages": wrong}))


def test_a_link_holds_any_number_of_interventions():
    changes = [Intervention(3, "promote", 2, 0.5), Intervention(1, "off"), Intervention(7, "force", 4)]
    query = QueryParams(share.to_query("x", SamplingParams(), {}, interventions=changes))
    assert query.getlist("interventions") == ["promote 3@2 0.5", "off 1", "force 7@4"]
    assert share.interventions_from_query(query) == changes
    assert share.interventions_from_query(QueryParams("prompt=x")) == []
    with pytest.raises(ValueError, match="^intervention is 'dim 3'"):
        share.interventions_from_query(QueryParams("interventions=dim+3"))


def test_a_bad_link_is_refused_by_name():
    for query in ("temprature=1", "top-k=3", "promt=x"):
        with pytest.raises(ValueError, match="is no name of a setting; it must be (temperature|top_k|prompt)."):
            share.from_query(QueryParams(query), 100)
    _, params, _ = share.from_query(QueryParams("__theme=dark&utm_source=x&fbclid=y&dynamic_temperature=true"), 100)
    assert params == SamplingParams(dynamic_temperature=True)
    for query in ("temperature=x", "top_k=1.5", "forced_tokens=1-999", "forced_tokens=a-b", "order=%00", "seed=-1"):
        with pytest.raises(ValueError, match=f"^{query.partition('=')[0]} is "):
            share.from_query(QueryParams("prompt=x&" + query), 100)


def test_a_link_of_version_0_1_still_opens():
    query = QueryParams((V01 / "link.txt").read_text().strip().removeprefix("?"))
    prompt, params, forced_tokens = share.from_query(query, 1000)
    assert prompt == "Once upon a time" and forced_tokens == {2: 40}
    assert params == SamplingParams(
        temperature=0.9, dynamic_temperature=True, no_repeat_ngram_size=3, order="llama.cpp", max_new_tokens=12,
        stop=("zzz",), seed=7,
    )  # fmt: skip
