"""The facts about a model."""

import re

from deepseek.ui.tabs import model_info


def test_model_facts_are_those_of_the_configuration(demo):
    rows = dict(model_info.facts(demo[0]))
    every = dict(demo[0].named_parameters())
    total = sum(p.numel() for p in every.values())
    routed = sum(p.numel() for name, p in every.items() if re.search(r"mlp\.experts", name))
    assert rows["parameters"] == f"{total / 1e6:.1f} M, {(total - routed * 6 / 8) / 1e6:.1f} M active per token"
    assert "demo" in rows["origin"] and "DeepseekV3ForCausalLM" in rows["architecture"]
    assert rows["experts"] == "8 routed in each of 5 layers, 2 of them and 1 shared active per token"
    layers, bytes_each = demo[0].config.num_hidden_layers, demo[0].dtype.itemsize
    assert rows["KV cache per token"].startswith(f"{160 * layers * bytes_each:,} bytes")
    assert f"{1152 * layers * bytes_each:,}" in rows["KV cache per token"]
