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

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch
from . import table as columns

# Column numbers as the kernels see them.
BRIGHTNESS: tl.constexpr = tl.constexpr(columns.BRIGHTNESS)
SATURATION: tl.constexpr = tl.constexpr(columns.SATURATION)
CONTRAST: tl.constexpr = tl.constexpr(columns.CONTRAST)
SHIFT_ROWS: tl.constexpr = tl.constexpr(columns.SHIFT_ROWS)
SHIFT_COLS: tl.constexpr = tl.constexpr(columns.SHIFT_COLS)
CUTOUT_TOP: tl.constexpr = tl.constexpr(columns.CUTOUT_TOP)
CUTOUT_BOTTOM: tl.constexpr = tl.constexpr(columns.CUTOUT_BOTTOM)
CUTOUT_LEFT: tl.constexpr = tl.constexpr(columns.CUTOUT_LEFT)
CUTOUT_RIGHT: tl.constexpr = tl.constexpr(columns.CUTOUT_RIGHT)
FLIP: tl.constexpr = tl.constexpr(columns.FLIP)
SCALE_X: tl.constexpr = tl.constexpr(columns.SCALE_X)
SCALE_Y: tl.constexpr = tl.constexpr(columns.SCALE_Y)
ROTATE_COS: tl.constexpr = tl.constexpr(columns.ROTATE_COS)
ROTATE_SIN: tl.constexpr = tl.constexpr(columns.ROTATE_SIN)
COLUMNS: tl.constexpr = tl.constexpr(columns.COLUMNS)
LIMIT: tl.constexpr = tl.constexpr(columns.MAX_ENLARGEMENT)
ROUNDING: tl.constexpr = tl.constexpr(columns.ROUNDING)


@triton.jit
def _rotated(i, j, cos, sin, H: tl.constexpr, W: tl.constexpr, ACC: tl.constexpr):
    """Return where pixel (i, j) of the rotated image lies in the image before: row and column."""
    dy = tl.cast(i, ACC) - (H - 1) / 2
    dx = tl.cast(j, ACC) - (W - 1) / 2
    return sin * (H / W) * dx + cos * dy + (H - 1) / 2, cos * dx - sin * (W / H) * dy + (W - 1) / 2


@triton.jit
def _scaled(i, factor, SIZE: tl.constexpr, ACC: tl.constexpr):
    """Return where row or column i of the scaled image lies in the image before."""
    return factor * (tl.cast(i, ACC) - (SIZE - 1) / 2) + (SIZE - 1) / 2


@triton.jit
def _tent(distance):
    """Return the bilinear weight of a pixel at this distance along one axis."""
    return tl.maximum(1 - tl.abs(distance), 0.0)


@triton.jit
def _source(i, j, move, H: tl.constexpr, W: tl.constexpr):
    """Return the input pixel of pixel (i, j) after crop, cutout and flip: offset, and whether there is one."""
    ti, tj, top, bottom, left, right, flip = move
    inside = (i >= 0) & (i < H) & (j >= 0) & (j < W)
    j = tl.where(flip != 0, W - 1 - j, j)
    inside &= (i < top) | (i > bottom) | (j < left) | (j > right)
    i += ti
    j += tj
    inside &= (i >= 0) & (i < H) & (j >= 0) & (j < W)
    return i * W + j, inside


@triton.jit
def _load_move(row_ptr):
    return (
        tl.load(row_ptr + SHIFT_ROWS).to(tl.int32),
        tl.load(row_ptr + SHIFT_COLS).to(tl.int32),
        tl.load(row_ptr + CUTOUT_TOP).to(tl.int32),
        tl.load(row_ptr + CUTOUT_BOTTOM).to(tl.int32),
        tl.load(row_ptr + CUTOUT_LEFT).to(tl.int32),
        tl.load(row_ptr + CUTOUT_RIGHT).to(tl.int32),
        tl.load(row_ptr + FLIP).to(tl.int32),
    )


@triton.jit
def _sample(
    image_ptr,
    pixel,
    valid,
    move,
    scale,
    rotation,
    C: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    READ: tl.constexpr,
    ACC: tl.constexpr,
):
    """Return the coverage of output pixels, and with READ the sampled sum of each channel (C is 1 or 3)."""
    sx, sy = scale
    cos, sin = rotation
    coverage = tl.zeros(pixel.shape, ACC)
    sum_0 = tl.zeros(pixel.shape, ACC)
    sum_1 = tl.zeros(pixel.shape, ACC)
    sum_2 = tl.zeros(pixel.shape, ACC)
    # Loops at run time instead of 16 unrolled taps: the same for all pixels of a program, and they spill no register.
    rotate_taps = tl.where((cos != 1) | (sin != 0), 4, 1)
    scale_taps = tl.where((sx != 1) | (sy != 1), 4, 1)
    y, x = _rotated(pixel // W, pixel % W, cos, sin, H, W, ACC)
    for r in range(rotate_taps):
        i = tl.floor(y).to(tl.int32) + r // 2
        j = tl.floor(x).to(tl.int32) + r % 2
        weight = _tent(y - tl.cast(i, ACC)) * _tent(x - tl.cast(j, ACC))
        # The image between scale and rotate ends where the others end.
        weight = tl.where(valid & (i >= 0) & (i < H) & (j >= 0) & (j < W), weight, 0.0)
        v = _scaled(i, sy, H, ACC)
        u = _scaled(j, sx, W, ACC)
        for s in range(scale_taps):
            p = tl.floor(v).to(tl.int32) + s // 2
            q = tl.floor(u).to(tl.int32) + s % 2
            offset, inside = _source(p, q, move, H, W)
            inside &= weight > 0
            tap = tl.where(inside, weight * _tent(v - tl.cast(p, ACC)) * _tent(u - tl.cast(q, ACC)), 0.0)
            coverage += tap
            if READ:
                sum_0 += tap * tl.load(image_ptr + offset, mask=inside, other=0).to(ACC)
                if C == 3:
                    sum_1 += tap * tl.load(image_ptr + H * W + offset, mask=inside, other=0).to(ACC)
                    sum_2 += tap * tl.load(image_ptr + 2 * H * W + offset, mask=inside, other=0).to(ACC)
    return coverage, sum_0, sum_1, sum_2


@triton.jit
def _plane_sum(plane_ptr, SIZE: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr):
    total = tl.zeros((WIDE,), ACC)
    for start in range(0, SIZE, WIDE):
        offset = start + tl.arange(0, WIDE)
        total += tl.load(plane_ptr + offset, mask=offset < SIZE, other=0).to(ACC)
    return tl.sum(total)


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
    row = n * table_step
    if group_ptr is not None:
        row = tl.load(group_ptr + n)
    known = (image >= 0) & (image < n_images) & (row >= 0) & (row < n_rows)
    image = tl.where(known, image, 0)
    row_ptr = table_ptr + tl.where(known, row, 0) * COLUMNS
    image_ptr = images_ptr + image * (C * H * W)

    b = tl.load(row_ptr + BRIGHTNESS).to(ACC)
    s = tl.load(row_ptr + SATURATION).to(ACC)
    k = tl.load(row_ptr + CONTRAST).to(ACC)

    # A normalised pixel is slope · raw + level.
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

    shift = b
    if k != 1:
        mu = slope_0 * _plane_sum(image_ptr, H * W, WIDE, ACC) / (H * W) + level_0
        if C == 3:
            mu += slope_1 * _plane_sum(image_ptr + H * W, H * W, WIDE, ACC) / (H * W) + level_1
            mu += slope_2 * _plane_sum(image_ptr + 2 * H * W, H * W, WIDE, ACC) / (H * W) + level_2
        shift += (1 - k) * mu / C

    # Loaded only now: values that live through the sums above would spill.
    move = _load_move(row_ptr)
    scale = (tl.load(row_ptr + SCALE_X).to(ACC), tl.load(row_ptr + SCALE_Y).to(ACC))
    rotation = (tl.load(row_ptr + ROTATE_COS).to(ACC), tl.load(row_ptr + ROTATE_SIN).to(ACC))
    first = tl.program_id(1) * chunk
    for start in range(first, min(first + chunk, H * W), BLOCK):
        pixel = start + tl.arange(0, BLOCK)
        valid = pixel < H * W
        coverage, u_0, u_1, u_2 = _sample(image_ptr, pixel, valid, move, scale, rotation, C, H, W, True, ACC)
        u_0 = slope_0 * u_0 + level_0 * coverage
        if C == 3:
            u_1 = slope_1 * u_1 + level_1 * coverage
            u_2 = slope_2 * u_2 + level_2 * coverage
        common = tl.where(known, k * (1 - s) * ((u_0 + u_1 + u_2) / C) + shift * coverage, float("nan"))
        if CHANNELS_LAST:
            pointer = out_ptr + n * (C * H * W) + pixel * C
            step = 1
        else:
            pointer = out_ptr + n * (C * H * W) + pixel
            step = H * W
        element = out_ptr.dtype.element_ty
        tl.store(pointer, (k * s * u_0 + common).to(element), mask=valid)
        if C == 3:
            tl.store(pointer + step, (k * s * u_1 + common).to(element), mask=valid)
            tl.store(pointer + 2 * step, (k * s * u_2 + common).to(element), mask=valid)


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
    row = n * table_step
    if group_ptr is not None:
        row = tl.load(group_ptr + n)
    known = (row >= 0) & (row < n_rows)
    row_ptr = table_ptr + tl.where(known, row, 0) * COLUMNS
    image_ptr = grad_ptr + n * (C * H * W)
    if CHANNELS_LAST:
        pixel_step = C
        channel_step = 1
    else:
        pixel_step = 1
        channel_step = H * W

    s = tl.load(row_ptr + SATURATION).to(ACC)
    k = tl.load(row_ptr + CONTRAST).to(ACC)
    move = _load_move(row_ptr)
    ti, tj, top, bottom, left, right, flip = move
    sx = tl.load(row_ptr + SCALE_X).to(ACC)
    sy = tl.load(row_ptr + SCALE_Y).to(ACC)
    cos = tl.load(row_ptr + ROTATE_COS).to(ACC)
    sin = tl.load(row_ptr + ROTATE_SIN).to(ACC)
    is_scaled = tl.where((sx != 1) | (sy != 1), 1, 0)
    is_rotated = tl.where((cos != 1) | (sin != 0), 1, 0)
    determinant = cos * cos + sin * sin
    known &= (tl.abs(determinant - 1) <= ROUNDING) & (sx * (LIMIT + ROUNDING) >= 1) & (sy * (LIMIT + ROUNDING) >= 1)
    # Outputs on each side of the nearest one along an axis; none where their number would mean nothing.
    rows = tl.ceil((tl.abs(cos) + tl.abs(sin) * (H / W)) / determinant - 0.5)
    cols = tl.ceil((tl.abs(cos) + tl.abs(sin) * (W / H)) / determinant - 0.5)
    rows = tl.where(known, rows, 0.0).to(tl.int32) * is_rotated
    cols = tl.where(known, cols, 0.0).to(tl.int32) * is_rotated
    across = 2 * cols + 1

    # The transposed contrast spreads the sum of the transposed sampling, which is Σ grad · coverage.
    shift = tl.full((), 0, ACC)
    if k != 1:
        total = tl.zeros((BLOCK,), ACC)
        for start in range(0, H * W, BLOCK):
            pixel = start + tl.arange(0, BLOCK)
            valid = pixel < H * W
            coverage, _, _, _ = _sample(image_ptr, pixel, valid, move, (sx, sy), (cos, sin), C, H, W, False, ACC)
            for c in tl.static_range(C):
                pointer = image_ptr + pixel * pixel_step + c * channel_step
                total += coverage * tl.load(pointer, mask=valid, other=0).to(ACC)
        shift = (1 - k) * (tl.sum(total) / (C * H * W))
    shift = tl.where(known, shift, float("nan"))

    first = tl.program_id(1) * chunk
    for start in range(first, min(first + chunk, H * W), BLOCK):
        pixel = start + tl.arange(0, BLOCK)
        valid = pixel < H * W
        # The pixel after crop, cutout and flip that reads this one.
        p = pixel // W - ti
        q = pixel % W - tj
        read = valid & (p >= 0) & (p < H) & (q >= 0) & (q < W)
        read &= (p < top) | (p > bottom) | (q < left) | (q > right)
        q = tl.where(flip != 0, W - 1 - q, q)
        # Its neighbourhood in the scaled image, and theirs in the rotated one.
        near_i = tl.floor((tl.cast(p, ACC) - (H - 1) / 2) / sy + H / 2).to(tl.int32)
        near_j = tl.floor((tl.cast(q, ACC) - (W - 1) / 2) / sx + W / 2).to(tl.int32)
        sum_0 = tl.zeros((BLOCK,), ACC)
        sum_1 = tl.zeros((BLOCK,), ACC)
        sum_2 = tl.zeros((BLOCK,), ACC)
        for a in range(1 + 8 * is_scaled):
            i = near_i + (a // 3 - 1) * is_scaled
            j = near_j + (a % 3 - 1) * is_scaled
            weight = _tent(_scaled(i, sy, H, ACC) - tl.cast(p, ACC)) * _tent(_scaled(j, sx, W, ACC) - tl.cast(q, ACC))
            weight = tl.where(read & (i >= 0) & (i < H) & (j >= 0) & (j < W), weight, 0.0)
            dy = tl.cast(i, ACC) - (H - 1) / 2
            dx = tl.cast(j, ACC) - (W - 1) / 2
            near_y = tl.floor((cos * dy - sin * (H / W) * dx) / determinant + H / 2).to(tl.int32)
            near_x = tl.floor((cos * dx + sin * (W / H) * dy) / determinant + W / 2).to(tl.int32)
            for r in range((2 * rows + 1) * across):
                y = near_y + r // across - rows
                x = near_x + r % across - cols
                v, u = _rotated(y, x, cos, sin, H, W, ACC)
                tap = weight * _tent(v - tl.cast(i, ACC)) * _tent(u - tl.cast(j, ACC))
                inside = (tap > 0) & (y >= 0) & (y < H) & (x >= 0) & (x < W)
                tap = tl.where(inside, tap, 0.0)
                pointer = image_ptr + (y * W + x) * pixel_step
                sum_0 += tap * tl.load(pointer, mask=inside, other=0).to(ACC)
                if C == 3:
                    sum_1 += tap * tl.load(pointer + channel_step, mask=inside, other=0).to(ACC)
                    sum_2 += tap * tl.load(pointer + 2 * channel_step, mask=inside, other=0).to(ACC)
        common = k * (1 - s) * ((sum_0 + sum_1 + sum_2) / C) + shift
        pointer = out_ptr + n * (C * H * W) + pixel
        element = out_ptr.dtype.element_ty
        tl.store(pointer, (k * s * sum_0 + common).to(element), mask=valid)
        if C == 3:
            tl.store(pointer + H * W, (k * s * sum_1 + common).to(element), mask=valid)
            tl.store(pointer + 2 * H * W, (k * s * sum_2 + common).to(element), mask=valid)


_WARPS = 4
_BLOCK = 4096 if launch.INTERPRETED else 32 * _WARPS
"""Pixels at a time. One per thread: gathers do not vectorise, and more pixels spill."""
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
    chunk = _chunk(n, h * w)
    launch.start(
        dsa_fwd_kernel,
        (n, triton.cdiv(h * w, chunk)),
        images.contiguous(),
        table.contiguous(),
        None if group is None else group.contiguous(),
        None if index is None else index.contiguous(),
        None if mean is None else mean.contiguous(),
        None if std is None else std.contiguous(),
        out,
        n_images,
        table.shape[0],
        int(table.shape[0] > 1),
        chunk,
        C=c,
        H=h,
        W=w,
        CHANNELS_LAST=channels_last,
        ACC=launch.accumulator(images.dtype),
        BLOCK=_BLOCK,
        WIDE=_WIDE,
        num_warps=_WARPS,
    )
    return out


def dsa_backward(grad: Tensor, table: Tensor, group: Tensor | None, dtype: torch.dtype) -> Tensor:
    n, c, h, w = grad.shape
    out = launch.empty((n, c, h, w), dtype, grad.device)
    channels_last = grad.is_contiguous(memory_format=torch.channels_last) and not grad.is_contiguous()
    chunk = _chunk(n, h * w)
    launch.start(
        dsa_bwd_kernel,
        (n, triton.cdiv(h * w, chunk)),
        grad if channels_last else grad.contiguous(),
        table.contiguous(),
        None if group is None else group.contiguous(),
        out,
        table.shape[0],
        int(table.shape[0] > 1),
        chunk,
        C=c,
        H=h,
        W=w,
        CHANNELS_LAST=channels_last,
        ACC=launch.accumulator(dtype),
        BLOCK=_BLOCK,
        num_warps=_WARPS,
    )
    return out
