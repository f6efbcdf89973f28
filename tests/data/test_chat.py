"""Conversations as text, beside what the template writes by hand and what transformers renders."""

import pytest
from chatting import CHAT, CHATML, RENDERED, WHOLE, with_template

from deepseek.data import chat
from deepseek.data.chat import check_messages, conversation, document_renderer, end_of_turn_ids, render


def test_several_turns_are_rendered_as_the_template_says(chat_tokenizer):
    assert render(chat_tokenizer, CHAT) == RENDERED
    assert render(chat_tokenizer, CHAT, add_generation_prompt=False) == WHOLE
    assert chat_tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True) == RENDERED
    assert document_renderer(chat_tokenizer)(CHAT) == WHOLE


def test_a_template_knows_the_special_tokens_of_its_tokenizer(tokenizer):
    named = with_template(tokenizer, "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}")
    assert render(named, CHAT) == "<|endoftext|>Be brief.<|endoftext|>"


def test_of_several_templates_it_is_the_default_one(tokenizer):
    several = with_template(tokenizer, {"tools": "x", "default": CHATML})
    assert render(several, CHAT) == RENDERED
    assert chat.chat_template(with_template(tokenizer, {"tools": "x"})) is None


def test_a_refusal_and_a_missing_template_are_told(chat_tokenizer, tokenizer):
    with pytest.raises(ValueError, match="^messages cannot be rendered by .* chat template: No tools here!.$"):
        render(chat_tokenizer, [*CHAT, {"role": "tool", "content": "x"}])
    with pytest.raises(ValueError, match="^messages are .*; they need a chat template, and the tokenizer has none.$"):
        render(tokenizer, CHAT)
    assert document_renderer(tokenizer) is None


@pytest.mark.parametrize("messages, sentence", [
    ("hello", "^messages are 'hello'; they must be a list of "),
    ([], r"^messages are \[\]; they must be a list of "),
    ([CHAT[0], "hello"], "^message 2 is 'hello'; it must be an object with role and content alone.$"),
    ([{"role": "user"}], "^message 1 is {'role': 'user'}; it must be an object with role and content alone.$"),
    ([CHAT[0] | {"name": "me"}], "^message 1 is .*; it must be an object with role and content alone.$"),
    ([{"role": "me", "content": ""}], "^role of message 1 is 'me'; it must be one of system, developer, user, assistant, tool.$"),
    ([{"role": ["user"], "content": ""}], "^role of message 1 is .*; it must be one of "),
    ([{"role": "user", "content": 5}], "^content of message 1 is 5; it must be text.$"),
])  # fmt: skip
def test_a_bad_message_is_refused_by_name(messages, sentence):
    with pytest.raises(ValueError, match=sentence):
        check_messages(messages)


def test_a_prompt_begins_a_conversation_where_there_is_a_template(chat_tokenizer, tokenizer):
    assert conversation(chat_tokenizer, "Who?", "Be brief.") == CHAT[:2]
    assert conversation(chat_tokenizer, "Who?") == CHAT[1:2]
    assert conversation(tokenizer, "Who?", "Be brief.") == "Who?"
    assert conversation(chat_tokenizer, " ") == " "


def test_a_turn_ends_with_the_end_token_and_the_one_that_the_template_writes(chat_tokenizer, tokenizer):
    assert end_of_turn_ids(chat_tokenizer) == {0, chat_tokenizer.convert_tokens_to_ids("<|im_end|>")}
    assert end_of_turn_ids(with_template(tokenizer, "{{ messages[0].content }}<|eot_id|>")) == {0}, "it is no token"
    assert end_of_turn_ids(tokenizer) == set()
