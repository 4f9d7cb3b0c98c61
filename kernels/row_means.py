"""Means of consecutive rows as Triton code, which the class means of features and of pooled images share."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch
from .numerics import working_dtype

WARPS = 4
ROWS = 32
FEATURES = 64
"""A program takes this many features, of this many rows at a time."""


@triton.jit
def bounds(offsets_ptr, label):
    """Return the first row of a class, and the row after its last."""
    return tl.load(offsets_ptr + label), tl.load(offsets_ptr + label + 1)


@triton.jit
def mean_of_rows(ptr, first, last, d, D: tl.constexpr, ROWS: tl.constexpr, FEATURES: tl.constexpr, ACC: tl.constexpr):
    """Return the mean of rows first to last, 0 if there is none; rows are added in blocks, in a fixed order."""
    total = tl.zeros((ROWS, FEATURES), ACC)
    for start in range(first, last, ROWS):
        row = start + tl.arange(0, ROWS).to(tl.int64)
        mask = (row < last)[:, None] & (d < D)[None, :]
        total += tl.load(ptr + row[:, None] * D + d[None, :], mask=mask, other=0).to(ACC)
    return tl.sum(total, 0) / tl.maximum(last - first, 1).to(ACC)


@triton.jit
def class_means_kernel(
    features_ptr,
    offsets_ptr,
    out_ptr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
    ACC: tl.constexpr,
):
    label = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * FEATURES + tl.arange(0, FEATURES)
    first, last = bounds(offsets_ptr, label)
    mean = mean_of_rows(features_ptr, first, last, d, D, ROWS, FEATURES, ACC)
    tl.store(out_ptr + label * D + d, mean, mask=d < D)


def grid(classes: int, features: int) -> tuple[int, int]:
    """Return the programs of a kernel over classes and features."""
    return classes, triton.cdiv(features, FEATURES)


def constants(features: int, dtype: torch.dtype) -> dict[str, Any]:
    """Return the arguments that every such kernel takes, for sums of rows of `dtype`."""
    return {"D": features, "ROWS": ROWS, "FEATURES": FEATURES, "ACC": launch.accumulator(dtype), "num_warps": WARPS}


def class_means(features: Tensor, offsets: Tensor) -> Tensor:
    """Return the means [classes, D] of the rows of each class in the type of the sums; 0 for a class without rows."""
    classes, d = offsets.shape[0] - 1, features.shape[1]
    out = launch.empty((classes, d), working_dtype(features.dtype), features.device)
    launch.start(
        class_means_kernel,
        grid(classes, d),
        features_ptr=features.contiguous(),
        offsets_ptr=offsets.contiguous(),
        out_ptr=out,
        **constants(d, features.dtype),
    )
    return out
