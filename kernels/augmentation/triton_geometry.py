"""Which pixels of an image an augmented one reads, and which read a pixel of the image: the maps of both kernels."""

import triton
import triton.language as tl

from .. import table as columns

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
ENLARGEMENT: tl.constexpr = tl.constexpr(columns.MAX_ENLARGEMENT)
ROUNDING: tl.constexpr = tl.constexpr(columns.ROUNDING)


@triton.jit
def row_of(group_ptr, n, n_rows, table_step):
    """Return the table row of output image n, and whether the table has it."""
    row = n * table_step
    if group_ptr is not None:
        row = tl.load(group_ptr + n)
    return row, (row >= 0) & (row < n_rows)


@triton.jit
def rotated(i, j, cos, sin, H: tl.constexpr, W: tl.constexpr, ACC: tl.constexpr):
    """Return where pixel (i, j) of the rotated image lies in the image before: row and column."""
    dy = tl.cast(i, ACC) - (H - 1) / 2
    dx = tl.cast(j, ACC) - (W - 1) / 2
    return sin * (H / W) * dx + cos * dy + (H - 1) / 2, cos * dx - sin * (W / H) * dy + (W - 1) / 2


@triton.jit
def scaled(i, factor, SIZE: tl.constexpr, ACC: tl.constexpr):
    """Return where row or column i of the scaled image lies in the image before."""
    return factor * (tl.cast(i, ACC) - (SIZE - 1) / 2) + (SIZE - 1) / 2


@triton.jit
def tent(distance):
    """Return the bilinear weight of a pixel at this distance along one axis."""
    return tl.maximum(1 - tl.abs(distance), 0.0)


@triton.jit
def source(i, j, move, H: tl.constexpr, W: tl.constexpr):
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
def load_move(row_ptr):
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
def load_scale(row_ptr, ACC: tl.constexpr):
    return tl.load(row_ptr + SCALE_X).to(ACC), tl.load(row_ptr + SCALE_Y).to(ACC)


@triton.jit
def load_rotation(row_ptr, ACC: tl.constexpr):
    return tl.load(row_ptr + ROTATE_COS).to(ACC), tl.load(row_ptr + ROTATE_SIN).to(ACC)


@triton.jit
def sample(
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
    y, x = rotated(pixel // W, pixel % W, cos, sin, H, W, ACC)
    for r in range(rotate_taps):
        i = tl.floor(y).to(tl.int32) + r // 2
        j = tl.floor(x).to(tl.int32) + r % 2
        weight = tent(y - tl.cast(i, ACC)) * tent(x - tl.cast(j, ACC))
        # The image between scale and rotate ends where the others end.
        weight = tl.where(valid & (i >= 0) & (i < H) & (j >= 0) & (j < W), weight, 0.0)
        v = scaled(i, sy, H, ACC)
        u = scaled(j, sx, W, ACC)
        for s in range(scale_taps):
            p = tl.floor(v).to(tl.int32) + s // 2
            q = tl.floor(u).to(tl.int32) + s % 2
            offset, inside = source(p, q, move, H, W)
            inside &= weight > 0
            tap = tl.where(inside, weight * tent(v - tl.cast(p, ACC)) * tent(u - tl.cast(q, ACC)), 0.0)
            coverage += tap
            if READ:
                sum_0 += tap * tl.load(image_ptr + offset, mask=inside, other=0).to(ACC)
                if C == 3:
                    sum_1 += tap * tl.load(image_ptr + H * W + offset, mask=inside, other=0).to(ACC)
                    sum_2 += tap * tl.load(image_ptr + 2 * H * W + offset, mask=inside, other=0).to(ACC)
    return coverage, sum_0, sum_1, sum_2


@triton.jit
def reader(pixel, move, H: tl.constexpr, W: tl.constexpr):
    """Return the pixel after crop, cutout and flip that reads an input pixel: row, column, and whether there is one."""
    ti, tj, top, bottom, left, right, flip = move
    p = pixel // W - ti
    q = pixel % W - tj
    read = (p >= 0) & (p < H) & (q >= 0) & (q < W)
    read &= (p < top) | (p > bottom) | (q < left) | (q > right)
    return p, tl.where(flip != 0, W - 1 - q, q), read


@triton.jit
def reach(scale, rotation, known, H: tl.constexpr, W: tl.constexpr):
    """Return how many outputs on each side of the nearest one a rotation may reach, and whether that can be followed.

    The numbers, of rows and of columns, are 0 without a rotation and where it cannot be followed.
    """
    sx, sy = scale
    cos, sin = rotation
    is_rotated = tl.where((cos != 1) | (sin != 0), 1, 0)
    determinant = cos * cos + sin * sin
    known &= (
        (tl.abs(determinant - 1) <= ROUNDING)
        & (sx * (ENLARGEMENT + ROUNDING) >= 1)
        & (sy * (ENLARGEMENT + ROUNDING) >= 1)
    )
    rows = tl.ceil((tl.abs(cos) + tl.abs(sin) * (H / W)) / determinant - 0.5)
    cols = tl.ceil((tl.abs(cos) + tl.abs(sin) * (W / H)) / determinant - 0.5)
    rows = tl.where(known, rows, 0.0).to(tl.int32) * is_rotated
    cols = tl.where(known, cols, 0.0).to(tl.int32) * is_rotated
    return rows, cols, known
