"""The block of a network that is never trained, as Triton kernels that compute its convolution twice and store nothing
of it: once for the statistics of the norm, once for the result.

It is for a first convolution, of at most three input channels. The first kernel copies the images into `padded`
[N, height, width, 4], with their zero border, an even width, and four numbers per pixel: the channels, zeros, and a 1.
So four pixels of a row are 16 neighbouring numbers, which are read at once and are one operand of a matrix product. Two
pixels next to each other share them: the left one's 3×3 patch has the first three columns, the right one's the last
three. `rows` [2, 3, channels, 16] holds the weights to match: for the left and the right pixel and each row of the
patch, with zeros for the fourth column and the fourth number.

The statistics need no convolution: it is linear, so that with the mean m and the covariance Σ of an image's patches,
those of output channel k are w_k · m and w_kᵀ Σ w_k. Σ is computed from patches less the image's mean, which loses no
digits to it; the 1 of each pixel gives the patches' sums as a row of the product.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import launch
from ..numerics import working_dtype

_SPACE = 128
"""`rows` has a multiple of this many channels, no fewer than a program reads: those past the last are zeros."""
_PIXELS = 256
_PAD_WARPS = 2
"""Pixels that are copied at a time, by the program of an image."""
_POSITIONS = 32
_STATISTICS_CHANNELS = 16
_STATISTICS_WARPS = 1
"""Positions of a patch at a time, then output channels, in the program of an image. A product of 16 by 16 numbers has
no work for a second warp."""
_WINDOWS = 64
_CHANNELS = 64
_TILES = 4
_WARPS = 4
"""Pooling windows at a time and output channels of a program, which goes through up to `_TILES` times those windows."""


@triton.jit
def _arrange(weight_ptr, rows_ptr, STRIDES: tl.constexpr, C: tl.constexpr, K: tl.constexpr, SPACE: tl.constexpr):
    """Write `rows` [2, 3, SPACE, 16] from the weight [K, C, 3, 3]."""
    at = tl.arange(0, 512)
    number = at % 16
    for line in range(0, 6 * SPACE, 32):
        k = line % SPACE + at // 16
        row = line // SPACE % 3
        column = number // 4 - line // (3 * SPACE)
        known = (k < K) & (column >= 0) & (column < 3) & (number % 4 < C)
        source = k * STRIDES[0] + number % 4 * STRIDES[1] + row * STRIDES[2] + column * STRIDES[3]
        tl.store(rows_ptr + line * 16 + at, tl.load(weight_ptr + source, mask=known, other=0))


@triton.jit
def conv_pad_kernel(
    x_ptr,
    weight_ptr,
    padded_ptr,
    rows_ptr,
    shift_ptr,
    IMAGE: tl.constexpr,
    X_STRIDES: tl.constexpr,
    WEIGHT_STRIDES: tl.constexpr,
    PADDING: tl.constexpr,
    PADDED: tl.constexpr,
    K: tl.constexpr,
    SPACE: tl.constexpr,
    DIGIT: tl.constexpr,
    PIXELS: tl.constexpr,
):
    C: tl.constexpr = IMAGE[0]
    COUNT: tl.constexpr = PADDED[0] * PADDED[1]
    if tl.program_id(0) == 0:
        _arrange(weight_ptr, rows_ptr, WEIGHT_STRIDES, C, K, SPACE)
    n = tl.program_id(0).to(tl.int64)
    x_ptr += n * X_STRIDES[0]
    padded_ptr += n * (COUNT * 4)
    none = tl.full((PIXELS,), 0, tl.float32).to(x_ptr.dtype.element_ty)
    one = tl.full((PIXELS,), 1, tl.float32).to(x_ptr.dtype.element_ty)
    sums_0 = tl.zeros((PIXELS,), tl.float32)
    sums_1 = tl.zeros((PIXELS,), tl.float32)
    sums_2 = tl.zeros((PIXELS,), tl.float32)
    largest = tl.zeros((PIXELS,), tl.float32)
    for first in range(0, COUNT, PIXELS):
        pixel = first + tl.arange(0, PIXELS)
        i = pixel // PADDED[1] - PADDING
        j = pixel % PADDED[1] - PADDING
        inside = (i >= 0) & (i < IMAGE[1]) & (j >= 0) & (j < IMAGE[2])
        source = x_ptr + i * X_STRIDES[2] + j * X_STRIDES[3]
        x_0 = tl.load(source, mask=inside, other=0)
        x_1 = tl.load(source + X_STRIDES[1], mask=inside, other=0) if C > 1 else none
        x_2 = tl.load(source + 2 * X_STRIDES[1], mask=inside, other=0) if C > 2 else none
        sums_0 += x_0.to(tl.float32)
        sums_1 += x_1.to(tl.float32)
        sums_2 += x_2.to(tl.float32)
        most = tl.maximum(tl.maximum(tl.abs(x_0), tl.abs(x_1)), tl.abs(x_2))
        largest = tl.maximum(largest, most.to(tl.float32))
        numbers = tl.join(tl.join(x_0, x_2), tl.join(x_1, one)).reshape(PIXELS, 4)
        target = padded_ptr + pixel[:, None] * 4 + tl.arange(0, 4)[None, :]
        tl.store(target, numbers, mask=(pixel < COUNT)[:, None])
    # The image's mean, in steps of the largest number's last digit: numbers of a size less a mean of finer steps would
    # all be rounded the same way, and their sum be off. The 1 stays 1.
    AREA: tl.constexpr = IMAGE[1] * IMAGE[2]
    power = (tl.max(largest, 0).to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
    step = tl.maximum(power, 1e-30) * DIGIT
    tl.store(shift_ptr + n * 4, tl.floor(tl.sum(sums_0, 0) / AREA / step + 0.5) * step)
    tl.store(shift_ptr + n * 4 + 1, tl.floor(tl.sum(sums_1, 0) / AREA / step + 0.5) * step)
    tl.store(shift_ptr + n * 4 + 2, tl.floor(tl.sum(sums_2, 0) / AREA / step + 0.5) * step)
    tl.store(shift_ptr + n * 4 + 3, 0.0)


@triton.jit
def _centred(at, shift, inside, EVEN: tl.constexpr):
    centred = tl.load(at) - shift
    return centred if EVEN else tl.where(inside, centred, 0)


@triton.jit
def _multiplied(products, weight, total):
    """Add products · weight to a total, in half precision by two products of the upper and the lower digits."""
    upper = products.to(weight.dtype)
    total = tl.dot(upper, weight, total, input_precision="ieee")
    if weight.dtype != tl.float32:
        total = tl.dot((products - upper.to(tl.float32)).to(weight.dtype), weight, total, input_precision="ieee")
    return total


@triton.jit
def conv_statistics_kernel(
    padded_ptr,
    rows_ptr,
    shift_ptr,
    mean_ptr,
    rstd_ptr,
    eps,
    PADDED: tl.constexpr,
    OUT: tl.constexpr,
    K: tl.constexpr,
    SPACE: tl.constexpr,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    # Positions of one pixel, instead of two, where the number of columns is odd.
    PAIR: tl.constexpr = 2 - OUT[1] % 2
    ACROSS: tl.constexpr = OUT[1] // PAIR
    COUNT: tl.constexpr = OUT[0] * ACROSS
    EVEN: tl.constexpr = COUNT % POSITIONS == 0
    ROW: tl.constexpr = PADDED[1] * 4
    n = tl.program_id(0).to(tl.int64)
    padded_ptr += n * (PADDED[0] * ROW)
    number = tl.arange(0, 16)
    shift = tl.load(shift_ptr + n * 4 + number % 4)
    # The products of rows r and s of the patches; those of s and r are their transposes.
    p_00 = tl.zeros((16, 16), tl.float32)
    p_10 = tl.zeros((16, 16), tl.float32)
    p_11 = tl.zeros((16, 16), tl.float32)
    p_20 = tl.zeros((16, 16), tl.float32)
    p_21 = tl.zeros((16, 16), tl.float32)
    p_22 = tl.zeros((16, 16), tl.float32)
    for first in range(0, COUNT, POSITIONS):
        position = first + tl.arange(0, POSITIONS)
        inside = (position < COUNT)[:, None]
        position = position if EVEN else tl.minimum(position, COUNT - 1)
        corner = position // ACROSS * ROW + position % ACROSS * (4 * PAIR)
        at = padded_ptr + corner[:, None] + number[None, :]
        row_0 = _centred(at, shift[None, :], inside, EVEN)
        row_1 = _centred(at + ROW, shift[None, :], inside, EVEN)
        row_2 = _centred(at + 2 * ROW, shift[None, :], inside, EVEN)
        p_00 = tl.dot(tl.trans(row_0), row_0, p_00, input_precision="ieee")
        p_10 = tl.dot(tl.trans(row_1), row_0, p_10, input_precision="ieee")
        p_11 = tl.dot(tl.trans(row_1), row_1, p_11, input_precision="ieee")
        p_20 = tl.dot(tl.trans(row_2), row_0, p_20, input_precision="ieee")
        p_21 = tl.dot(tl.trans(row_2), row_1, p_21, input_precision="ieee")
        p_22 = tl.dot(tl.trans(row_2), row_2, p_22, input_precision="ieee")
    # Divided by the largest, which is on the diagonal, so that float16 can hold them; without the columns of the 1. The
    # rows of the 1 of row 2 are the sums of the patches.
    known = (number % 4 != 3)[None, :]
    largest = tl.where(known & (number % 4 != 3)[:, None], tl.maximum(tl.maximum(p_00, p_11), p_22), 0.0)
    largest = tl.maximum(tl.max(tl.max(largest, 1), 0), 1e-30)
    once = tl.where(known, 1 / largest, 0.0)
    twice = tl.where(number == 3, 1.0, 2.0)[:, None] * once
    p_00 *= once
    p_10 *= twice
    p_11 *= once
    p_20 *= twice
    p_21 *= twice
    p_22 *= once
    # A product with the identity takes fewer instructions than to rearrange weights as a product is arranged.
    same = (number[:, None] == number[None, :]).to(rows_ptr.dtype.element_ty)
    none = tl.zeros((16, CHANNELS), tl.float32)
    for first in range(0, K, CHANNELS):
        channel = first + tl.arange(0, CHANNELS)
        squares = none
        sums = none
        shifts = none
        for right in tl.static_range(PAIR):
            rows = rows_ptr + 3 * right * SPACE * 16 + channel[None, :] * 16 + number[:, None]
            w_0 = tl.load(rows)
            w_1 = tl.load(rows + SPACE * 16)
            w_2 = tl.load(rows + 2 * SPACE * 16)
            f_0 = tl.dot(same, w_0, input_precision="ieee")
            f_1 = tl.dot(same, w_1, input_precision="ieee")
            f_2 = tl.dot(same, w_2, input_precision="ieee")
            squares += _multiplied(p_00, w_0, none) * f_0
            squares += _multiplied(p_11, w_1, _multiplied(p_10, w_0, none)) * f_1
            last = _multiplied(p_22, w_2, _multiplied(p_21, w_1, _multiplied(p_20, w_0, none)))
            squares += last * f_2
            sums += last
            if right == 0:
                shifts += (f_0 + f_1 + f_2) * shift.to(tl.float32)[:, None]
        scale = largest / (OUT[0] * OUT[1])
        mean = tl.sum(tl.where((number == 3)[:, None], sums, 0.0), 0) * scale
        variance = tl.sum(squares, 0) * scale - mean * mean
        rstd = tl.rsqrt(tl.maximum(variance, 0.0) + tl.cast(eps, tl.float32))
        tl.store(mean_ptr + n * K + channel, mean + tl.sum(shifts, 0), mask=channel < K)
        tl.store(rstd_ptr + n * K + channel, rstd, mask=channel < K)


@triton.jit
def _at_least(mean, a_0, a_1, a_2, w_0, w_1, w_2):
    """Return the convolution where it is above the mean, and the mean elsewhere."""
    conv = tl.dot(a_0, w_0, input_precision="ieee")
    conv = tl.dot(a_1, w_1, conv, input_precision="ieee")
    return tl.maximum(tl.dot(a_2, w_2, conv, input_precision="ieee"), mean)


@triton.jit
def conv_norm_relu_pool_kernel(
    padded_ptr,
    rows_ptr,
    mean_ptr,
    rstd_ptr,
    out_ptr,
    PADDED: tl.constexpr,
    OUT: tl.constexpr,
    K: tl.constexpr,
    SPACE: tl.constexpr,
    WINDOWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    TILES: tl.constexpr,
):
    ACROSS: tl.constexpr = OUT[1] // 2
    COUNT: tl.constexpr = OUT[0] // 2 * ACROSS
    GROUPS: tl.constexpr = (K + CHANNELS - 1) // CHANNELS
    PARTS: tl.constexpr = (COUNT + WINDOWS * TILES - 1) // (WINDOWS * TILES)
    ROW: tl.constexpr = PADDED[1] * 4
    channel = tl.program_id(0) % GROUPS * CHANNELS + tl.arange(0, CHANNELS)
    start = tl.program_id(0) // GROUPS % PARTS * (WINDOWS * TILES)
    n = (tl.program_id(0) // (GROUPS * PARTS)).to(tl.int64)
    padded_ptr += n * (PADDED[0] * ROW)
    out_ptr += n * (COUNT * K)
    number = tl.arange(0, 16)
    rows = rows_ptr + channel[None, :] * 16 + number[:, None]
    left_0 = tl.load(rows)
    left_1 = tl.load(rows + SPACE * 16)
    left_2 = tl.load(rows + 2 * SPACE * 16)
    right_0 = tl.load(rows + 3 * SPACE * 16)
    right_1 = tl.load(rows + 4 * SPACE * 16)
    right_2 = tl.load(rows + 5 * SPACE * 16)
    mean = tl.load(mean_ptr + n * K + channel, mask=channel < K, other=0)
    rstd = tl.load(rstd_ptr + n * K + channel, mask=channel < K, other=0)
    for tile in range(0, TILES):
        window = start + tile * WINDOWS + tl.arange(0, WINDOWS)
        known = tl.minimum(window, COUNT - 1)
        corner = known // ACROSS * (2 * ROW) + known % ACROSS * 8
        at = padded_ptr + corner[:, None] + number[None, :]
        # The four rows of four pixels that the four patches of a window share.
        a_0 = tl.load(at)
        a_1 = tl.load(at + ROW)
        a_2 = tl.load(at + 2 * ROW)
        a_3 = tl.load(at + 3 * ROW)
        # relu(conv - mean) = max(conv, mean) - mean: one subtraction for all four.
        total = _at_least(mean[None, :], a_0, a_1, a_2, left_0, left_1, left_2)
        total += _at_least(mean[None, :], a_0, a_1, a_2, right_0, right_1, right_2)
        total += _at_least(mean[None, :], a_1, a_2, a_3, left_0, left_1, left_2)
        total += _at_least(mean[None, :], a_1, a_2, a_3, right_0, right_1, right_2)
        pooled = ((total * 0.25 - mean[None, :]) * rstd[None, :]).to(out_ptr.dtype.element_ty)
        mask = (window < COUNT)[:, None] & (channel < K)[None, :]
        tl.store(out_ptr + window[:, None] * K + channel[None, :], pooled, mask=mask)


def conv_norm_relu_pool(
    x: Tensor, weight: Tensor, scale: Tensor | None, shift: Tensor | None, padding: int, eps: float, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if keep or scale is not None or shift is not None:
        raise NotImplementedError("the op conv_norm_relu_pool has no scale, shift and gradient in triton_conv.py")
    n, c, h, w = x.shape
    k = len(weight)
    out = (h + 2 * padding - 2, w + 2 * padding - 2)
    windows = (out[0] // 2) * (out[1] // 2)
    size = (out[0] + 2, out[1] + 2 + out[1] % 2)
    space = triton.cdiv(k, _SPACE) * _SPACE
    pooled = launch.empty((n, k, out[0] // 2, out[1] // 2), x.dtype, x.device, True)
    mean, rstd = (launch.empty((n, k), working_dtype(x.dtype), x.device) for _ in range(2))
    padded = launch.empty((n, *size, 4), x.dtype, x.device)
    rows = launch.empty((2, 3, space, 16), x.dtype, x.device)
    means = launch.empty((n, 4), x.dtype, x.device)
    shared = {"padded_ptr": padded, "rows_ptr": rows, "PADDED": size, "K": k, "SPACE": space}
    launch.start(
        conv_pad_kernel,
        (n,),
        x_ptr=x,
        weight_ptr=weight,
        shift_ptr=means,
        IMAGE=(c, h, w),
        X_STRIDES=x.stride(),
        WEIGHT_STRIDES=weight.stride(),
        PADDING=padding,
        DIGIT=torch.finfo(x.dtype).eps,
        PIXELS=_PIXELS,
        num_warps=_PAD_WARPS,
        **shared,
    )
    launch.start(
        conv_statistics_kernel,
        (n,),
        shift_ptr=means,
        mean_ptr=mean,
        rstd_ptr=rstd,
        eps=eps,
        OUT=out,
        POSITIONS=_POSITIONS,
        CHANNELS=_STATISTICS_CHANNELS,
        num_warps=_STATISTICS_WARPS,
        **shared,
    )
    tiles = min(_TILES, triton.cdiv(windows, _WINDOWS))
    grid = (n * triton.cdiv(windows, _WINDOWS * tiles) * triton.cdiv(k, _CHANNELS),)
    launch.start(
        conv_norm_relu_pool_kernel,
        grid,
        mean_ptr=mean,
        rstd_ptr=rstd,
        out_ptr=pooled,
        OUT=out,
        WINDOWS=_WINDOWS,
        CHANNELS=_CHANNELS,
        TILES=tiles,
        num_warps=_WARPS,
        **shared,
    )
    return pooled, x.new_empty((0, k, *out)), mean, rstd
