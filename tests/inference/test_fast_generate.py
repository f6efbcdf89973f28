"""`generate` of a checkpoint that `deepseek.load` opened: transformers' tokens, decoded by DecodeModel wherever that can."""

import copy
import pickle

import pytest
import torch
import transformers
from model.test_hf_compat import generated
from tiny_model import make_model

import deepseek
from deepseek.checkpoints import loading
from deepseek.inference.decode_model import DecodeModel
from deepseek.model import deepseek_v3


@pytest.fixture
def folder(tmp_path):
    make_model().save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def model(folder):
    return deepseek.load(folder, torch.float32)[0]


@pytest.fixture
def stock(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture
def decoded(monkeypatch):
    """The number of rows of every step that a DecodeModel took."""
    rows, step = [], DecodeModel.decode_batch

    def count(self, tokens, *arguments):
        rows.append(len(tokens))
        return step(self, tokens, *arguments)

    monkeypatch.setattr(DecodeModel, "decode_batch", count)
    return rows


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("settings", [{}, dict(num_beams=3)], ids=["greedy", "beams"])
def test_the_tokens_are_those_of_stock(model, stock, decoded, rows, settings):
    """Of several rows the first is padded on the left."""
    assert torch.equal(generated(model, rows, **settings), generated(stock, rows, **settings))
    assert decoded == [rows * settings.get("num_beams", 1)] * 15


def test_sampled_tokens_are_those_of_stock(model, stock, decoded):
    ids = []
    for each in (model, stock):
        torch.manual_seed(5)
        ids.append(each.generate(torch.tensor([[3, 4, 5]]), do_sample=True, max_new_tokens=20, repetition_penalty=1.3))
    assert torch.equal(*ids) and decoded


@pytest.mark.parametrize(
    "settings",
    [
        dict(use_cache=False),
        dict(cache_implementation="static"),
        dict(return_dict_in_generate=True, output_hidden_states=True),
    ],
    ids=["no cache", "static cache", "hidden states"],
)
def test_what_it_cannot_give_takes_the_models_own_forward(model, stock, decoded, settings):
    ours, theirs = (generated(each, 3, **settings) for each in (model, stock))
    if settings.get("output_hidden_states"):
        assert len(ours.hidden_states) == len(theirs.hidden_states) == 16
        ours, theirs = ours.sequences, theirs.sequences
    assert torch.equal(ours, theirs) and not decoded


def test_hooks_on_modules_run(model, decoded):
    seen = []
    handle = model.model.layers[0].register_forward_hook(lambda *arguments: seen.append(1))
    generated(model, 1)
    assert len(seen) == 16 and not decoded
    handle.remove()
    generated(model, 1)
    assert decoded


def test_changed_weights_are_used(model, decoded):
    before = generated(model, 1)
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.mul_(-3)
    changed = generated(model, 1)
    assert not torch.equal(changed, before)
    again = copy.deepcopy(model)
    again.packed = None
    assert torch.equal(generated(again, 1), changed) and decoded


def test_a_call_inside_generate_leaves_nothing_behind(model):
    generated(model, 1)
    assert model.decode_model is None
    ids = torch.tensor([[1, 2, 3]])
    output = model(ids, labels=ids)
    output.loss.backward()
    assert model.lm_head.weight.grad is not None


def test_it_is_saved_copied_and_pickled_as_the_plain_model(model, tmp_path):
    generated(model, 1)
    model.save_pretrained(tmp_path / "saved")
    assert type(loading.load(tmp_path / "saved")[0]) is deepseek_v3.DeepseekV3ForCausalLM
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(generated(twin, 1), generated(model, 1))


def test_a_bf16_checkpoint_decodes_too(folder, decoded):
    model, _ = deepseek.load(folder, torch.bfloat16)
    assert generated(model, 3).shape == (3, 25) and decoded == [3] * 15
