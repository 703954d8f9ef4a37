"""Precision of the frozen LLM: bfloat16 if its matrix products are faster here, else float32."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any, Literal

import torch

Precision = Literal["fp32", "bf16", "auto"]
_SIDE = 1024


def base_dtype(precision: Precision) -> torch.dtype:
    """Precision of the frozen LLM; ``auto`` measures it on a CPU and asks the driver on a GPU."""
    if precision == "auto":
        precision = "bf16" if has_fast_bf16() else "fp32"
    return torch.bfloat16 if precision == "bf16" else torch.float32


def has_fast_bf16() -> bool:
    """Whether bfloat16 matrix products are clearly faster than float32 ones here.

    Measured, because CPUs without bfloat16 instructions emulate them slowly. Once per process, so that all of its
    stages use the same precision.
    """
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return _is_faster_in_bf16()


def name_of(dtype: torch.dtype) -> Precision:
    """Name of a dtype, to record which one ``auto`` chose."""
    return "bf16" if dtype is torch.bfloat16 else "fp32"


@cache
def _is_faster_in_bf16() -> bool:
    """Compare the fastest of eight alternating runs, so that other programs slow down both types alike."""
    turns = [(_seconds(torch.bfloat16), _seconds(torch.float32)) for _ in range(8)]
    bf16, fp32 = (min(times) for times in zip(*turns, strict=True))
    return bf16 < 0.7 * fp32  # a small advantage is not worth less precision


def _seconds(dtype: torch.dtype) -> float:
    a = torch.ones(_SIDE, _SIDE, dtype=dtype)
    start = time.perf_counter()
    a @ a
    return time.perf_counter() - start


def computing(model: Any) -> AbstractContextManager[Any]:
    """Context in which to run a model: autocast if its LLM is in bfloat16."""
    weight = model.lm_head.weight
    if weight.dtype is torch.bfloat16:
        return torch.autocast(weight.device.type, torch.bfloat16)
    return nullcontext()


@contextmanager
def float32_parameters() -> Iterator[None]:
    """Modules created in this context have float32 parameters, whatever the precision of the LLM around them."""
    # from_pretrained(dtype=...) sets the default dtype while it builds the modules.
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(default)


def has_tf32() -> bool:
    """Whether `tf32` changes the precision of matrix products on this machine."""
    return torch.cuda.is_available()


@contextmanager
def tf32() -> Iterator[None]:
    """On a GPU, use TF32 for float32 matrix products (10-bit mantissa): several times faster, and precise enough for
    align.
    """
    before = torch.get_float32_matmul_precision()
    if has_tf32():
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
