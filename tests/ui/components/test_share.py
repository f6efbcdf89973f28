"""Links and presets, those of version 0.1 included."""

import json

import pytest
from running import ROOT
from starlette.datastructures import QueryParams

from deepseek import SamplingParams
from deepseek.ui.components import share

V01 = ROOT / "tests/fixtures/v0.1"


def test_a_link_restores_prompt_settings_and_branch():
    params = SamplingParams(
        temperature=0.3, dynamic_temperature=True, order="llama.cpp", stop=("a&b", "\n"), seed=2**40
    )
    query = QueryParams(share.to_query("Once & “upon”\n?", params, {3: 17, 9: 4}, "runs/a&b/step-000100"))
    assert query["checkpoint"] == "runs/a&b/step-000100"
    assert share.from_query(query, 100) == ("Once & “upon”\n?", params, {3: 17, 9: 4})


def test_a_bad_link_is_refused_by_name():
    for query in ("temperature=x", "top_k=1.5", "forced_tokens=1-999", "forced_tokens=a-b", "order=%00", "seed=-1"):
        with pytest.raises(ValueError, match=f"^{query.partition('=')[0]} is "):
            share.from_query(QueryParams("prompt=x&" + query), 100)


def test_presets_from_the_browser_are_checked():
    good = {"temperature": 0.5}
    saved = {"mine": good, "bad": {"temperature": -1}, "odd": {"__class__": 1}, "none": None}
    assert share.valid_presets(saved) == {"mine": good}
    assert share.valid_presets("junk") == {}
    assert list(share.add_preset({"mine": good}, " new ", good)) == ["mine", "new"]
    for name in ("", " ", "x" * 41, None, "greedy"):
        with pytest.raises(Exception, match="name is"):
            share.add_preset({}, name, good)


def test_a_link_and_presets_of_version_0_1_still_open():
    query = QueryParams((V01 / "link.txt").read_text().strip().removeprefix("?"))
    prompt, params, forced_tokens = share.from_query(query, 1000)
    assert prompt == "Once upon a time" and forced_tokens == {2: 40}
    assert params == SamplingParams(
        temperature=0.9, dynamic_temperature=True, no_repeat_ngram_size=3, order="llama.cpp", max_new_tokens=12,
        stop=("zzz",), seed=7,
    )  # fmt: skip
    saved = json.loads((V01 / "presets.json").read_text())
    (settings,) = share.valid_presets(saved).values()
    assert settings["no_repeat_ngram_size"] == 3 and settings["frequency_penalty"] == 0.5
    assert SamplingParams(**settings).top_k == 40
