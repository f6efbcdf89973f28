"""Every tab that shows a text, on models of six families, two dense ones and two hybrids."""

import json

import numpy as np
import plotly.graph_objects as go
import pytest
from families import tiny_model
from small import dense, families
from transformers import AutoModelForCausalLM, MambaConfig

from deepseek import load, trace
from deepseek.interpret.moe_layers import why_no_experts
from deepseek.ui.components.walk_picture import picture_value
from deepseek.ui.tabs import attention, experts, model_info
from deepseek.ui.tabs import layers as layer_tab

STATE_SPACE = dict(vocab_size=300, hidden_size=32, num_hidden_layers=2, state_size=8)


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
        _, lines, large, maps, average, token = attention.draw(seen, layer=1, small=small, **everything)
        assert len(maps.data) == (heads if small == attention.ALL_HEADS else layers)
        expected = seen.attention(1)[0].numpy()
        assert np.abs(np.array(large.data[0].z) / 100 - expected).max() < 0.00501
        assert json.loads(lines.splitlines()[-1])["a"] == [round(100 * float(weight)) for weight in expected[token]]
        given = sum(seen.attention(layer).mean((0, 1)) for layer in range(layers)) / layers
        assert np.abs(np.array(average.data[0].y) - given.numpy()).max() <= 0.0001
    assert len(json.loads(picture_value(seen, 4, None))["walk"]["layers"]) == layers
    note, figure, lens, kept, sizes, norms = layer_tab.draw(model, seen)
    assert np.array(figure.data[0].z).shape == (layers + 1, len(seen.ids))
    column = json.loads(layer_tab.lens_rows(lens, 2))
    assert [row[0] for row in column] == ["embedding", *(f"layer {layer}" for layer in range(layers))]
    assert column[-1][2] == f"{float(lens.probabilities[-1, 2]):.1%}"
    assert (norms is None) == ("no latent attention" in kept) == (not name.startswith("deepseek"))
    rows = dict(model_info.facts(model))
    assert type(model).__name__ in rows["architecture"] and "folder" in rows["origin"]
    assert ("dense" in rows["experts"]) == (name in dense())
    assert f"{seen.cache().bytes:,} bytes" in rows["KV cache per token"]
    drawn = experts.draw(seen)
    if name in dense():
        assert why_no_experts(model) in drawn and not any(isinstance(part, go.Figure) for part in drawn)
    else:
        assert sum(isinstance(part, go.Figure) for part in drawn) >= 3


def test_layers_without_attention_say_so(tokenizer):
    """Jamba attends in layers 1 and 3, Mamba nowhere."""
    seen = trace(tiny_model("jamba"), tokenizer, [5, 9, 17, 20])
    note, lines, large, maps, average, _ = attention.draw(seen, layer=0, small=attention.ALL_LAYERS, layers=(0, 2))
    assert "layer is 0, which does not compute attention; layers 1, 3 do." in note and large is None
    assert json.loads(lines.splitlines()[-1])["a"] == []
    assert [title.text for title in maps.layout.annotations] == ["layer 1", "layer 3"]
    assert np.allclose(average.data[0].y, seen.attention(1)[:1].mean((0, 1)), atol=1e-4)
    _, _, large, maps, average, _ = attention.draw(seen, layer=3, layers=(0, 0))
    assert large and len(maps.data) == 4 and average is None
    assert attention.sliders(seen.model)[0]["value"] == 1
    mamba = AutoModelForCausalLM.from_config(MambaConfig(**STATE_SPACE)).eval()
    note, _, *figures, _ = attention.draw(trace(mamba, tokenizer, [5, 9, 17]))
    assert "no layer of this model does" in note and figures == [None] * 3
    rows = dict(model_info.facts(mamba))
    assert rows["layers"] == "2, 32 wide, attention in 0 of them, 0 heads" and rows["KV cache per token"].startswith(
        "0 bytes"
    )
