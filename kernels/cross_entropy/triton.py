"""The cross-entropy as Triton kernels: a program takes several whole rows, however many classes they have.

Sums run in a fixed order: classes in blocks, rows within a program, then one partial sum per program.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import launch
from ..numerics import working_dtype

_FORWARD, _BACKWARD = (8192, 8), (2048, 4)
"""Logits that a program reads at a time, and its warps. Forward, one program adds up all rows of a small problem, which
saves the launch of another sum."""
_MOST_COLUMNS = 1024


@triton.jit
def _largest_and_sum(row_ptr, rows, C: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr):
    """Return of every row, with its largest logit m, m and Σ_k exp(logit_k − m)."""
    largest = tl.full((ROWS,), float("-inf"), ACC)
    total = tl.zeros((ROWS,), ACC)
    for start in range(0, C, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        mask = rows[:, None] & (column < C)[None, :]
        x = tl.load(row_ptr[:, None] + column[None, :], mask=mask, other=float("-inf")).to(ACC)
        before = largest
        largest = tl.maximum(before, tl.max(x, 1))
        base = tl.where(largest == float("-inf"), 0.0, largest)  # ∞ − ∞ is not a number
        total = total * tl.exp(before - base) + tl.sum(tl.exp(x - base[:, None]), 1)
    return largest, total


@triton.jit
def cross_entropy_fwd_kernel(
    logits_ptr,
    labels_ptr,
    partial_ptr,
    n,
    scale,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ACC: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    rows = row < n
    row_ptr = logits_ptr + row * C
    largest, total = _largest_and_sum(row_ptr, rows, C, ROWS, COLUMNS, ACC)
    label = tl.load(labels_ptr + row, mask=rows, other=0)
    known = rows & (label >= 0) & (label < C)
    at_label = tl.load(row_ptr + label, mask=known, other=float("nan")).to(ACC)
    loss = tl.where(rows, tl.log(total) + (largest - at_label), 0.0)
    tl.store(partial_ptr + tl.program_id(0), tl.sum(loss, 0) * tl.cast(scale, ACC))


@triton.jit
def cross_entropy_bwd_kernel(
    grad_ptr,
    logits_ptr,
    labels_ptr,
    out_ptr,
    n,
    scale,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ACC: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    rows = row < n
    row_ptr = logits_ptr + row * C
    largest, total = _largest_and_sum(row_ptr, rows, C, ROWS, COLUMNS, ACC)
    label = tl.load(labels_ptr + row, mask=rows, other=0)
    factor = tl.load(grad_ptr).to(ACC) * tl.cast(scale, ACC)
    factor = tl.where((label >= 0) & (label < C), factor, float("nan"))
    for start in range(0, C, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        mask = rows[:, None] & (column < C)[None, :]
        x = tl.load(row_ptr[:, None] + column[None, :], mask=mask, other=0).to(ACC)
        p = tl.exp(x - largest[:, None]) / total[:, None]
        gradient = factor[:, None] * (p - tl.where(column[None, :] == label[:, None], 1.0, 0.0))
        gradient = gradient.to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + row[:, None] * C + column[None, :], gradient, mask=mask)


def _tiles(logits: Tensor, tile: int, warps: int) -> tuple[int, dict[str, Any]]:
    """Return the number of programs, and what both kernels are told of the shape."""
    n, classes = logits.shape
    columns = min(_MOST_COLUMNS, max(16, triton.next_power_of_2(classes)))
    rows = tile // columns
    constants = {"C": classes, "ROWS": rows, "COLUMNS": columns, "ACC": launch.accumulator(logits.dtype)}
    return triton.cdiv(n, rows), {"n": n, **constants, "num_warps": warps}


def _split(scale: float, dtype: torch.dtype) -> tuple[float, float]:
    """Return the factors within and behind a kernel, which takes numbers as float32."""
    return (1.0, scale) if dtype == torch.float64 else (scale, 1.0)


def cross_entropy(logits: Tensor, labels: Tensor, scale: float) -> Tensor:
    programs, shape = _tiles(logits, *_FORWARD)
    within, behind = _split(scale, logits.dtype)
    partial = launch.empty((programs,), working_dtype(logits.dtype), logits.device)
    launch.start(
        cross_entropy_fwd_kernel,
        (programs,),
        logits_ptr=logits.contiguous(),
        labels_ptr=labels.contiguous(),
        partial_ptr=partial,
        scale=within,
        **shape,
    )
    loss = partial.view(()) if programs == 1 else partial.sum()
    return loss if behind == 1 else loss * behind


def cross_entropy_backward(grad: Tensor, logits: Tensor, labels: Tensor, scale: float) -> Tensor:
    programs, shape = _tiles(logits, *_BACKWARD)
    within, behind = _split(scale, logits.dtype)
    out = launch.empty(logits.shape, logits.dtype, logits.device)
    launch.start(
        cross_entropy_bwd_kernel,
        (programs,),
        grad_ptr=grad if behind == 1 else grad * behind,
        logits_ptr=logits.contiguous(),
        labels_ptr=labels.contiguous(),
        out_ptr=out,
        scale=within,
        **shape,
    )
    return out
