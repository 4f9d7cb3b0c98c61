"""The augmentation through the C++ extension."""

from typing import Any

import torch
from torch import Tensor

from ..extension import as_nchw, call, contiguous, in_memory_order


def takes_dsa(images: Tensor, *others: Any) -> bool:
    dtype, _ = others[-2:]
    return images.dtype in (torch.uint8, torch.float32) and dtype in (torch.float32, torch.bfloat16)


def dsa(
    images: Tensor,
    table: Tensor,
    group: Tensor | None,
    index: Tensor | None,
    mean: Tensor | None,
    std: Tensor | None,
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    _, channels, height, width = images.shape
    n = len(images if index is None else index)
    shape = (n, height, width, channels) if channels_last else (n, channels, height, width)
    out = images.new_empty(shape, dtype=dtype)
    scale, shift = [1.0] * channels, [0.0] * channels
    if mean is not None and std is not None:
        scale = [1 / (255 * s) for s in std.tolist()]
        shift = [-m / s for m, s in zip(mean.tolist(), std.tolist(), strict=True)]
    images, table = images.detach().contiguous(), table.contiguous()
    call("dsa", images, table, contiguous(group), contiguous(index), scale, shift, channels_last, out)
    return as_nchw(out, channels_last)


def takes_dsa_backward(grad: Tensor, table: Tensor, group: Tensor | None, dtype: torch.dtype) -> bool:
    return grad.dtype in (torch.float32, torch.bfloat16) and dtype == torch.float32


def dsa_backward(grad: Tensor, table: Tensor, group: Tensor | None, dtype: torch.dtype) -> Tensor:
    out = grad.new_empty(grad.shape, dtype=dtype)
    grad, channels_last = in_memory_order(grad)
    call("dsa_backward", grad, table.contiguous(), contiguous(group), channels_last, out)
    return out
