"""What the Triton launchers share: one place to allocate, one to start a kernel.

The tests put canaries round every output at `empty`; the compile check learns at `start` what would be compiled.
"""

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .numerics import memory_format

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether Triton interprets the kernels on CPU tensors: slow per operation, so programs are few and wide there."""


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device, channels_last: bool = False) -> Tensor:
    """Allocate an output of a kernel."""
    return torch.empty(shape, dtype=dtype, device=device, memory_format=memory_format(channels_last))


def start(kernel: Any, grid: tuple[int, ...], *, num_warps: int, **arguments: Any) -> None:
    """Start a kernel on the device of its tensors; an empty grid starts nothing."""
    if 0 in grid:
        return
    with torch.cuda.device_of(next(value for value in arguments.values() if isinstance(value, Tensor))):
        # Said explicitly, because the default differs between versions of Triton.
        kernel[grid](**arguments, num_warps=num_warps, enable_fp_fusion=True)


def contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def accumulator(dtype: torch.dtype) -> Any:
    """Return the Triton type that an input of `dtype` is computed in."""
    import triton.language as tl

    return tl.float64 if dtype == torch.float64 else tl.float32
