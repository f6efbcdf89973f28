"""Where decoder layers are found, and copies that share their tensors."""

import torch

from deepseek.interpret.model_parts import cached_copy, decoder_layers, is_hooked, layer_index


def test_the_layers_are_those_of_the_decoder(any_model):
    assert decoder_layers(any_model) is any_model.model.layers


def test_a_module_belongs_to_the_first_number_in_its_name():
    assert layer_index("layers.3.mlp.experts.0") == 3 and layer_index("h.11") == 11 and layer_index("norm") is None


def test_a_copy_is_made_once_and_shares_its_tensors(mixtral):
    def prepare(model):
        model.marked = True

    copied = cached_copy(mixtral, prepare)
    assert cached_copy(mixtral, prepare) is copied is not mixtral and not hasattr(mixtral, "marked")
    pairs = zip(mixtral.parameters(), copied.parameters(), strict=True)
    assert copied.marked and all(a.data_ptr() == b.data_ptr() for a, b in pairs)


def test_a_hook_is_recognised():
    linear = torch.nn.Linear(1, 1)
    linear.register_forward_hook(hook)
    assert is_hooked(linear._forward_hooks, hook) and not is_hooked(linear._forward_hooks, print)


def hook(_module, _inputs, _output):
    """Does nothing."""
