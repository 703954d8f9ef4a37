"""A pretend GPU: tensors that say `cuda:0`, refuse to be mixed with CPU tensors, and count what a GPU would wait for.

    with pretend_cuda() as counts:
        module.to("cuda:0")
        ...
    counts.syncs, counts.kernels, counts.mixed

The values live in main memory, so results are those of the CPU. It stands for a device where there is none: it finds
operations that mix devices, and host-device synchronizations, in seconds. It executes no CUDA kernel, no CUDA autocast,
no NCCL and no compiled code.
"""

import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

from bitllm.data import batch
from bitllm.model import encoder
from bitllm.training import distributed

CUDA = torch.device("cuda", 0)
_NO_KERNEL = frozenset(
    """view t transpose expand slice select unsqueeze squeeze detach alias permute _unsafe_view unbind split as_strided
    _reshape_alias split_with_sizes lift_fresh unfold is_same_size diagonal view_as empty empty_like new_empty
    empty_strided""".split()  # noqa: SIM905 - a list of words
)
_WAITS = frozenset(
    """_local_scalar_dense nonzero _unique2 unique_dim unique_consecutive equal masked_select is_nonzero
    bincount""".split()  # noqa: SIM905
)
_INDEXED = frozenset(["index", "index_put", "index_put_", "_index_put_impl_"])


@dataclass
class Counts:
    """What was counted since the last `reset`, by the line of bitllm (or of a library) that caused it."""

    waits: Counter = field(default_factory=Counter)
    """The host waits for the device: `.item()`, `nonzero`, boolean indexing, copies to main memory."""
    uploads: Counter = field(default_factory=Counter)
    uploaded_bytes: int = 0
    mixtures: Counter = field(default_factory=Counter)
    """Operations on tensors of both devices, which CUDA refuses."""
    launches: Counter = field(default_factory=Counter)
    """Kernels, by the name of the operation; those of optimizer and clipping are not counted."""
    is_optimizer: bool = False

    @property
    def syncs(self) -> int:
        return sum(self.waits.values())

    @property
    def kernels(self) -> int:
        return sum(self.launches.values())

    def reset(self) -> None:
        for counter in (self.waits, self.uploads, self.mixtures, self.launches):
            counter.clear()
        self.uploaded_bytes = 0

    def describe(self) -> str:
        lines = [f"{self.syncs} syncs, {sum(self.uploads.values())} uploads, {self.kernels} kernels"]
        for name in ("mixtures", "waits", "uploads"):
            lines += [f"  {name[:-1]} {n:4d} {where}" for where, n in getattr(self, name).most_common()]
        return "\n".join(lines)


_COUNTS = Counts()


def _where() -> str:
    found = ""
    for frame in reversed(traceback.extract_stack()):
        if "/bitllm/" in frame.filename:
            return f"{frame.filename.rsplit('/bitllm/', 1)[1]}:{frame.lineno} {found}"
        if not found and "site-packages" in frame.filename and "/torch/" not in frame.filename:
            found = f"({frame.filename.rsplit('site-packages/', 1)[1]}:{frame.lineno})"
    return found


class CudaTensor(Tensor):
    """A tensor whose values are in main memory and which says that it is on `cuda:0`."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> "CudaTensor":
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=values.device,
        )
        made.values = values
        return made

    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"CudaTensor({tuple(self.shape)}, {self.dtype})"

    def __deepcopy__(self, memo: dict) -> "CudaTensor":
        copied = CudaTensor(self.values.clone()).requires_grad_(self.requires_grad)
        if getattr(self, "_is_param", False):
            copied._is_param = True  # type: ignore[attr-defined]
        return copied  # type: ignore[return-value]

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function._schema.name.split("::")[1]
        _count(name, function._overloadname, args, kwargs)

        def inner(value: Any) -> Any:
            return value.values if isinstance(value, CudaTensor) else value

        def outer(value: Any) -> Any:
            return CudaTensor(value) if isinstance(value, Tensor) and not isinstance(value, cls) else value

        done = function(*tree_map(inner, args), **tree_map(inner, kwargs))
        return return_and_correct_aliasing(function, args, kwargs, tree_map(outer, done))


def _count(name: str, overload: str, args: Any, kwargs: Any) -> None:
    if name not in _NO_KERNEL and not _COUNTS.is_optimizer:
        _COUNTS.launches[name] += 1
    given = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, Tensor)]
    plain = [one for one in given if not isinstance(one, CudaTensor) and one.ndim > 0]
    indices = args[1] if name in _INDEXED else ()
    if name == "copy_" and plain:
        to_host = not isinstance(args[0], CudaTensor)
        (_COUNTS.waits if to_host else _COUNTS.uploads)[f"copy_ {_where()}"] += 1
    elif plain and name != "_to_copy":
        is_upload = name in _INDEXED and all(any(one is index for index in indices) for one in plain)
        (_COUNTS.uploads if is_upload else _COUNTS.mixtures)[f"{name} {_where()}"] += 1
    by_mask = any(isinstance(one, Tensor) and one.dtype in (torch.bool, torch.uint8) for one in indices)
    if name in _WAITS or by_mask or (name == "repeat_interleave" and overload == "Tensor"):
        _COUNTS.waits[f"{name} {_where()}"] += 1


class _Upload(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, tensor: Tensor) -> Tensor:
        return CudaTensor(tensor.detach().clone())

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient.values if isinstance(gradient, CudaTensor) else gradient


class _Download(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, tensor: CudaTensor) -> Tensor:
        return tensor.values.detach().clone()

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient if isinstance(gradient, CudaTensor) else CudaTensor(gradient)


def _moved(tensor: Tensor, device: Any) -> Tensor:
    to_cuda, is_cuda = torch.device(device).type == "cuda", isinstance(tensor, CudaTensor)
    if _COUNTS.is_optimizer:  # clipping asks torch's own code for the device, which sees main memory
        return tensor
    if to_cuda and not is_cuda:
        _COUNTS.uploads[_where()] += 1
        _COUNTS.uploaded_bytes += tensor.numel() * tensor.element_size()
        return _Upload.apply(tensor) if tensor.requires_grad else CudaTensor(tensor.detach().clone())
    if is_cuda and not to_cuda:
        _COUNTS.waits[f"to main memory {_where()}"] += 1
        return _Download.apply(tensor) if tensor.requires_grad else tensor.values.detach().clone()
    return tensor


class _Placement(TorchFunctionMode):
    """Where tensors are made and moved: `to`, `cpu`, `cuda`, and every `device=`."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        handler = self._handlers.get(function)
        if handler is not None:
            return handler(function, args, kwargs)
        device = kwargs.get("device")
        if device is None or torch.device(device).type == "meta":
            return function(*args, **kwargs)
        return self._made(function, args, kwargs | {"device": torch.device("cpu")}, torch.device(device))

    def __init__(self) -> None:
        super().__init__()
        self._handlers: dict[Any, Any] = {
            Tensor.to: self._to,
            Tensor.cpu: lambda _, args, __: _moved(args[0], "cpu"),
            Tensor.cuda: lambda _, args, __: _moved(args[0], CUDA),
            Tensor.pin_memory: lambda _, args, __: args[0],
            Tensor.tolist: self._tolist,
            Tensor.numpy: self._numpy,
            Tensor.__array__: self._numpy,
            Tensor.storage: self._storage,
            Tensor.untyped_storage: self._storage,
        }

    def _tolist(self, function: Any, args: Any, kwargs: Any) -> Any:
        if not isinstance(args[0], CudaTensor):
            return function(*args, **kwargs)
        _COUNTS.waits[f"tolist {_where()}"] += 1
        return args[0].values.tolist()

    def _numpy(self, function: Any, args: Any, kwargs: Any) -> Any:
        if isinstance(args[0], CudaTensor):
            raise TypeError(f"cannot convert a tensor of cuda:0 to numpy ({_where()})")
        return function(*args, **kwargs)

    def _storage(self, function: Any, args: Any, kwargs: Any) -> Any:
        values = args[0].values if isinstance(args[0], CudaTensor) else args[0]
        return function(values, *args[1:], **kwargs)

    def _to(self, function: Any, args: Any, kwargs: Any) -> Any:
        tensor, *rest = args
        device = kwargs.pop("device", None)
        kwargs.pop("non_blocking", None)
        others = []
        for one in rest:
            if isinstance(one, Tensor):
                device, one = one.device, one.dtype  # noqa: PLW2901 - as `to(other)` reads it
            if isinstance(one, torch.device | str | int) and not isinstance(one, bool):
                device = one
            else:
                others.append(one)
        if device is not None and torch.device(device).type == "meta":
            return function(tensor, *others, device=device, **kwargs)
        tensor = tensor if device is None else _moved(tensor, device)
        others = [one for one in others if one is not None and not isinstance(one, bool)]
        kwargs = {name: value for name, value in kwargs.items() if value is not None}
        return function(tensor, *others, **kwargs) if others or kwargs.get("dtype") else tensor

    def _made(self, function: Any, args: Any, kwargs: Any, device: torch.device) -> Any:
        if any(isinstance(one, CudaTensor) for one in tree_flatten((args, kwargs))[0]):
            kwargs.pop("device")
        made = function(*args, **kwargs)
        if isinstance(made, Tensor) and device.type == "cuda" and not isinstance(made, CudaTensor):
            if function in (torch.tensor, torch.as_tensor):
                return _moved(made, device)
            _COUNTS.launches[function.__name__] += 1
            return CudaTensor(made.detach())
        return made


_PLAIN_TO = nn.Module.to
_PLAIN_CLIP = torch.nn.utils.clip_grad_norm_


def _module_to(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    device = kwargs.get("device") or next((one for one in args if isinstance(one, str | torch.device)), None)
    if device is None or torch.device(device).type == "meta":
        return _PLAIN_TO(module, *args, **kwargs)
    moved: dict[int, nn.Parameter] = {}  # parameters that modules share stay shared
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and parameter.device.type != torch.device(device).type:
                if id(parameter) not in moved:
                    values = _moved(parameter.data, device)
                    moved[id(parameter)] = nn.Parameter(values, requires_grad=parameter.requires_grad)
                part._parameters[name] = moved[id(parameter)]
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = _moved(buffer, device)
    return module


class _AnyGenerator(torch.Generator):
    """A generator of any device."""

    def __new__(cls, device: Any = "cpu") -> "_AnyGenerator":
        return super().__new__(cls, "cpu")


def _clip(*args: Any, **kwargs: Any) -> Tensor:
    _COUNTS.is_optimizer = True
    try:
        return _PLAIN_CLIP(*args, **kwargs)
    finally:
        _COUNTS.is_optimizer = False


@contextmanager
def pretend_gpu() -> Iterator[Counts]:
    """`pretend_cuda`, which all of bitllm takes for the device of this process."""
    named = [
        module
        for name, module in list(sys.modules.items())
        if name.startswith("bitllm") and getattr(module, "device", None) is distributed.device
    ]
    plain = distributed.device, batch.free_bytes, encoder._ONE_AT_A_TIME
    batch.free_bytes = lambda _: 10**9
    encoder._ONE_AT_A_TIME = ()  # the tensors are on the CPU
    for module in named:
        module.device = lambda: CUDA  # type: ignore[attr-defined]
    try:
        with pretend_cuda() as counts:
            yield counts
    finally:
        batch.free_bytes, encoder._ONE_AT_A_TIME = plain[1:]
        for module in named:
            module.device = plain[0]  # type: ignore[attr-defined]


@contextmanager
def pretend_cuda() -> Iterator[Counts]:
    """Within the block there is a device `cuda:0`; yields what is counted."""

    def mark(value: bool) -> Any:
        return lambda *_: setattr(_COUNTS, "is_optimizer", value)

    hooks = [register_optimizer_step_pre_hook(mark(True)), register_optimizer_step_post_hook(mark(False))]
    plain = torch.Generator
    nn.Module.to, torch.Generator = _module_to, _AnyGenerator  # type: ignore[method-assign, misc]
    torch.nn.utils.clip_grad_norm_ = _clip  # type: ignore[assignment]
    _COUNTS.reset()
    try:
        with _Placement():
            yield _COUNTS
    finally:
        nn.Module.to, torch.Generator = _PLAIN_TO, plain  # type: ignore[method-assign, misc]
        torch.nn.utils.clip_grad_norm_ = _PLAIN_CLIP
        for hook in hooks:
            hook.remove()
