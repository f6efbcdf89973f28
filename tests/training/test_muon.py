"""Muon against torch's own on every matrix, AdamW on the rest; a run with it learns, stops and resumes."""

from dataclasses import replace

import pytest
import torch
from torch import distributed as dist
from torch.distributed.fsdp import fully_shard

from deepseek.model.config import preset
from deepseek.model.deepseek_v3 import DeepseekV3ForCausalLM
from deepseek.training import muon
from deepseek.training.muon import MuonAdamW, orthogonalize, parameter_groups
from deepseek.training.trainer import train

LR, DECAY = 0.02, 0.1


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return DeepseekV3ForCausalLM(preset("tiny"))


@pytest.fixture
def exact(monkeypatch):
    """Muon computes in fp32, and torch's does in place of its bf16."""
    monkeypatch.setattr(muon, "fast_in_bf16", lambda device: False)
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)


def torch_muon(matrix):
    return torch.optim.Muon([matrix], LR, DECAY, adjust_lr_fn="match_rms_adamw")


@pytest.mark.parametrize("shape", [(1, 16, 48), (3, 48, 16), (8, 24, 24)])
def test_orthogonalize_keeps_the_singular_vectors_and_evens_the_values(shape):
    torch.manual_seed(1)
    matrices = torch.randn(shape)
    values = torch.linalg.svdvals(orthogonalize(matrices).float())
    assert values.min() > 0.6 and values.max() < 1.3
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    for result, polar in zip(orthogonalize(matrices), u @ vh):
        assert torch.cosine_similarity(result.float().flatten(), polar.flatten(), 0) > 0.96


def test_a_matrix_of_zeros_stays_so():
    """The gradient of an expert that no token chose."""
    assert orthogonalize(torch.zeros(2, 4, 6)).eq(0).all()


@pytest.mark.parametrize("matrices", [1, 2])
def test_every_matrix_of_a_stack_moves_as_torch_moves_it_alone(exact, matrices):
    torch.manual_seed(2)
    stack = torch.nn.Parameter(torch.randn(3, 8 * matrices, 12))
    alone = [torch.nn.Parameter(part.clone()) for part in stack.detach().view(-1, 8, 12)]
    ours = MuonAdamW([dict(params=[stack], matrices=matrices, weight_decay=DECAY)], lr=LR, fused=True)
    theirs = [torch_muon(part) for part in alone]
    for _ in range(4):
        stack.grad = torch.randn_like(stack)
        for part, grad in zip(alone, stack.grad.clone().view(-1, 8, 12)):
            part.grad = grad
        for optimizer in [ours, *theirs]:
            optimizer.step()
    torch.testing.assert_close(stack.view(-1, 8, 12), torch.stack(alone), atol=1e-5, rtol=1e-5)


def test_other_parameters_move_as_adamw_moves_them():
    torch.manual_seed(3)
    ours, theirs = (torch.nn.Parameter(torch.ones(5, 4)) for _ in range(2))
    optimizers = [MuonAdamW([dict(params=[ours], matrices=0)], lr=LR, weight_decay=DECAY, fused=True)]
    optimizers += [torch.optim.AdamW([theirs], lr=LR, weight_decay=DECAY, fused=True)]
    for _ in range(3):
        ours.grad = torch.randn(5, 4)
        theirs.grad = ours.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(ours, theirs)


def test_a_step_that_overflowed_moves_nothing():
    """As GradScaler tells it to an optimizer that skips by itself."""
    matrix = torch.nn.Parameter(torch.ones(4, 4))
    optimizer = MuonAdamW([dict(params=[matrix], matrices=1)], lr=LR, fused=True)
    optimizer.grad_scale, optimizer.found_inf = None, torch.ones(())
    matrix.grad = torch.ones(4, 4)
    optimizer.step()
    assert torch.equal(matrix, torch.ones(4, 4))


def test_a_sharded_matrix_moves_as_a_whole_one(exact):
    torch.manual_seed(4)
    whole, sharded = (torch.nn.Linear(6, 4, bias=False) for _ in range(2))
    sharded.load_state_dict(whole.state_dict())
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        fully_shard(sharded, mesh=dist.init_device_mesh("cpu", (1,)))
        batch = torch.randn(5, 6)
        for layer in (whole, sharded):
            layer(batch).square().sum().backward()
            MuonAdamW([dict(params=list(layer.parameters()), matrices=1)], lr=LR, fused=True).step()
        torch.testing.assert_close(sharded.weight.full_tensor(), whole.weight)
    finally:
        dist.destroy_process_group()


def test_matrices_decay_and_vectors_do_not(model):
    decay, no_decay = parameter_groups(model, 0.1, muon=False)
    assert (decay["weight_decay"], no_decay["weight_decay"]) == (0.1, 0.0)
    assert len(decay["params"]) + len(no_decay["params"]) == len(list(model.parameters()))
    assert {p.dim() for p in no_decay["params"]} == {1} and min(p.dim() for p in decay["params"]) == 2


def test_muon_takes_the_matrices_of_the_layers_but_not_the_routers(model):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = {
        group["matrices"]: group["params"] for group in parameter_groups(model, 0.1, muon=True) if group["params"]
    }
    by_adamw = parameter_groups(model, 0.1, muon=True)[0]["params"]
    assert {names[id(p)].split(".", 3)[-1] for p in by_adamw} == {"weight", "mlp.gate.weight"}
    assert {names[id(p)].rsplit(".", 1)[-1] for p in groups[2]} == {"gate_up_proj"}
    hidden = {names[id(p)].rsplit(".", 2)[-2] for p in groups[1]}
    assert hidden >= {"experts", "q_a_proj", "q_b_proj", "kv_b_proj", "o_proj", "down_proj"} and "gate" not in hidden
    assert sum(len(group["params"]) for group in parameter_groups(model, 0.1, muon=True)) == len(names)


def test_a_run_learns_and_resumes_as_if_never_stopped(config):
    options = dict(optimizer="muon", schedule="constant")
    whole, halves = config(name="whole", **options), config(name="halves", **options)
    expected = [step.loss for step in train(whole)]
    first = list(train(replace(halves, max_steps=10)))
    rest = list(train(halves, resume=True))
    assert [step.loss for step in first + rest] == expected and sum(expected[-3:]) / 3 < expected[0] - 0.5
