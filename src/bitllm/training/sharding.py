"""FSDP2: parameters, gradients and optimiser states shared out over processes, one decoder layer at a time.

`transformers.Trainer` hands FSDP to accelerate, which leaves it out on CPU; sharding here works on both, so that what
is tested on two CPU processes is what runs on GPUs.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.models.llama.modeling_llama import LlamaDecoderLayer


def shard(module: nn.Module) -> None:
    """Share the parameters out over all processes: decoder layers each by itself, the rest together."""
    mesh = init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (dist.get_world_size(),))
    for layer in module.modules():
        if isinstance(layer, LlamaDecoderLayer):
            fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)


def is_sharded(module: nn.Module) -> bool:
    """Whether the parameters are shared out over processes."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """While inside, the parameters that do not belong to a decoder layer are whole, for calls past ``forward``."""
    if isinstance(module, FSDPModule):
        module.unshard()
    try:
        yield
    finally:
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be shared out over processes, as a copy of its own in main memory."""
    value = tensor.detach()
    if isinstance(value, DTensor):
        value = value.full_tensor()
    return value.to("cpu", copy=True).contiguous()


def shared_out_like(value: Tensor, parameter: Tensor) -> Tensor:
    """``value`` shared out as ``parameter`` is; a number that belongs to the whole parameter stays as it is."""
    if isinstance(parameter, DTensor) and value.shape == parameter.shape:
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return value


def whole_state(module: nn.Module, keep: Callable[[str], bool] = lambda _: True) -> dict[str, Tensor]:
    """The state of a module whose names ``keep`` accepts, whole; every process comes here."""
    return {name: whole(tensor) for name, tensor in module.state_dict().items() if keep(name)}
