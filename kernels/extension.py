"""The C++ extension as tensors see it.

A function of `fastdm._native` fills the buffers that `call` hands it; every buffer is a contiguous CPU tensor, images
are [N, C, H, W] or, channels-last, [N, H, W, C].
"""

import importlib
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.dlpack import to_dlpack  # type: ignore[attr-defined]  # documented, but missing in its __all__

from .numerics import is_channels_last


@cache
def load() -> Any:
    """Return `fastdm._native`, or None where fastdm was installed without it."""
    try:
        return importlib.import_module("fastdm._native")
    except ModuleNotFoundError:
        return None


def call(name: str, *args: Any) -> None:
    """Call a function of the extension, which must be there, on at most as many threads as PyTorch uses.

    It gets tensors as DLPack's capsules: for one it would call `Tensor.__dlpack__`, whose Python takes five times as
    long, longer than a small batch.
    """
    core = load()
    core.use_threads(torch.get_num_threads())
    getattr(core, name)(*[to_dlpack(arg) if isinstance(arg, Tensor) else arg for arg in args])


def in_memory_order(x: Tensor) -> tuple[Tensor, bool]:
    """Return x as a contiguous tensor, [N, H, W, C] (and True) if it is channels-last."""
    if is_channels_last(x):
        return x.detach().permute(0, 2, 3, 1), True
    return x.detach().contiguous(), False


def as_nchw(x: Tensor, channels_last: bool) -> Tensor:
    return x.permute(0, 3, 1, 2) if channels_last else x


def contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def floats(parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else parameter.detach().to(torch.float32).contiguous()
