"""Routers and experts of a decode step against every supported family's own modules."""

import numpy as np
import pytest
import torch
from families import EXPERTS, tiny_model

from deepseek.inference.decode_model import FAMILIES
from deepseek.inference.decode_moe import MoE, dense_glu
from deepseek.interpret.moe_layers import biased_experts, moe_layers, recorded_experts

NORMALIZED = {"norm_topk_prob": True}, {"norm_topk_prob": False}


def layer_of(model, index):
    return MoE(model.model.layers[index].mlp, moe_layers(model)[index], model.config, "model")


@pytest.mark.parametrize("changes", NORMALIZED, ids=["normalised", "not normalised"])
@pytest.mark.parametrize("name", FAMILIES)
@torch.inference_mode()
def test_output_experts_and_weights_are_the_modules_own_also_with_experts_off_and_forced(name, changes):
    model, x = tiny_model(name, **changes, routed_scaling_factor=1.7), torch.randn(20, 32)
    index, moe = 3, layer_of(model, 3)
    free = moe(x.numpy(), np.float32(0), 1)[1]
    counts = np.bincount(free.ravel(), minlength=EXPERTS)
    for off, force in (
        (None, None),
        (counts.argmax(), None),
        (None, counts.argmin()),
        (counts.argmax(), counts.argmin()),
    ):
        bias_E = torch.zeros(EXPERTS)
        for expert, bias in ((off, -torch.inf), (force, torch.inf)):
            if expert is not None:
                bias_E[expert] = bias
        with biased_experts(model, {index: bias_E}), recorded_experts(model) as ran:
            expected = model.model.layers[index].mlp(x[None])[0]
        y, indices, weights = moe(x.numpy(), bias_E.expand(20, -1).numpy(), 1)
        np.testing.assert_allclose(y, expected, atol=1e-5)
        own = ran[index]
        dense = [torch.zeros(20, EXPERTS).scatter(1, i, w) for i, w in (
            (own.indices, own.weights), (torch.from_numpy(indices), torch.from_numpy(weights)),
        )]  # fmt: skip
        torch.testing.assert_close(*dense, atol=1e-5, rtol=1e-5)
        assert off not in indices and (force is None or (indices == force).any(1).all())


@torch.inference_mode()
def test_a_dense_layer_is_one_glu():
    model, x = tiny_model("glm4_moe"), torch.randn(3, 32)
    mlp = model.model.layers[0].mlp
    np.testing.assert_allclose(dense_glu(mlp, "model")(x.numpy(), 1), mlp(x), atol=1e-5)


def test_experts_are_not_copied():
    model = tiny_model("olmoe").bfloat16()
    own, experts = layer_of(model, 1).experts, model.model.layers[1].mlp.experts
    assert own.gate_up.matrix.ctypes.data == experts.gate_up_proj.data_ptr()
    assert own.down.matrix.ctypes.data == experts.down_proj.data_ptr()
