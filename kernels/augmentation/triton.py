"""The augmentation as two Triton kernels: every output pixel gathers its input pixels, and the other way round.

Everything but color is linear and reads zeros outside the image. So the forward kernel samples raw pixels together
with their coverage (the sum of the weights that hit the image) and applies normalisation and color once per output
pixel. With S_c and Ω the sampled raw pixel and the coverage, u_c = S_c / (255 std_c) − mean_c / std_c · Ω, m the
channel mean of u, and μ the mean of the whole normalised image:

    out_c = k s u_c + k (1 − s) m + (b + (1 − k) μ) Ω

The backward kernel gathers too, so it needs no atomics and repeats bit for bit. An input pixel reads the outputs round
its image under the inverse map A⁻¹, with weights from the forward expression. Those that can have read it lie less than
‖A⁻¹‖∞ away along each axis: 3×3 for a scale that enlarges at most 1.5 times and for any rotation of a square; for a
rotation of other images, in pixels a skewed map, as many as its angle and the aspect ask for.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import launch
from ..numerics import is_channels_last
from .triton_geometry import (
    BRIGHTNESS,
    COLUMNS,
    CONTRAST,
    SATURATION,
    load_move,
    load_rotation,
    load_scale,
    reach,
    reader,
    rotated,
    row_of,
    sample,
    scaled,
    tent,
)


@triton.jit
def _plane_sum(plane_ptr, SIZE: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr):
    total = tl.zeros((WIDE,), ACC)
    for start in range(0, SIZE, WIDE):
        offset = start + tl.arange(0, WIDE)
        total += tl.load(plane_ptr + offset, mask=offset < SIZE, other=0).to(ACC)
    return tl.sum(total)


@triton.jit
def _load_normalisation(mean_ptr, std_ptr, C: tl.constexpr, ACC: tl.constexpr):
    """Return slope and level of each channel: a normalised pixel is slope · raw + level."""
    slope_0 = tl.full((), 1, ACC)
    slope_1 = slope_0
    slope_2 = slope_0
    level_0 = tl.full((), 0, ACC)
    level_1 = level_0
    level_2 = level_0
    if mean_ptr is not None:
        std_0 = tl.load(std_ptr).to(ACC)
        slope_0 = 1 / (255 * std_0)
        level_0 = -tl.load(mean_ptr).to(ACC) / std_0
        if C == 3:
            std_1 = tl.load(std_ptr + 1).to(ACC)
            slope_1 = 1 / (255 * std_1)
            level_1 = -tl.load(mean_ptr + 1).to(ACC) / std_1
            std_2 = tl.load(std_ptr + 2).to(ACC)
            slope_2 = 1 / (255 * std_2)
            level_2 = -tl.load(mean_ptr + 2).to(ACC) / std_2
    return (slope_0, slope_1, slope_2), (level_0, level_1, level_2)


@triton.jit
def _store_color(pointer, step, u, k, s, common, valid, C: tl.constexpr):
    """Store k · s · u + common in each channel, which stand `step` elements apart."""
    element = pointer.dtype.element_ty
    tl.store(pointer, (k * s * u[0] + common).to(element), mask=valid)
    if C == 3:
        tl.store(pointer + step, (k * s * u[1] + common).to(element), mask=valid)
        tl.store(pointer + 2 * step, (k * s * u[2] + common).to(element), mask=valid)


@triton.jit
def dsa_fwd_kernel(
    images_ptr,
    table_ptr,
    group_ptr,
    index_ptr,
    mean_ptr,
    std_ptr,
    out_ptr,
    n_images,
    n_rows,
    table_step,
    chunk,
    C: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    image = n
    if index_ptr is not None:
        image = tl.load(index_ptr + n)
    row, known = row_of(group_ptr, n, n_rows, table_step)
    known = (image >= 0) & (image < n_images) & known
    row_ptr = table_ptr + tl.where(known, row, 0) * COLUMNS
    image_ptr = images_ptr + tl.where(known, image, 0) * (C * H * W)

    shift = tl.load(row_ptr + BRIGHTNESS).to(ACC)
    s = tl.load(row_ptr + SATURATION).to(ACC)
    k = tl.load(row_ptr + CONTRAST).to(ACC)
    slope, level = _load_normalisation(mean_ptr, std_ptr, C, ACC)
    if k != 1:
        mu = slope[0] * _plane_sum(image_ptr, H * W, WIDE, ACC) / (H * W) + level[0]
        if C == 3:
            mu += slope[1] * _plane_sum(image_ptr + H * W, H * W, WIDE, ACC) / (H * W) + level[1]
            mu += slope[2] * _plane_sum(image_ptr + 2 * H * W, H * W, WIDE, ACC) / (H * W) + level[2]
        shift += (1 - k) * mu / C

    # Loaded only now: values that live through the sums above would spill.
    move = load_move(row_ptr)
    scale = load_scale(row_ptr, ACC)
    rotation = load_rotation(row_ptr, ACC)
    first = tl.program_id(1) * chunk
    for start in range(first, min(first + chunk, H * W), BLOCK):
        pixel = start + tl.arange(0, BLOCK)
        valid = pixel < H * W
        coverage, u_0, u_1, u_2 = sample(image_ptr, pixel, valid, move, scale, rotation, C, H, W, True, ACC)
        u_0 = slope[0] * u_0 + level[0] * coverage
        if C == 3:
            u_1 = slope[1] * u_1 + level[1] * coverage
            u_2 = slope[2] * u_2 + level[2] * coverage
        common = tl.where(known, k * (1 - s) * ((u_0 + u_1 + u_2) / C) + shift * coverage, float("nan"))
        u = (u_0, u_1, u_2)
        if CHANNELS_LAST:
            _store_color(out_ptr + n * (C * H * W) + pixel * C, 1, u, k, s, common, valid, C)
        else:
            _store_color(out_ptr + n * (C * H * W) + pixel, H * W, u, k, s, common, valid, C)


@triton.jit
def _gather_outputs(
    grad_ptr,
    p,
    q,
    read,
    scale,
    rotation,
    reached,
    C: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ACC: tl.constexpr,
):
    """Return the gradient of each channel at pixels (p, q) before scale and rotate, 0 where nothing reads them."""
    sx, sy = scale
    cos, sin = rotation
    rows, cols = reached
    determinant = cos * cos + sin * sin
    is_scaled = tl.where((sx != 1) | (sy != 1), 1, 0)
    across = 2 * cols + 1
    pixel_step = C if CHANNELS_LAST else 1
    channel_step = 1 if CHANNELS_LAST else H * W
    # The neighbourhood in the scaled image, and of each of its pixels in the rotated one.
    near_i = tl.floor((tl.cast(p, ACC) - (H - 1) / 2) / sy + H / 2).to(tl.int32)
    near_j = tl.floor((tl.cast(q, ACC) - (W - 1) / 2) / sx + W / 2).to(tl.int32)
    sum_0 = tl.zeros(p.shape, ACC)
    sum_1 = tl.zeros(p.shape, ACC)
    sum_2 = tl.zeros(p.shape, ACC)
    for a in range(1 + 8 * is_scaled):
        i = near_i + (a // 3 - 1) * is_scaled
        j = near_j + (a % 3 - 1) * is_scaled
        weight = tent(scaled(i, sy, H, ACC) - tl.cast(p, ACC)) * tent(scaled(j, sx, W, ACC) - tl.cast(q, ACC))
        weight = tl.where(read & (i >= 0) & (i < H) & (j >= 0) & (j < W), weight, 0.0)
        dy = tl.cast(i, ACC) - (H - 1) / 2
        dx = tl.cast(j, ACC) - (W - 1) / 2
        near_y = tl.floor((cos * dy - sin * (H / W) * dx) / determinant + H / 2).to(tl.int32)
        near_x = tl.floor((cos * dx + sin * (W / H) * dy) / determinant + W / 2).to(tl.int32)
        for r in range((2 * rows + 1) * across):
            y = near_y + r // across - rows
            x = near_x + r % across - cols
            v, u = rotated(y, x, cos, sin, H, W, ACC)
            tap = weight * tent(v - tl.cast(i, ACC)) * tent(u - tl.cast(j, ACC))
            inside = (tap > 0) & (y >= 0) & (y < H) & (x >= 0) & (x < W)
            tap = tl.where(inside, tap, 0.0)
            pointer = grad_ptr + (y * W + x) * pixel_step
            sum_0 += tap * tl.load(pointer, mask=inside, other=0).to(ACC)
            if C == 3:
                sum_1 += tap * tl.load(pointer + channel_step, mask=inside, other=0).to(ACC)
                sum_2 += tap * tl.load(pointer + 2 * channel_step, mask=inside, other=0).to(ACC)
    return sum_0, sum_1, sum_2


@triton.jit
def _covered_sum(
    grad_ptr,
    move,
    scale,
    rotation,
    C: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Return Σ grad · coverage of an image: the sum of the transposed sampling."""
    total = tl.zeros((BLOCK,), ACC)
    for start in range(0, H * W, BLOCK):
        pixel = start + tl.arange(0, BLOCK)
        valid = pixel < H * W
        coverage, _, _, _ = sample(grad_ptr, pixel, valid, move, scale, rotation, C, H, W, False, ACC)
        for c in tl.static_range(C):
            offset = pixel * C + c if CHANNELS_LAST else pixel + c * (H * W)
            total += coverage * tl.load(grad_ptr + offset, mask=valid, other=0).to(ACC)
    return tl.sum(total)


@triton.jit
def dsa_bwd_kernel(
    grad_ptr,
    table_ptr,
    group_ptr,
    out_ptr,
    n_rows,
    table_step,
    chunk,
    C: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    row, known = row_of(group_ptr, n, n_rows, table_step)
    row_ptr = table_ptr + tl.where(known, row, 0) * COLUMNS
    grad_ptr += n * (C * H * W)
    s = tl.load(row_ptr + SATURATION).to(ACC)
    k = tl.load(row_ptr + CONTRAST).to(ACC)
    move = load_move(row_ptr)
    scale = load_scale(row_ptr, ACC)
    rotation = load_rotation(row_ptr, ACC)
    rows, cols, known = reach(scale, rotation, known, H, W)

    # The transposed contrast spreads the sum over the image.
    shift = tl.full((), 0, ACC)
    if k != 1:
        total = _covered_sum(grad_ptr, move, scale, rotation, C, H, W, CHANNELS_LAST, ACC, BLOCK)
        shift = (1 - k) * (total / (C * H * W))
    shift = tl.where(known, shift, float("nan"))

    first = tl.program_id(1) * chunk
    for start in range(first, min(first + chunk, H * W), BLOCK):
        pixel = start + tl.arange(0, BLOCK)
        valid = pixel < H * W
        p, q, read = reader(pixel, move, H, W)
        sums = _gather_outputs(grad_ptr, p, q, valid & read, scale, rotation, (rows, cols), C, H, W, CHANNELS_LAST, ACC)
        common = k * (1 - s) * ((sums[0] + sums[1] + sums[2]) / C) + shift
        _store_color(out_ptr + n * (C * H * W) + pixel, H * W, sums, k, s, common, valid, C)


_WARPS = 4
_BLOCK = 4096 if launch.INTERPRETED else 64 * _WARPS
"""Pixels at a time. Two per thread: gathers do not vectorise, and more pixels spill."""
_WIDE = 4096 if launch.INTERPRETED else 1024
"""Pixels at a time where a plane is only summed."""
_PROGRAMS = 1024
"""Programs that fill a large GPU; fewer images are split into pieces."""


def _chunk(n: int, pixels: int) -> int:
    """Return the number of pixels of one program."""
    chunk = max(_BLOCK, 1024)
    while chunk > _BLOCK and n * triton.cdiv(pixels, chunk) < _PROGRAMS:
        chunk //= 2
    return chunk


def _rows(table: Tensor, group: Tensor | None) -> dict[str, Any]:
    """Return the arguments that say which row of the table an image has."""
    return {
        "table_ptr": table.contiguous(),
        "group_ptr": launch.contiguous(group),
        "n_rows": table.shape[0],
        "table_step": int(table.shape[0] > 1),
    }


def _tiling(n: int, c: int, h: int, w: int) -> tuple[tuple[int, int], dict[str, Any]]:
    """Return the grid of a kernel for images [n, c, h, w], and the arguments that go with it."""
    chunk = _chunk(n, h * w)
    return (n, triton.cdiv(h * w, chunk)), {
        "chunk": chunk,
        "C": c,
        "H": h,
        "W": w,
        "BLOCK": _BLOCK,
        "num_warps": _WARPS,
    }


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
    n_images, c, h, w = images.shape
    n = n_images if index is None else index.shape[0]
    out = launch.empty((n, c, h, w), dtype, images.device, channels_last)
    grid, tiling = _tiling(n, c, h, w)
    launch.start(
        dsa_fwd_kernel,
        grid,
        images_ptr=images.contiguous(),
        index_ptr=launch.contiguous(index),
        mean_ptr=launch.contiguous(mean),
        std_ptr=launch.contiguous(std),
        out_ptr=out,
        n_images=n_images,
        CHANNELS_LAST=channels_last,
        ACC=launch.accumulator(images.dtype),
        WIDE=_WIDE,
        **_rows(table, group),
        **tiling,
    )
    return out


def dsa_backward(grad: Tensor, table: Tensor, group: Tensor | None, dtype: torch.dtype) -> Tensor:
    n, c, h, w = grad.shape
    out = launch.empty((n, c, h, w), dtype, grad.device)
    channels_last = is_channels_last(grad)
    grid, tiling = _tiling(n, c, h, w)
    launch.start(
        dsa_bwd_kernel,
        grid,
        grad_ptr=grad if channels_last else grad.contiguous(),
        out_ptr=out,
        CHANNELS_LAST=channels_last,
        ACC=launch.accumulator(dtype),
        **_rows(table, group),
        **tiling,
    )
    return out
