"""Class means and their squared differences as Triton kernels: one program per class and run of features.

Sums run in a fixed order: rows in blocks, then one partial sum of squares per program, added up at the end.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch
from .reference import working_dtype

_WARPS = 4
_ROWS = 32
_FEATURES = 64


@triton.jit
def _mean_rows(ptr, first, last, d, D: tl.constexpr, ROWS: tl.constexpr, FEATURES: tl.constexpr, ACC: tl.constexpr):
    """Return the mean of rows first to last, 0 if there is none."""
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
    first = tl.load(offsets_ptr + label)
    last = tl.load(offsets_ptr + label + 1)
    mean = _mean_rows(features_ptr, first, last, d, D, ROWS, FEATURES, ACC)
    tl.store(out_ptr + label * D + d, mean, mask=d < D)


def class_means(features: Tensor, offsets: Tensor) -> Tensor:
    """Return the means [classes, D] of the rows of each class in the type of the sums; 0 for a class without rows."""
    classes, d = offsets.shape[0] - 1, features.shape[1]
    out = launch.empty((classes, d), working_dtype(features.dtype), features.device)
    launch.start(
        class_means_kernel,
        (classes, triton.cdiv(d, _FEATURES)),
        features.contiguous(),
        offsets.contiguous(),
        out,
        D=d,
        ROWS=_ROWS,
        FEATURES=_FEATURES,
        ACC=launch.accumulator(features.dtype),
        num_warps=_WARPS,
    )
    return out


@triton.jit
def class_mean_difference_fwd_kernel(
    real_ptr,
    synthetic_ptr,
    real_offsets_ptr,
    synthetic_offsets_ptr,
    difference_ptr,
    partial_ptr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
    ACC: tl.constexpr,
):
    label = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * FEATURES + tl.arange(0, FEATURES)
    real_first = tl.load(real_offsets_ptr + label)
    real_last = tl.load(real_offsets_ptr + label + 1)
    first = tl.load(synthetic_offsets_ptr + label)
    last = tl.load(synthetic_offsets_ptr + label + 1)
    real_mean = _mean_rows(real_ptr, real_first, real_last, d, D, ROWS, FEATURES, ACC)
    mean = _mean_rows(synthetic_ptr, first, last, d, D, ROWS, FEATURES, ACC)
    full = (real_last > real_first) & (last > first)
    difference = tl.where(full & (d < D), real_mean - mean, 0.0)
    tl.store(difference_ptr + label * D + d, difference, mask=d < D)
    tl.store(partial_ptr + label * tl.num_programs(1) + tl.program_id(1), tl.sum(difference * difference))


@triton.jit
def class_mean_difference_bwd_kernel(
    grad_ptr,
    difference_ptr,
    offsets_ptr,
    out_ptr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
    ACC: tl.constexpr,
):
    label = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * FEATURES + tl.arange(0, FEATURES)
    first = tl.load(offsets_ptr + label)
    last = tl.load(offsets_ptr + label + 1)
    factor = -2 * tl.load(grad_ptr).to(ACC) / tl.maximum(last - first, 1).to(ACC)
    gradient = factor * tl.load(difference_ptr + label * D + d, mask=d < D, other=0).to(ACC)
    gradient = tl.broadcast_to(gradient[None, :], (ROWS, FEATURES)).to(out_ptr.dtype.element_ty)
    for start in range(first, last, ROWS):
        row = start + tl.arange(0, ROWS).to(tl.int64)
        mask = (row < last)[:, None] & (d < D)[None, :]
        tl.store(out_ptr + row[:, None] * D + d[None, :], gradient, mask=mask)


def class_mean_difference(
    real: Tensor, synthetic: Tensor, real_offsets: Tensor, synthetic_offsets: Tensor, empty: str
) -> tuple[Tensor, Tensor]:
    classes, features = real_offsets.shape[0] - 1, real.shape[1]
    dtype = torch.float64 if real.dtype == torch.float64 else torch.float32
    difference = launch.empty((classes, features), dtype, real.device)
    blocks = triton.cdiv(features, _FEATURES)
    partial = launch.empty((classes, blocks), dtype, real.device)
    launch.start(
        class_mean_difference_fwd_kernel,
        (classes, blocks),
        real.contiguous(),
        synthetic.contiguous(),
        real_offsets.contiguous(),
        synthetic_offsets.contiguous(),
        difference,
        partial,
        D=features,
        ROWS=_ROWS,
        FEATURES=_FEATURES,
        ACC=launch.accumulator(dtype),
        num_warps=_WARPS,
    )
    return partial.sum(), difference


def class_mean_difference_backward(
    grad: Tensor, difference: Tensor, synthetic_offsets: Tensor, rows: int, dtype: torch.dtype
) -> Tensor:
    classes, features = difference.shape
    out = launch.empty((rows, features), dtype, difference.device)
    launch.start(
        class_mean_difference_bwd_kernel,
        (classes, triton.cdiv(features, _FEATURES)),
        grad,
        difference,
        synthetic_offsets.contiguous(),
        out,
        D=features,
        ROWS=_ROWS,
        FEATURES=_FEATURES,
        ACC=launch.accumulator(difference.dtype),
        num_warps=_WARPS,
    )
    return out
