"""One run on several processes, started by torchrun; with a single process nothing here has an effect.

- each process computes its rows of every batch, and all take the same step: every process has the whole model and
  gradients are averaged (DDP), or each has a part of every tensor (FSDP2)
- over gloo on processors, over NCCL on GPUs, one a process
- the folder of the run and the text must be where every process sees them; each reads the text for itself
"""

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from transformers.initialization import no_init_weights

from deepseek.model.deepseek_v3 import DeepseekV3ForCausalLM

COLLECTIVE_TIMEOUT = timedelta(
    hours=2
)  # how long the others wait while the first process validates, samples and commits


class ProcessGroup:
    """The processes of a run: `rank` is the number of this one, `size` how many there are, `device` its own."""

    def __init__(self, rank: int, size: int, device: torch.device):
        self.rank, self.size, self.device = rank, size, device
        self.first = rank == 0  # the one that writes

    def rows(self, batch_BS: torch.Tensor) -> torch.Tensor:
        """This process's rows of a batch whose B the number of processes divides."""
        return batch_BS.chunk(self.size)[self.rank]

    def wrap(self, model, shard: bool):
        """What to call in place of `model`, so that gradients are means over all processes; `model` stays in use."""
        if not dist.is_initialized():
            return model
        if not shard:
            # The router bias, the only buffer that changes, is computed alike by all; every weight has a gradient,
            # those of experts without a token too, since experts are slices of one weight.
            return DistributedDataParallel(model, broadcast_buffers=False)
        mesh = init_device_mesh(self.device.type, (self.size,))
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        return fully_shard(model, mesh=mesh)

    def whole(self, model):
        """The model with all its weights, on every process, or for a sharded one None except on the first.

        Every process must call this.
        """
        if not isinstance(model, FSDPModule):
            return model
        weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        if not self.first:
            return None
        with no_init_weights():
            plain = DeepseekV3ForCausalLM(model.config)
        plain.load_state_dict(weights)
        plain.tie_weights()
        return plain.to(self.device)

    def mean(self, tensor: torch.Tensor) -> torch.Tensor:
        """The mean over all processes, of which only this process's own tensor gets a gradient: dmean/dtensor = 1.

        Since `wrap` averages the gradients of all, they are then those of a loss of the mean.
        """
        if self.size == 1:
            return tensor
        return tensor + (self.sum(tensor.detach().clone()) / self.size - tensor.detach())

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor, which now holds the sum over all processes."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether `flag` holds on any process. None goes on before all have asked."""
        return self.sum(torch.tensor(int(flag), device=self.device)).item() > 0


@contextlib.contextmanager
def process_group() -> Iterator[ProcessGroup]:
    """The group that torchrun has started this process in, or a group of one.

    It is left with the outermost `with`: a group that was left cannot be joined again without mistaking the old
    addresses of the others for new ones.
    """
    cuda = torch.cuda.is_available()
    if not dist.is_torchelastic_launched():
        yield ProcessGroup(0, 1, torch.device("cuda" if cuda else "cpu"))
        return
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    outermost = not dist.is_initialized()
    if outermost:
        if cuda:
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if cuda else "gloo", timeout=COLLECTIVE_TIMEOUT)
    try:
        yield ProcessGroup(dist.get_rank(), dist.get_world_size(), device)
    finally:
        if outermost:
            dist.destroy_process_group()


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor with all its parts; every process must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """Undoes `gathered`: this process's part of a whole tensor, cut as `parameter` is."""
    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    mesh = parameter.device_mesh
    return distribute_tensor(tensor.to(mesh.device_type), mesh, parameter.placements, src_data_rank=None)
