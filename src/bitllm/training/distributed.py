"""Training in several processes: world size, sums over processes, and sharding with FSDP2.

FSDP2 is applied by `shard` instead of accelerate, which skips it on CPU. So tests with two CPU processes run the
same code as GPUs.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

_TIMEOUT = timedelta(hours=12)  # the others wait while the main process makes the store or the small models


@contextmanager
def process_group() -> Iterator[None]:
    """Connect the processes that `torchrun` or SLURM started, for the duration of the block.

    CPU tensors are exchanged with gloo: flags, and everything that processes wait for, possibly for hours. NCCL by
    default ends all processes after ten minutes of waiting for one.
    """
    if world_size() == 1 or _is_initialized():
        yield
        return
    from accelerate import PartialState

    has_cuda = torch.cuda.is_available()
    if has_cuda:
        torch.cuda.set_device(device())
    dist.init_process_group("cpu:gloo,cuda:nccl" if has_cuda else "gloo", timeout=_TIMEOUT)
    PartialState(cpu=not has_cuda, backend="nccl" if has_cuda else "gloo")  # accelerate then uses this group
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
    """Wait for all processes."""
    if _is_initialized():
        dist.all_reduce(
            torch.zeros(1)
        )  # a CPU tensor, hence gloo; `dist.barrier` would use NCCL and its timeout


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
    row = torch.tensor(list(values.values()), dtype=torch.float64)
    return dict(zip(values, (sum_over_ranks(row) / world_size()).tolist(), strict=True))


def any_rank(*flags: bool) -> list[bool]:
    """Whether each flag is set in any process."""
    named = {str(number): float(flag) for number, flag in enumerate(flags)}
    return [share > 0 for share in mean_over_ranks(named).values()]


def rows_of_all_ranks(
    n: int, compute: Callable[[range], Float[Tensor, "part ..."]]
) -> Float[Tensor, "n ..."]:
    """All n rows of a table; each process computes a part of them. Every process must call this."""
    if not _is_initialized():
        return compute(range(n))
    share = -(-n // world_size())
    own = compute(range(min(rank() * share, n), min((rank() + 1) * share, n)))
    # all_gather needs equal shapes; the last processes may have fewer rows.
    padded = own.new_zeros(share, *own.shape[1:])
    padded[: len(own)] = own
    gathered = [torch.empty_like(padded) for _ in range(world_size())]
    dist.all_gather(gathered, padded)
    return torch.cat(gathered)[:n]


def shard(module: nn.Module) -> None:
    """Shard the parameters over all processes (FSDP2): one unit for each decoder layer, one for the rest.

    A model in main memory is moved to the device unit by unit, so that a device never holds more than its shards and
    one unit.
    """
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


def full_tensor(tensor: Tensor) -> Tensor | None:
    """A copy on the CPU of a tensor that may be sharded, in the main process; None in the others.

    Every process must call this.
    """
    value = tensor.detach()
    if isinstance(value, DTensor):
        value = value.full_tensor()
    return value.to("cpu", copy=True).contiguous() if is_main() else None


def full_tensors(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """`full_tensor` of each; empty except in the main process. Every process must call this."""
    gathered = ((name, full_tensor(tensor)) for name, tensor in tensors)
    return {name: value for name, value in gathered if value is not None}


def shard_like(value: Tensor, parameter: Tensor) -> Tensor:
    """``value`` sharded as ``parameter`` is; a scalar of the optimizer (its step count) is not sharded."""
    if isinstance(parameter, DTensor) and value.shape == parameter.shape:
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return value


def full_state(module: nn.Module, include: Callable[[str], bool] = lambda _: True) -> dict[str, Tensor]:
    """State dict of the names that ``include`` accepts, unsharded, like `full_tensors`."""
    return full_tensors((name, tensor) for name, tensor in module.state_dict().items() if include(name))


def _is_initialized() -> bool:
    return dist.is_available() and dist.is_initialized()
