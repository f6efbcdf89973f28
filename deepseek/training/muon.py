"""Muon for the hidden matrices of a model, AdamW for everything else.

Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) moves a matrix by its momentum with all singular values set near 1.
Scaled to the size of AdamW's updates (Liu et al. 2025, arXiv 2502.16982), it takes AdamW's learning rate and weight decay.
"""

import torch

from deepseek.model.cpu_features import fast_in_bf16
from deepseek.model.moe import DeepseekV3TopkRouter
from deepseek.training import distributed

MOMENTUM = 0.95
COEFFICIENTS = 3.4445, -4.7750, 2.0315  # of Jordan's Newton-Schulz iteration
ITERATIONS = 5
ADAMW_RMS = 0.2  # root mean square of AdamW's updates, by Liu et al.


class MuonAdamW(torch.optim.AdamW):
    """AdamW whose parameter groups with `matrices` above 0 take Muon steps instead.

    `matrices` is the number of equal matrices that lie below each other in a parameter's last two dimensions: 1, or 2 for the
    gate and up projections of all experts in one tensor. Dimensions before these count further matrices (the experts).
    """

    @torch.no_grad()
    def step(self, closure=None):
        found_inf = getattr(self, "found_inf", None)  # set by the scaler, which leaves the skipping of a step to AdamW
        if found_inf is None or not found_inf.item():
            for group in self.param_groups:
                if group["matrices"]:
                    for parameter in group["params"]:
                        self.muon_step(parameter, group)
        return super().step(closure)

    def muon_step(self, parameter: torch.Tensor, group: dict) -> None:
        """Moves one parameter by Muon with Nesterov momentum, and takes its gradient from AdamW."""
        if parameter.grad is None:
            return
        state = self.state[parameter]
        if not state:  # AdamW expects a step count wherever there is a state
            state.update(step=torch.zeros(()), momentum_buffer=torch.zeros_like(parameter))
        momentum = state["momentum_buffer"].lerp_(parameter.grad, 1 - MOMENTUM)
        update = distributed.full_tensor(parameter.grad.lerp(momentum, MOMENTUM))
        rows, columns = update.shape[-2] // group["matrices"], update.shape[-1]
        update = orthogonalize(update.reshape(-1, rows, columns)).reshape(update.shape)
        update = distributed.shard_like(update.to(parameter.dtype), parameter)
        lr = group["lr"]
        parameter.mul_(1 - lr * group["weight_decay"])
        parameter.add_(update, alpha=-lr * ADAMW_RMS * max(rows, columns) ** 0.5)
        parameter.grad = None


def orthogonalize(matrices_MRC: torch.Tensor) -> torch.Tensor:
    """Each matrix U S V^T of a batch as U S' V^T with all of S' near 1, between about 0.7 and 1.2; zeros stay zeros.

    In bf16 where that is the faster, which is precise enough for the direction of a step.
    """
    x_MRC = matrices_MRC.bfloat16() if fast_in_bf16(matrices_MRC.device) else matrices_MRC.float()
    tall = x_MRC.shape[-2] > x_MRC.shape[-1]
    if tall:
        x_MRC = x_MRC.mT
    x_MRC = x_MRC / x_MRC.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram_MRR = x_MRC @ x_MRC.mT
        x_MRC = torch.baddbmm(x_MRC, torch.baddbmm(gram_MRR, gram_MRR, gram_MRR, beta=b, alpha=c), x_MRC, beta=a)
    return x_MRC.mT if tall else x_MRC


def parameter_groups(model, weight_decay: float, muon: bool) -> list[dict]:
    """Groups of parameters: vectors (norms, biases) without decay, matrices with it, and with `muon` those of the layers apart.

    The embedding, the output matrix and the routers stay with AdamW, as do models' other parameters.
    """
    routers = {id(module.weight) for module in model.modules() if isinstance(module, DeepseekV3TopkRouter)}
    vectors, matrices, hidden, gates_and_ups = [], [], [], []
    layers = {id(parameter) for parameter in model.model.layers.parameters()} - routers
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.dim() < 2:
            vectors.append(parameter)
        elif not muon or id(parameter) not in layers:
            matrices.append(parameter)
        else:
            (gates_and_ups if name.endswith("gate_up_proj") else hidden).append(parameter)
    groups = [
        (matrices, weight_decay, 0),
        (vectors, 0.0, 0),
        (hidden, weight_decay, 1),
        (gates_and_ups, weight_decay, 2),
    ]
    return [dict(params=params, weight_decay=decay, matrices=count) for params, decay, count in groups if params]
