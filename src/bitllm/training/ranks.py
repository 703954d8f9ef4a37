"""The processes that train together: how many, which one writes, and what they add up."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor


@contextmanager
def joined_ranks() -> Iterator[None]:
    """While inside, the processes that `torchrun` or SLURM started together know each other."""
    if n_ranks() == 1 or _together():
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
    """Where this process computes."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def n_ranks() -> int:
    """Number of processes that train together; 1 without `torchrun`."""
    return dist.get_world_size() if _together() else int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process among them, from 0."""
    return dist.get_rank() if _together() else int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """Whether this process is the one that writes."""
    return rank() == 0


def wait_for_all() -> None:
    """Return when every process came here."""
    if _together():
        dist.barrier()


def total(value: Tensor) -> Tensor:
    """The sum of ``value`` over all processes, without gradient."""
    added = value.detach().clone()
    if _together():
        dist.all_reduce(added)
    return added


def mean_over_ranks(values: dict[str, float]) -> dict[str, float]:
    """The mean of each number over all processes."""
    if not _together() or not values:
        return values
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    added = total(torch.tensor(list(values.values()), dtype=torch.float64, device=device)) / n_ranks()
    return dict(zip(values, added.tolist(), strict=True))


def any_rank(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    return mean_over_ranks({"flag": float(flag)})["flag"] > 0


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()
