"""Several processes that train together: world size, sums over processes, and sharding with FSDP2.

FSDP2 is applied by `shard` and not through accelerate, which skips it on CPU: what is tested on two CPU processes is
the same code that runs on GPUs.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


@contextmanager
def process_group() -> Iterator[None]:
    """Connect the processes that `torchrun` or SLURM started, for the duration of the block."""
    if world_size() == 1 or _is_initialized():
        yield
        return
    from accelerate import PartialState

    has_cuda = torch.cuda.is_available()
    PartialState(cpu=not has_cuda, backend="nccl" if has_cuda else "gloo")
    try:
        yield
    finally:
        PartialState().destroy_process_group()


def device() -> torch.device:
    """The device of this process."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def world_size() -> int:
    """Number of processes that train together; 1 without `torchrun`."""
    return dist.get_world_size() if _is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if _is_initialized() else int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """Whether this process writes files and prints."""
    return rank() == 0


def barrier() -> None:
    """Wait until every process is here."""
    if _is_initialized():
        dist.barrier()


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum of ``value`` over all processes, without gradient."""
    added = value.detach().clone()
    if _is_initialized():
        dist.all_reduce(added)
    return added


def mean_over_ranks(values: dict[str, float]) -> dict[str, float]:
    """The mean of each number over all processes."""
    if not _is_initialized() or not values:
        return values
    row = torch.tensor(list(values.values()), dtype=torch.float64, device=device())
    return dict(zip(values, (sum_over_ranks(row) / world_size()).tolist(), strict=True))


def any_rank(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    return mean_over_ranks({"flag": float(flag)})["flag"] > 0


def shard(module: nn.Module) -> None:
    """Shard the parameters over all processes (FSDP2): one unit for each decoder layer, one for the rest."""
    from torch.distributed.device_mesh import init_device_mesh
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    mesh = init_device_mesh(device().type, (world_size(),))
    for layer in module.modules():
        if isinstance(layer, LlamaDecoderLayer):
            fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)


def is_sharded(module: nn.Module) -> bool:
    """Whether the parameters are sharded over processes."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


@contextmanager
def unsharded(module: nn.Module) -> Iterator[None]:
    """Gather the parameters outside the decoder layers, for calls that bypass ``forward`` of the root module."""
    if isinstance(module, FSDPModule):
        module.unshard()
    try:
        yield
    finally:
        if isinstance(module, FSDPModule):
            module.reshard()


def full_tensor(tensor: Tensor) -> Tensor:
    """A copy in main memory of a tensor that may be sharded; every process must call this."""
    value = tensor.detach()
    if isinstance(value, DTensor):
        value = value.full_tensor()
    return value.to("cpu", copy=True).contiguous()


def shard_like(value: Tensor, parameter: Tensor) -> Tensor:
    """``value`` sharded as ``parameter`` is; a scalar that belongs to the whole parameter stays as it is."""
    if isinstance(parameter, DTensor) and value.shape == parameter.shape:
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return value


def full_state(module: nn.Module, include: Callable[[str], bool] = lambda _: True) -> dict[str, Tensor]:
    """State dict of the names that ``include`` accepts, unsharded; every process must call this."""
    return {name: full_tensor(tensor) for name, tensor in module.state_dict().items() if include(name)}


def _is_initialized() -> bool:
    return dist.is_available() and dist.is_initialized()
