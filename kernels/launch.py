"""What the Triton launchers have in common: one place to allocate, one to start a kernel.

The tests put canaries round every output at ``empty``; the compile check learns at ``start`` what would be compiled.
"""

import os
from collections.abc import Sequence
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether Triton interprets the kernels on CPU tensors: slow per operation, so programs are few and wide there."""


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device, channels_last: bool = False) -> Tensor:
    """Allocate an output of a kernel."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device=device, memory_format=memory_format)


def start(kernel: Any, grid: tuple[int, ...], *args: Any, num_warps: int, **constants: Any) -> None:
    """Start a kernel on the device of its first argument; an empty grid starts nothing."""
    if 0 in grid:
        return
    with torch.cuda.device_of(args[0]):
        # Said explicitly, because the default differs between versions of Triton.
        kernel[grid](*args, **constants, num_warps=num_warps, enable_fp_fusion=True)


def accumulator(dtype: torch.dtype) -> Any:
    """Return the Triton type that an input of ``dtype`` is computed in."""
    return tl.float64 if dtype == torch.float64 else tl.float32
