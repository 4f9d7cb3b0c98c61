"""What several forms of an op must agree on: the working dtype, memory formats, shapes and constants."""

import torch
from torch import Tensor

LEAKY_SLOPE = 0.01
"""Slope of the activation "leakyrelu" below zero."""
DRAW_STREAM = 1
"""The stream of `uniform` that `draw` reads."""


def working_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """Return the type that inputs of these types are computed in."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def is_channels_last(x: Tensor) -> bool:
    """Whether a 4-d tensor is channels-last; not where it is contiguous too, or neither."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def memory_format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def memory_format_of(x: Tensor) -> torch.memory_format:
    """Return the format of a 4-d tensor, contiguous unless `is_channels_last`."""
    return memory_format(is_channels_last(x))


def pooled_shape(shape: torch.Size, pool: str) -> tuple[int, int, int, int]:
    """Return the shape of images [N, C, H, W] after 2×2 pooling, which drops an odd last row and column."""
    n, c, h, w = shape
    return (n, c, h, w) if pool == "none" else (n, c, h // 2, w // 2)


def class_means(features: Tensor, offsets: Tensor) -> Tensor:
    """Return the means [classes, D] of the rows of each class, in plain PyTorch; 0 for a class without rows."""
    sizes = offsets.diff()
    owner = torch.repeat_interleave(sizes, output_size=len(features))
    sums = features.new_zeros(len(sizes), features.shape[1]).index_add_(0, owner, features)
    return sums / sizes.clamp(min=1)[:, None]


WEIGHT_ROW = 4096
"""Numbers per row of the `uniform` that `uniform_weights` reads."""
PART = 5
"""Numbers that describe a part of the buffer of `uniform_weights`: start, first, outer, channels, pixels."""


def fill_weights(out: Tensor, numbers: Tensor, layout: list[int], bounds: list[float]) -> None:
    """Write the parts that `uniform_weights` describes; numbers: those in [0, 1), row after row, which are lost."""
    numbers = numbers.flatten().sub_(0.5)
    for part, bound in zip(range(0, len(layout), PART), bounds, strict=True):
        start, first, outer, channels, pixels = layout[part : part + PART]
        count = outer * channels * pixels
        drawn = numbers[first : first + count].view(outer, channels, pixels)
        torch.mul(drawn, 2 * bound, out=out[start : start + count].view(outer, pixels, channels).transpose(1, 2))


def weight_rows(layout: list[int], device: torch.device) -> Tensor:
    """Return the rows of the `uniform` that `fill_weights` needs for a layout."""
    first, outer, channels, pixels = layout[1 - PART :]
    return torch.arange(-(-(first + outer * channels * pixels) // WEIGHT_ROW), device=device)
