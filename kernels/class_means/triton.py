"""Class means and the loss of distribution matching as Triton kernels: one program per class and run of features.

Sums run in a fixed order: rows in blocks, then one partial sum of squares per program, added up at the end.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import launch
from ..numerics import working_dtype
from ..row_means import bounds, constants, grid, mean_of_rows
from ..row_means import class_means as class_means


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
    first, last = bounds(synthetic_offsets_ptr, label)
    full = last > first
    if real_offsets_ptr is None:
        real_mean = tl.load(real_ptr + label * D + d, mask=d < D, other=0).to(ACC)
    else:
        real_first, real_last = bounds(real_offsets_ptr, label)
        real_mean = mean_of_rows(real_ptr, real_first, real_last, d, D, ROWS, FEATURES, ACC)
        full &= real_last > real_first
    mean = mean_of_rows(synthetic_ptr, first, last, d, D, ROWS, FEATURES, ACC)
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
    first, last = bounds(offsets_ptr, label)
    factor = -2 * tl.load(grad_ptr).to(ACC) / tl.maximum(last - first, 1).to(ACC)
    gradient = factor * tl.load(difference_ptr + label * D + d, mask=d < D, other=0).to(ACC)
    gradient = tl.broadcast_to(gradient[None, :], (ROWS, FEATURES)).to(out_ptr.dtype.element_ty)
    for start in range(first, last, ROWS):
        row = start + tl.arange(0, ROWS).to(tl.int64)
        mask = (row < last)[:, None] & (d < D)[None, :]
        tl.store(out_ptr + row[:, None] * D + d[None, :], gradient, mask=mask)


def class_mean_difference(
    real: Tensor, synthetic: Tensor, real_offsets: Tensor | None, synthetic_offsets: Tensor, empty: str
) -> tuple[Tensor, Tensor]:
    classes, features = synthetic_offsets.shape[0] - 1, real.shape[1]
    dtype = working_dtype(real.dtype, synthetic.dtype)
    difference = launch.empty((classes, features), dtype, real.device)
    programs = grid(classes, features)
    partial = launch.empty(programs, dtype, real.device)
    launch.start(
        class_mean_difference_fwd_kernel,
        programs,
        real_ptr=real.contiguous(),
        synthetic_ptr=synthetic.contiguous(),
        real_offsets_ptr=launch.contiguous(real_offsets),
        synthetic_offsets_ptr=synthetic_offsets.contiguous(),
        difference_ptr=difference,
        partial_ptr=partial,
        **constants(features, dtype),
    )
    return partial.sum(), difference


def class_mean_difference_backward(
    grad: Tensor, difference: Tensor, synthetic_offsets: Tensor, rows: int, dtype: torch.dtype
) -> Tensor:
    classes, features = difference.shape
    out = launch.empty((rows, features), dtype, difference.device)
    launch.start(
        class_mean_difference_bwd_kernel,
        grid(classes, features),
        grad_ptr=grad,
        difference_ptr=difference,
        offsets_ptr=synthetic_offsets.contiguous(),
        out_ptr=out,
        **constants(features, difference.dtype),
    )
    return out
