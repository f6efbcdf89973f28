"""Which layers have attention; test_trace.py and test_families.py compare the maps."""

from families import tiny_model

from deepseek.interpret.attention import attention_layers, attention_maps, num_heads


def test_every_layer_of_a_transformer_has_attention(any_model):
    layers = len(any_model.model.layers)
    assert attention_layers(any_model) == list(range(layers)) and num_heads(any_model) in (4, 9)


def test_in_a_hybrid_only_some_layers_do():
    model = tiny_model("nemotron_h")  # Mamba, experts, attention, experts
    assert attention_layers(model) == [2]
    assert {layer: tuple(weights.shape) for layer, weights in attention_maps(model, [5, 9, 7], 1, 3).items()} == {
        2: (4, 2, 3)
    }
