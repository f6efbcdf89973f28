"""Every tab that shows a text, on models of six families and two dense ones."""

import json

import numpy as np
import plotly.graph_objects as go
import pytest
from small import dense, families
from transformers import AutoModelForCausalLM

from deepseek import load, trace
from deepseek.ui.tabs import attention, experts, model_info
from deepseek.ui.tabs import layers as layer_tab


@pytest.mark.parametrize("name", [*families(), *dense()])
def test_every_panel_draws_any_model_from_a_folder(name, tokenizer, tmp_path):
    """Saved by transformers, opened by `load`; a dense model has every panel but those of experts."""
    model = AutoModelForCausalLM.from_config({**families(), **dense()}[name])
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, tokenizer = load(tmp_path)
    seen = trace(model, tokenizer, "Once upon a time there was a fox.")
    layers, heads = model.config.num_hidden_layers, model.config.num_attention_heads
    for small in (attention.ALL_HEADS, attention.ALL_LAYERS):
        everything = dict(layers=(0, layers - 1), heads=(0, heads - 1))
        _, lines, large, maps, average, token = attention.draw(seen, model.config, layer=1, small=small, **everything)
        assert len(maps.data) == (heads if small == attention.ALL_HEADS else layers)
        expected = seen.attention(1)[0].numpy()
        assert np.abs(np.array(large.data[0].z) / 100 - expected).max() < 0.00501
        assert json.loads(lines.splitlines()[-1])["a"] == [round(100 * float(weight)) for weight in expected[token]]
        given = sum(seen.attention(layer).mean((0, 1)) for layer in range(layers)) / layers
        assert np.abs(np.array(average.data[0].y) - given.numpy()).max() <= 0.0001
    note, lens, kept, sizes, norms = layer_tab.draw(model, seen)
    assert np.array(lens.data[0].z).shape == (layers + 1, len(seen.ids))
    assert (norms is None) == ("no latent attention" in kept) == (not name.startswith("deepseek"))
    rows = dict(model_info.facts(model))
    assert type(model).__name__ in rows["architecture"] and "folder" in rows["origin"]
    assert (rows["experts"] == "none: the model is dense") == (name in dense())
    assert f"{seen.cache().bytes:,} bytes" in rows["KV cache per token"]
    drawn = experts.draw(seen)
    if name in dense():
        assert experts.DENSE in drawn and not any(isinstance(part, go.Figure) for part in drawn)
    else:
        assert sum(isinstance(part, go.Figure) for part in drawn) >= 3
