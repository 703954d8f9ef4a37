"""Precision of the frozen LLM: bfloat16 where the processor multiplies it faster, float32 elsewhere."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any, Literal

import torch

Precision = Literal["fp32", "bf16", "auto"]
_SIDE = 1024


def base_dtype(precision: Precision) -> torch.dtype:
    """The type that the frozen LLM is kept in; ``auto`` measures on a processor and asks on a GPU."""
    if precision == "auto":
        precision = "bf16" if has_fast_bf16() else "fp32"
    return torch.bfloat16 if precision == "bf16" else torch.float32


def has_fast_bf16() -> bool:
    """Whether bfloat16 matrix products are clearly faster than float32 ones here.

    Measured, since a processor that lacks the instructions still computes them, slower than float32. Once in a
    process, so that all of its stages and judgings agree.
    """
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return _is_faster_in_bf16()


def name_of(dtype: torch.dtype) -> Precision:
    """The word for a type that a frozen LLM is kept in: what ``auto`` came to."""
    return "bf16" if dtype is torch.bfloat16 else "fp32"


@cache
def _is_faster_in_bf16() -> bool:
    """The best of several turns of each type, one after the other: other programs disturb both alike."""
    turns = [(_seconds(torch.bfloat16), _seconds(torch.float32)) for _ in range(8)]
    bf16, fp32 = (min(times) for times in zip(*turns, strict=True))
    return bf16 < 0.7 * fp32


def _seconds(dtype: torch.dtype) -> float:
    a = torch.ones(_SIDE, _SIDE, dtype=dtype)
    start = time.perf_counter()
    a @ a
    return time.perf_counter() - start


def computing(model: Any) -> AbstractContextManager[Any]:
    """The context to run a model in: mixed precision where its LLM is kept in bfloat16."""
    weight = model.lm_head.weight
    if weight.dtype is torch.bfloat16:
        return torch.autocast(weight.device.type, torch.bfloat16)
    return nullcontext()


@contextmanager
def float32_parameters() -> Iterator[None]:
    """Modules made in this context have float32 parameters, whatever precision the LLM around them is made in."""
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
    """On a GPU, float32 matrix products with a mantissa of 10 bits: several times faster, and enough for align."""
    before = torch.get_float32_matmul_precision()
    if has_tf32():
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
