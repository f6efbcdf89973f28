"""What a router read, against a hook on the router itself."""

import pytest
import torch
from families import tiny_model

from deepseek.interpret.moe_layers import moe_layers
from deepseek.interpret.router_inputs import recorded_router_inputs

IDS = [5, 9, 17, 20, 5, 33]


def test_the_scores_follow_from_the_states_that_were_read(model):
    with torch.inference_mode(), recorded_router_inputs(model) as inputs:
        logits = model(torch.tensor([IDS]), output_router_logits=True).router_logits
    assert list(inputs) == list(moe_layers(model))
    for (index, layer), expected in zip(moe_layers(model).items(), logits):
        assert inputs[index].shape == (len(IDS), model.config.hidden_size)
        torch.testing.assert_close(inputs[index].float() @ layer.router.weight.detach().float().T, expected)


@pytest.mark.parametrize("name", ["jetmoe", "llama4_text", "zaya", "deepseek_v4", "gemma4_text", "jamba", "gpt_oss"])
def test_any_router_is_recorded_and_only_within_the_context(name):
    model, given = tiny_model(name), {}
    with torch.inference_mode(), recorded_router_inputs(model) as inputs:
        for index, layer in moe_layers(model).items():
            layer.router.register_forward_pre_hook(
                lambda _, args, keywords, index=index: given.update({index: [*args, *keywords.values()]}),
                with_kwargs=True,
            )
        model(torch.tensor([IDS]), use_cache=False)
    assert list(inputs) == list(moe_layers(model)) == list(given)
    for index, state in inputs.items():
        assert state.shape[0] == len(IDS) and any(
            state.shape[1:] == x.shape[-1:] for x in given[index] if torch.is_tensor(x)
        )
    kept = {index: state.clone() for index, state in inputs.items()}
    with torch.inference_mode():
        model(torch.tensor([IDS[::-1]]), use_cache=False)
    assert all(torch.equal(inputs[index], kept[index]) for index in kept)
