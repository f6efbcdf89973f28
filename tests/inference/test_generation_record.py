"""The record of a generation repeats it, and only with the same weights."""

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from deepseek import SamplingParams, TokenTrace, load, stream
from deepseek.inference.generation_record import make_record, parse_record, replay
from deepseek.interpret.interventions import Intervention

SETTINGS = SamplingParams(
    temperature=1.2, top_k=40, penalty_scope="all", presence_penalty=0.5, seed=5, max_new_tokens=24
)


@pytest.fixture(scope="module")
def loaded(checkpoint):
    return load(checkpoint, torch.float32)


@pytest.fixture(scope="module")
def recorded(loaded):
    """Returns (tokens, record as JSON) for some forced tokens."""

    def record(forced_tokens=None):
        model, tokenizer = loaded
        tokens = list(stream(model, tokenizer, "Once upon", SETTINGS, forced_tokens))
        return tokens, json.dumps(make_record(model, "Once upon", SETTINGS, tokens, forced_tokens or {}))

    return record


@pytest.mark.parametrize("forced_tokens", [{}, {3: 17}, {3: 17, 9: 4}])
def test_a_record_repeats_token_for_token(loaded, recorded, forced_tokens):
    tokens, text = recorded(forced_tokens)
    record = parse_record(text)
    repeated = list(replay(record, *loaded))
    assert [same for _, same in repeated] == [True] * len(tokens)
    assert record["text"] == "".join(token.text for token, _ in repeated)
    assert all(tokens[index].id == token for index, token in forced_tokens.items())


def test_a_record_repeats_its_interventions(loaded):
    changes = [Intervention(3, "promote", 1, 0.5), Intervention(2, "off"), Intervention(5, "force", 1)]
    tokens = list(stream(*loaded, "Once upon", SETTINGS, interventions=changes))
    record = json.loads(json.dumps(make_record(loaded[0], "Once upon", SETTINGS, tokens, {}, interventions=changes)))
    assert record["interventions"][0] == {"expert": 3, "action": "promote", "layer": 1, "strength": 0.5}
    assert all(same for _, same in replay(parse_record(json.dumps(record)), *loaded))
    assert parse_record(json.dumps(record))["interventions"] == changes
    del record["interventions"]  # as in older records
    assert parse_record(json.dumps(record))["interventions"] == []
    assert not all(same for _, same in replay(record, *loaded))
    record["interventions"] = [{"expert": 1}]
    with pytest.raises(ValueError, match="^interventions are "):
        parse_record(json.dumps(record))


def test_a_changed_record_is_noticed(loaded, recorded):
    record = json.loads(recorded()[1])
    record["tokens"][5]["id"] += 1
    assert [same for _, same in replay(record, *loaded)].index(False) == 5


def test_a_record_longer_than_its_output_ends_early(loaded, recorded):
    record = json.loads(recorded()[1])
    record["params"]["max_new_tokens"] = 9
    assert [same for _, same in replay(record, *loaded)] == [True] * 9


def test_a_record_holds_everything(checkpoint, recorded):
    tokens, text = recorded({3: 17})
    record = json.loads(text)
    assert record["prompt"] == "Once upon" and record["forced"] == {"3": 17} and record["format"] == 1
    assert record["params"] == json.loads(json.dumps(asdict(SETTINGS))) and record["params"]["seed"] == 5
    weights = hashlib.sha256((Path(checkpoint) / "model.safetensors").read_bytes()).hexdigest()
    assert record["checkpoint"] == {
        "name": checkpoint, "sha256": hashlib.sha256(weights.encode()).hexdigest(), "dtype": "float32",
    }  # fmt: skip
    assert record["versions"].keys() == {"python", "torch", "transformers", "tokenizers"}
    assert record["versions"]["torch"] == torch.__version__ and len(record["tokens"]) == 24
    for fields, token in zip(record["tokens"], tokens):
        assert fields == json.loads(json.dumps(token.as_dict())) and set(fields) == set(TokenTrace.__dataclass_fields__)


def test_other_weights_are_refused(checkpoint, recorded, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    model, tokenizer = load(folder, torch.float32)
    model.model.norm.weight.data += 0.1
    model.save_pretrained(folder)
    with pytest.raises(ValueError, match="other weights"):
        next(replay(json.loads(recorded()[1]), model, tokenizer))


@pytest.mark.parametrize("key, value", [("prompt", 5), ("name", None), ("sha256", 7), ("dtype", "save"), ("dtype", [])])
def test_a_damaged_record_is_refused_in_a_sentence(recorded, key, value):
    record = json.loads(recorded()[1])
    (record if key in record else record["checkpoint"])[key] = value
    with pytest.raises(ValueError, match=r"not the record of a generation\."):
        parse_record(json.dumps(record))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "null", '{"format": 1}', '{"format": 1, "params": {"top_p": 7}}', "\0"]
)
def test_anything_else_is_refused_in_a_sentence(text):
    with pytest.raises(ValueError, match=r"not the record of a generation\.|it must be|this version reads"):
        parse_record(text)
