"""transformers' private hooks: generation, recorded outputs and the checkpoint format, beside transformers' own class."""

import json

import pytest
import torch
import transformers
from safetensors import safe_open
from tiny_model import make_model, random_ids

from deepseek.model.config import preset
from deepseek.model.deepseek_v3 import DeepseekV3ForCausalLM

Stock = transformers.DeepseekV3ForCausalLM


def generated(model, rows, **settings):
    """16 tokens after each of `rows` prompts; of several, the first is padded on the left."""
    ids = random_ids(rows, 9)
    mask = torch.ones_like(ids)
    if rows > 1:
        mask[0, :4] = ids[0, :4] = 0
    length = dict(max_new_tokens=16, min_new_tokens=16)
    return model.generate(ids, attention_mask=mask, do_sample=False, **length, **settings)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(
    "settings",
    [dict(), dict(num_beams=3), dict(use_cache=False), dict(cache_implementation="static")],
    ids=["greedy", "beams", "no cache", "static cache"],
)
def test_generate_equals_stock(settings, rows):
    assert torch.equal(generated(make_model(), rows, **settings), generated(make_model(Stock), rows, **settings))


def test_speculative_decoding_equals_greedy_decoding():
    model = make_model()
    assert torch.equal(generated(model, 1, prompt_lookup_num_tokens=3), generated(model, 1))


def test_the_attention_implementation_can_be_switched():
    model, ids = make_model(attention="sdpa"), random_ids(1, 6)
    for attention in ("eager", "sdpa"):
        model.set_attn_implementation(attention)
        weights = model(ids, output_attentions=True).attentions
        assert len(weights) == (model.config.num_hidden_layers if attention == "eager" else 0)


def test_outputs_include_the_selected_experts():
    model, ids = make_model(num_hidden_layers=3), random_ids(2, 6)
    output = model(ids, output_router_logits=True, output_router_indices=True)
    assert [tuple(logits.shape) for logits in output.router_logits] == [(12, 8)] * 2
    bias = model.model.layers[1].mlp.gate.e_score_correction_bias
    selected = (output.router_logits[0].sigmoid() + bias).topk(2).indices
    assert torch.equal(output.router_indices[0], selected)


def test_a_saved_folder_is_a_stock_checkpoint(tmp_path):
    make_model().save_pretrained(tmp_path)
    assert type(transformers.AutoModelForCausalLM.from_pretrained(tmp_path)) is Stock
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "deepseek_v3"
    assert config["architectures"] == ["DeepseekV3ForCausalLM"]
    assert config["topk_method"] == "noaux_tc"
    assert config["scoring_func"] == "sigmoid"
    assert "auto_map" not in config
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        keys = set(file.keys())
    experts = {
        f"model.layers.1.mlp.experts.{e}.{part}_proj.weight" for e in range(8) for part in ("gate", "up", "down")
    }
    assert {key for key in keys if ".experts." in key} == experts


def test_the_bias_stays_fp32_in_a_bf16_checkpoint(tmp_path):
    make_model().save_pretrained(tmp_path)
    model = DeepseekV3ForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert model.lm_head.weight.dtype == torch.bfloat16
    assert model.model.layers[1].mlp.gate.e_score_correction_bias.dtype == torch.float32


def test_it_trains_under_the_stock_trainer(tmp_path):
    ids = random_ids(1, 32)[0]
    arguments = transformers.TrainingArguments(
        tmp_path, max_steps=30, learning_rate=3e-3, logging_steps=1, per_device_train_batch_size=2,
        save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    model = DeepseekV3ForCausalLM(preset("tiny"))
    trainer = transformers.Trainer(model, arguments, train_dataset=[{"input_ids": ids, "labels": ids}] * 8)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] / 2
