"""What the Playground's events do where a browser cannot bring it about within a test."""

import gradio as gr
import pytest

from deepseek import SamplingParams
from deepseek.inference.generation_record import parse_record, replay
from deepseek.ui.components import share
from deepseek.ui.components.shared_outputs import Turns
from deepseek.ui.generation import Generation, generate
from deepseek.ui.server.gradio_patches import Expired
from deepseek.ui.tabs import playground

PARAMS = SamplingParams(temperature=0.9, seed=7, max_new_tokens=12)


def test_a_text_that_has_expired_is_sampled_again_from_its_link(demo):
    *_, first = generate(*demo, "Once upon a time", PARAMS, {3: 99})
    with gr.Blocks() as page:
        playground.build(page, gr.State("assets/demo"), gr.BrowserState({}), first)
    listeners = list(page.fns.values())
    revivals = [listener for listener in listeners if listener.name == "revive"]
    refused = {page.fns[each.trigger_after].name for each in revivals if each.trigger_only_on_failure}
    on_text = {
        "select",
        "run_again",
        "run_reply",
        "branch",
        "follow",
        "make_query",
        "export",
        "answer",
        "show_comparison",
    }
    assert refused == on_text
    select = next(listener.fn for listener in listeners if listener.name == "select")
    with pytest.raises(gr.Error, match="kept for an hour, and is gone"):
        select(Turns(), 1.0, Expired(), gr.EventData(None, {"index": 1}))
    revive, query = revivals[0].fn, share.query_of(first, "assets/demo")
    assert list(revive(Turns(), 1.0, first, query)) == [gr.skip()], "a text that is there stays, whatever was refused"
    answers = list(revive(Turns(), 1.0, Expired(), query))
    (again,) = [value for answer in answers for value in answer if isinstance(value, Generation)]
    assert again.ids == first.ids and again.branch == first.branch and again.strip == first.strip


def test_a_text_that_is_exported_while_it_grows_can_be_repeated(demo):
    growing = generate(*demo, "Once upon a time", PARAMS)
    generation = next(growing)
    num_tokens = len(generation.tokens)
    with open(share.export_file(generation)) as file:
        record = parse_record(file.read())
    growing.close()
    assert 0 < len(record["tokens"]) == num_tokens < 12
    assert record["text"] == "".join(token["text"] for token in record["tokens"])
    assert all(same for _, same in replay(record, *demo)) and record["branches"] == []
