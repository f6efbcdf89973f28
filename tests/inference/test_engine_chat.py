"""Chats in the decode loop: what the model gets, where it stops, and special tokens within the text."""

import json

import pytest
from chatting import CHAT, RENDERED

from deepseek import SamplingParams, load, stream, trace
from deepseek.inference.generation_record import make_record, parse_record, replay


def generate(model, tokenizer, prompt, forced_tokens=None, **settings):
    params = SamplingParams(temperature=0, min_new_tokens=12, max_new_tokens=12, **settings)
    return list(stream(model, tokenizer, prompt, params, forced_tokens))


def text_of(tokens):
    return "".join(token.text for token in tokens)


def test_the_model_gets_the_rendered_conversation(chat_model, chat_tokenizer):
    """As transformers renders and tokenizes it, and as `generate` continues it."""
    rendered = chat_tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_tensors="pt")
    tokens = generate(chat_model, chat_tokenizer, CHAT)
    ends = [0, chat_tokenizer.convert_tokens_to_ids("<|im_end|>")]
    options = dict(do_sample=False, min_new_tokens=12, max_new_tokens=12, eos_token_id=ends)
    output = chat_model.generate(**rendered, **options)[0].tolist()
    assert output[len(rendered["input_ids"][0]) :] == [token.id for token in tokens]
    assert generate(chat_model, chat_tokenizer, rendered["input_ids"][0].tolist())[-1].id == tokens[-1].id
    assert generate(chat_model, chat_tokenizer, CHAT[:2])[0].position < tokens[0].position


def test_a_trace_of_a_conversation_shows_its_special_tokens(chat_model, chat_tokenizer):
    traced = trace(chat_model, chat_tokenizer, CHAT)
    assert "".join(traced.tokens) == RENDERED and traced.tokens.count("<|im_end|>") == 4


def test_the_end_of_a_turn_stops_and_is_no_text(chat_model, chat_tokenizer):
    end = chat_tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert chat_model.generation_config.eos_token_id == 0
    tokens = generate(chat_model, chat_tokenizer, CHAT, {4: end})
    assert len(tokens) == 5 and tokens[-1].finish_reason == "stop" and tokens[-1].text == ""
    assert text_of(tokens) == text_of(generate(chat_model, chat_tokenizer, CHAT, {4: 0}))


def test_special_tokens_within_a_text_are_shown_and_stop_strings_see_them(chat_model, chat_tokenizer):
    channel = chat_tokenizer.convert_tokens_to_ids("<|channel|>")
    tokens = generate(chat_model, chat_tokenizer, CHAT, {3: channel})
    assert tokens[3].text.endswith("<|channel|>") and len(tokens) == 12
    stopped = generate(chat_model, chat_tokenizer, CHAT, {3: channel}, stop=("<|channel|>",))
    assert len(stopped) == 4 and stopped[-1].stop_string == "<|channel|>" and text_of(stopped) == text_of(tokens[:4])


def test_a_model_without_a_template_refuses_messages(model, tokenizer):
    for function in (trace, lambda *arguments: list(stream(*arguments))):
        with pytest.raises(ValueError, match="they need a chat template, and the tokenizer has none.$"):
            function(model, tokenizer, CHAT)


def test_a_record_of_a_chat_repeats_what_was_rendered(chat_checkpoint):
    """Not what the template would write today: some write the date."""
    model, tokenizer = load(chat_checkpoint)
    params, earlier = SamplingParams(seed=3, max_new_tokens=8), RENDERED.replace("brief", "quick")
    ids = tokenizer(earlier, add_special_tokens=False)["input_ids"]
    tokens = list(stream(model, tokenizer, ids, params))
    record = make_record(model, earlier, params, tokens, {}, messages=CHAT)
    read = parse_record(json.dumps(record))
    assert read["messages"] == CHAT and all(same for _, same in replay(read, model, tokenizer))
    del record["messages"]
    assert parse_record(json.dumps(record))["messages"] == []
    with pytest.raises(ValueError, match="^role of message 1 is 'me'"):
        parse_record(json.dumps({**record, "messages": [{"role": "me", "content": "x"}]}))
