"""The light sessions and the calm queue against gradio's own."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import gradio as gr
import pytest
from gradio import queueing, state_holder

from deepseek.ui.server import gradio_patches


@pytest.fixture(scope="module")
def blocks():
    with gr.Blocks() as blocks:
        gr.State(5)
        gr.Textbox("text", label="label")
        gr.Slider(0, 10, 3, info="a number")
    return blocks


def by_id(session):
    return {component["id"]: component for component in session.components}


def test_descriptions_equal_gradio_s_before_and_after_a_change(blocks):
    light, full = gradio_patches.LightSession(blocks), state_holder.SessionState(blocks)
    assert by_id(light) == by_id(full)
    light, full = gradio_patches.LightSession(blocks), state_holder.SessionState(blocks)
    state, text, slider = (key for key, block in blocks.blocks.items() if not isinstance(block, gr.blocks.BlockContext))
    for session in (light, full):
        session[text] = gr.Textbox("other", render=False)
        session._update_value_in_config(slider, 7)
        session[state] = 6
    assert by_id(light) == by_id(full) and by_id(light)[slider]["props"]["value"] == 7
    assert light[state] == 6 and gradio_patches.LightSession(blocks)[state] == 5


def test_nothing_is_described_until_it_is_read(blocks, monkeypatch):
    monkeypatch.setattr(gr.Textbox, "get_config", pytest.fail)
    monkeypatch.setattr(state_holder, "SessionState", state_holder.SessionState)  # restored afterwards
    monkeypatch.setattr(queueing, "Queue", queueing.Queue)
    gradio_patches.apply_patches()
    holder = state_holder.StateHolder()
    holder.set_blocks(blocks)
    assert isinstance(holder["someone"], gradio_patches.LightSession)
    assert "someone" in holder and holder["someone"] is holder["someone"]


def test_an_empty_queue_is_looked_at_less_often(monkeypatch):
    monkeypatch.setattr(state_holder, "SessionState", state_holder.SessionState)  # restored afterwards
    monkeypatch.setattr(queueing, "Queue", queueing.Queue)
    with gr.Blocks() as own:
        pass
    assert own.queue()._queue.sleep_when_free == 0.001, "if gradio no longer polls, CalmQueue has had its day"
    gradio_patches.apply_patches()
    with gr.Blocks() as page:
        pass
    assert page.queue(max_size=3)._queue.sleep_when_free == 0.01 and page._queue.max_size == 3


def test_progress_for_a_page_that_is_gone_ends_no_other_progress():
    def send(kind):
        queue = kind(True, None, 0.01, None, gr.Blocks())
        gone, other = (SimpleNamespace(alive=True, session_hash=name, _id=name, progress_pending=True) for name in "ab")
        for event in (gone, other):
            event.progress = SimpleNamespace()
        queue.active_jobs, queue.pending_messages_per_session["b"] = [[gone, other]], asyncio.Queue()
        queue.progress_update_sleep_when_free = 0

        async def updates():
            asyncio.get_running_loop().call_later(0.05, queue.close)
            await queue.start_progress_updates()

        with ThreadPoolExecutor() as thread:  # this one may have a loop already, of the browser tests
            thread.submit(asyncio.run, updates()).result()
        return queue.pending_messages_per_session["b"].qsize()

    with pytest.raises(KeyError):  # if gradio no longer raises it, `send_message` has had its day
        send(gradio_patches.CalmQueue.__base__)
    assert send(gradio_patches.CalmQueue) == 1


def test_another_gradio_is_refused(monkeypatch):
    monkeypatch.setattr(gr, "__version__", "6.32.0")
    with pytest.raises(RuntimeError, match="gradio is 6.32.0"):
        gradio_patches.apply_patches()


def test_an_expired_state_is_refused_not_swapped_for_its_first_value():
    with gr.Blocks() as page:
        state = gr.State(["first"], time_to_live=0)
    holder = state_holder.StateHolder()
    holder.set_blocks(page)
    session = holder.session_data["someone"] = gradio_patches.LightSession(page)
    assert session[state._id] == ["first"]
    session[state._id] = ["second"]
    assert session[state._id] == ["second"]
    holder.delete_all_expired_state()
    assert not session[state._id]
    for use in (lambda value: value.text, lambda value: value[0]):
        with pytest.raises(gr.Error, match="kept for an hour"):
            use(session[state._id])
    session[state._id] = ["third"]
    assert session[state._id] == ["third"]
