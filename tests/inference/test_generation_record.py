"""A generation's file repeats it, and only with the same weights."""

import hashlib
import json
import shutil
from dataclasses import asdict

import pytest
import torch

from deepseek import SamplingParams, TokenTrace, load, stream
from deepseek.inference import generation_record


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
    made = generation_record.parse_record(
        json.dumps(generation_record.make_record(model, "Once upon", SETTINGS, tokens, forced))
    )
    again = list(generation_record.replay(made, model, tokenizer))
    assert [same for _, same in again] == [True] * len(tokens)
    assert made["text"] == "".join(token.text for token, _ in again)
    assert all(tokens[place].id == token for place, token in forced.items())


def test_a_changed_record_is_noticed(saved):
    _, model, tokenizer = saved
    made = generation_record.make_record(
        model, "Once upon", SETTINGS, list(stream(model, tokenizer, "Once upon", SETTINGS)), {}
    )
    made["tokens"][5]["id"] += 1
    assert [same for _, same in generation_record.replay(made, model, tokenizer)].index(False) == 5


def test_a_record_that_is_longer_than_its_text_is_not_repeated_whole(saved):
    _, model, tokenizer = saved
    made = generation_record.make_record(
        model, "Once upon", SETTINGS, list(stream(model, tokenizer, "Once upon", SETTINGS)), {}
    )
    made["params"]["max_new_tokens"] = 9
    assert [same for _, same in generation_record.replay(made, model, tokenizer)] == [True] * 9


def test_a_record_holds_everything(saved):
    folder, model, tokenizer = saved
    tokens = list(stream(model, tokenizer, "Once upon", SETTINGS, {3: 17}))
    made = json.loads(json.dumps(generation_record.make_record(model, "Once upon", SETTINGS, tokens, {3: 17})))
    assert made["prompt"] == "Once upon" and made["forced"] == {"3": 17}
    assert made["params"] == json.loads(json.dumps(asdict(SETTINGS))) and made["params"]["seed"] == 5
    weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert made["checkpoint"]["sha256"] == hashlib.sha256(weights.encode()).hexdigest()
    assert made["checkpoint"]["name"] == str(folder) and made["checkpoint"]["dtype"] == "float32"
    assert made["versions"]["torch"] == torch.__version__ and {"python", "transformers", "tokenizers"} < set(
        made["versions"]
    )
    assert len(made["tokens"]) == 24
    for kept, token in zip(made["tokens"], tokens):
        assert kept == json.loads(json.dumps(token.as_dict())) and set(kept) == set(TokenTrace.__dataclass_fields__)


def test_other_weights_are_refused(saved):
    folder, model, tokenizer = saved
    made = generation_record.make_record(
        model, "Once upon", SETTINGS, list(stream(model, tokenizer, "Once upon", SETTINGS)), {}
    )
    model.model.norm.weight.data += 0.1
    model.save_pretrained(folder)
    with pytest.raises(ValueError, match="other weights"):
        next(generation_record.replay(made, model, tokenizer))


@pytest.mark.parametrize(
    "where, value", [("prompt", 5), ("name", None), ("sha256", 7), ("dtype", "save"), ("dtype", [])]
)
def test_a_damaged_record_is_refused_in_a_sentence(saved, where, value):
    _, model, tokenizer = saved
    made = generation_record.make_record(
        model, "Once upon", SETTINGS, list(stream(model, tokenizer, "Once upon", SETTINGS)), {}
    )
    (made if where in made else made["checkpoint"])[where] = value
    with pytest.raises(ValueError, match=r"not the record of a generation\."):
        generation_record.parse_record(json.dumps(made))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "null", '{"format": 1}', '{"format": 1, "params": {"top_p": 7}}', "\0"]
)
def test_anything_else_is_refused_in_a_sentence(text):
    with pytest.raises(ValueError, match=r"not the record of a generation\.|it must be|this version reads"):
        generation_record.parse_record(text)
