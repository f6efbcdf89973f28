"""The page's chats: what the model is asked, the next turn, and a link that restores it."""

import gradio as gr
import pytest
from chatting import CHAT, RENDERED
from starlette.datastructures import QueryParams

from deepseek import SamplingParams, load, stream
from deepseek.ui.components import chat, share
from deepseek.ui.components.traces import as_sampled
from deepseek.ui.generation import generate

PARAMS = SamplingParams(temperature=0, min_new_tokens=6, max_new_tokens=6)


@pytest.fixture(scope="module")
def opened(chat_checkpoint):
    return load(chat_checkpoint)


def test_a_turn_is_answered_with_the_whole_conversation_in_view(opened):
    model, tokenizer = opened
    *_, first = generate(*opened, chat.request_of(tokenizer, "Who?", True, "Be brief."), PARAMS)
    start = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"
    assert first.prompt == start and first.text == start + first.output
    assert [token.id for token in first.tokens] == [token.id for token in stream(*opened, CHAT[:2], PARAMS)]
    *_, second = generate(*opened, chat.next_messages(first, "Where?"), PARAMS)
    assert second.prompt == RENDERED.replace("A fox.", first.output)
    assert as_sampled(second.text, second, model) == second.ids
    with pytest.raises(gr.Error, match="message is empty"):
        chat.next_messages(second, " ")


def test_a_branch_and_a_link_keep_the_messages(opened):
    *_, parent = generate(*opened, CHAT, PARAMS)
    *_, branch = generate(*opened, parent.request, PARAMS, {2: 40}, parent.branches)
    assert branch.messages == CHAT and branch.prompt_ids == parent.prompt_ids and branch.tokens[2].id == 40
    link = QueryParams(share.query_of(branch, ""))
    assert share.messages_from_query(link) == CHAT and share.from_query(link, 300)[0] == "Who?"
    assert chat.system_prompt(CHAT) == "Be brief." and chat.system_prompt(CHAT[1:]) == ""


def test_switched_off_the_prompt_is_text(opened, demo, chat_checkpoint):
    _, tokenizer = opened
    assert chat.request_of(tokenizer, "Who?", False, "Be brief.") == "Who?"
    assert chat.request_of(demo[1], "Who?", True, "Be brief.") == "Who?"
    *_, raw = generate(*opened, "Who?", PARAMS)
    assert raw.prompt == "Who?" and raw.messages == [] and "messages" not in QueryParams(share.query_of(raw, ""))
    assert [chat.show_switch(path)["visible"] for path in ("assets/demo", chat_checkpoint)] == [False, True]
