"""A generation's file repeats it, and only with the same weights."""

import json
import shutil

import pytest
import torch

from deepseek import SamplingParams, load, record, stream


@pytest.fixture
def saved(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    return folder, *load(folder, torch.float32)


SETTINGS = SamplingParams(
    temperature=1.2, top_k=40, penalty_scope="all", presence_penalty=0.5, seed=5, max_new_tokens=24
)


@pytest.mark.parametrize("forced", [{}, {3: 17}, {3: 17, 9: 4}])
def test_a_record_repeats_token_for_token(saved, forced):
    _, model, tokenizer = saved
    tokens = list(stream(model, tokenizer, "Once upon", SETTINGS, forced))
    made = record.read(json.dumps(record.make(model, "Once upon", SETTINGS, tokens, forced)))
    again = list(record.repeat(made, model, tokenizer))
    assert [same for _, same in again] == [True] * len(tokens)
    assert made["text"] == "".join(token.text for token, _ in again)
    assert all(tokens[place].id == token for place, token in forced.items())


def test_a_changed_record_is_noticed(saved):
    _, model, tokenizer = saved
    made = record.make(model, "Once upon", SETTINGS, list(stream(model, tokenizer, "Once upon", SETTINGS)), {})
    made["tokens"][5]["id"] += 1
    assert [same for _, same in record.repeat(made, model, tokenizer)].index(False) == 5


def test_other_weights_are_refused(saved):
    folder, model, tokenizer = saved
    made = record.make(model, "Once upon", SETTINGS, list(stream(model, tokenizer, "Once upon", SETTINGS)), {})
    model.model.norm.weight.data += 0.1
    model.save_pretrained(folder)
    with pytest.raises(ValueError, match="other weights"):
        next(record.repeat(made, model, tokenizer))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "null", '{"format": 1}', '{"format": 1, "params": {"top_p": 7}}', "\0"]
)
def test_anything_else_is_refused_in_a_sentence(text):
    with pytest.raises(ValueError, match=r"not the record of a generation\.|it must be|this version reads"):
        record.read(text)
