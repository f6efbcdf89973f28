"""Events of pages whose session is gone. (Wrong values are sent in test_request_validation.py.)"""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import gradio as gr
import pytest
from gradio import state_holder

from deepseek.ui.server import gradio_patches
from deepseek.ui.server.validated_blocks import GONE_TITLE, ValidatedBlocks


@pytest.fixture
def call(monkeypatch):
    """Sends an event of a session to a page that counts them in a gr.State; returns the count. Two sessions are kept."""
    monkeypatch.setattr(state_holder, "SessionState", gradio_patches.LightSession)
    with ValidatedBlocks() as page:
        state, number = gr.State(0), gr.Number()
        gr.Button().click(lambda count: (count + 1, count + 1), state, [state, number])
    page.state_session_capacity = 2
    holder = state_holder.StateHolder()
    holder.set_blocks(page)

    def call(session):
        options = dict(state=holder[session], session_hash=session)
        with ThreadPoolExecutor(1) as thread:  # the browser tests leave a loop running in this one
            return thread.submit(asyncio.run, page.process_api(page.fns[0], [None], **options)).result()["data"][1]

    return call


def test_a_page_s_session_goes_on_and_one_that_was_put_out_is_refused(call):
    pages = [f"{ValidatedBlocks.started}-{name}" for name in "abc"]
    assert [call(pages[0]), call(pages[0]), call(pages[1]), call(pages[0])] == [1, 2, 1, 3]
    call(pages[2])  # puts out the one used last of all
    for _ in range(2):
        with pytest.raises(gr.Error) as refusal:
            call(pages[1])
        assert refusal.value.title == GONE_TITLE


def test_a_page_of_an_older_app_is_refused_and_a_session_that_is_no_page_s_is_not(call):
    with pytest.raises(gr.Error, match="app was restarted"):
        call("page-1700000000000000000-a")
    assert call("3f2b9c1e-7d1c-4b6e-9a55-0e4fb3b0a9d1") == 1  # as gradio's client in Python calls it
