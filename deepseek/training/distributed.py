"""One run on several processes, started by torchrun; with a single process nothing here has an effect.

- each process computes its rows of every batch, and all take the same step: every process has the whole model and
  gradients are averaged (DDP), or each has a shard of every tensor (FSDP2)
- over gloo on CPUs; over NCCL on GPUs, one per process
- every process must see the run's folder and the training data; each reads the data itself
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

COLLECTIVE_TIMEOUT = timedelta(hours=2)  # the other processes wait while the main one validates, samples and saves


class ProcessGroup:
    """The processes of a run: this one's `rank` and `device`, and `size`, how many there are."""

    def __init__(self, rank: int, size: int, device: torch.device):
        self.rank, self.size, self.device = rank, size, device
        self.is_main = rank == 0  # the process that writes

    def wrap(self, model, shard: bool):
        """A module to call in place of `model`, whose gradients are means over all processes; `model` stays usable."""
        if not dist.is_initialized():
            return model
        if not shard:
            # The router bias, the only buffer that changes, is the same on every process; every weight has a gradient,
            # since the experts, also those without a token, are slices of one weight.
            return DistributedDataParallel(model, broadcast_buffers=False)
        mesh = init_device_mesh(self.device.type, (self.size,))
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        return fully_shard(model, mesh=mesh)

    def full_model(self, model):
        """The model with all its weights; of a sharded one a copy on the main process, None on the others.

        Every process must call this.
        """
        if not isinstance(model, FSDPModule):
            return model
        weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        if not self.is_main:
            return None
        with no_init_weights():
            full = DeepseekV3ForCausalLM(model.config)
        full.load_state_dict(weights)
        full.tie_weights()
        return full.to(self.device)

    def mean(self, tensor: torch.Tensor) -> torch.Tensor:
        """The mean over all processes; its gradient passes to this process's tensor unscaled (dmean/dtensor = 1).

        `wrap` then averages the gradients, which makes them those of a loss of the mean.
        """
        if self.size == 1:
            return tensor
        return tensor + (self.sum(tensor.detach().clone()) / self.size - tensor.detach())

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor, summed in place over all processes."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true on any process. A barrier: returns once all processes have called it."""
        return self.sum(torch.tensor(int(flag), device=self.device)).item() > 0


@contextlib.contextmanager
def process_group() -> Iterator[ProcessGroup]:
    """The group in which torchrun has started this process, or a group of one.

    Only the outermost `with` joins and leaves: a process that joins again reads the old addresses of its peers.
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
    """A tensor gathered from its shards. Every process must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """Undoes `full_tensor`: this process's shard of a tensor, split as `parameter` is."""
    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    mesh = parameter.device_mesh
    return distribute_tensor(tensor.to(mesh.device_type), mesh, parameter.placements, src_data_rank=None)
