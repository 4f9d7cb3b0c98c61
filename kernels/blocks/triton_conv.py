"""The block of a network that is never trained, as Triton kernels that compute its convolution twice and store nothing
of it: once for the statistics of the norm, once for the result.

It is for a first convolution, of so few input channels that a pixel and its neighbours, the *patch* of 9 · channels
numbers, are one operand of a matrix product. The statistics need no convolution: it is linear, so that with the mean m
and the covariance Σ of an image's patches, those of output channel k are w_k · m and w_kᵀ Σ w_k. Σ is computed from
patches less the image's mean, and a last number of each patch is 1, which gives their sums as a row of the product.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import launch
from ..numerics import working_dtype

_PIXELS = 64
_WINDOWS = 64
_CHANNELS = 32
_WARPS = 4
"""Pixels, pooling windows and output channels of a program at a time, so few that all of them stay in registers."""


@triton.jit
def _patches(x_ptr, i, j, inside, IMAGE: tl.constexpr, PADDING: tl.constexpr, TAPS: tl.constexpr):
    """Load the patches of output pixels (i, j), [pixels, TAPS] in the order (row, column, channel); 0 elsewhere."""
    H: tl.constexpr = IMAGE[0]
    W: tl.constexpr = IMAGE[1]
    C: tl.constexpr = IMAGE[2]
    tap = tl.arange(0, TAPS)
    row = i[:, None] + (tap // (3 * C) - PADDING)[None, :]
    column = j[:, None] + (tap // C % 3 - PADDING)[None, :]
    known = inside[:, None] & (tap < 9 * C)[None, :] & (row >= 0) & (row < H) & (column >= 0) & (column < W)
    return tl.load(x_ptr + (row * W + column) * C + (tap % C)[None, :], mask=known, other=0)


@triton.jit
def _image_mean(x_ptr, tap, IMAGE: tl.constexpr, PIXELS: tl.constexpr):
    """Return the mean of each tap's channel over the image."""
    C: tl.constexpr = IMAGE[2]
    COUNT: tl.constexpr = IMAGE[0] * IMAGE[1]
    channel = tl.arange(0, 4)
    sums = tl.zeros((PIXELS, 4), tl.float32)
    for first in range(0, COUNT, PIXELS):
        pixel = first + tl.arange(0, PIXELS)
        mask = (pixel < COUNT)[:, None] & (channel < C)[None, :]
        sums += tl.load(x_ptr + pixel[:, None] * C + channel[None, :], mask=mask, other=0).to(tl.float32)
    means = tl.sum(sums, 0) / COUNT
    return tl.sum(tl.where((tap % C)[:, None] == channel[None, :], means[None, :], 0.0), 1)


@triton.jit
def conv_statistics_kernel(
    x_ptr,
    weight_ptr,
    mean_ptr,
    rstd_ptr,
    eps,
    IMAGE: tl.constexpr,
    OUT: tl.constexpr,
    PADDING: tl.constexpr,
    TAPS: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    C: tl.constexpr = IMAGE[2]
    NUMBERS: tl.constexpr = 9 * C
    COUNT: tl.constexpr = OUT[0] * OUT[1]
    n = tl.program_id(0).to(tl.int64)
    x_ptr += n * (IMAGE[0] * IMAGE[1] * C)
    tap = tl.arange(0, TAPS)
    shift = tl.where(tap < NUMBERS, _image_mean(x_ptr, tap, IMAGE, PIXELS), tl.where(tap == NUMBERS, -1.0, 0.0))
    products = tl.zeros((TAPS, TAPS), tl.float32)
    for first in range(0, COUNT, PIXELS):
        pixel = first + tl.arange(0, PIXELS)
        inside = pixel < COUNT
        patches = _patches(x_ptr, pixel // OUT[1], pixel % OUT[1], inside, IMAGE, PADDING, TAPS)
        centred = tl.where(inside[:, None], patches.to(tl.float32) - shift[None, :], 0.0).to(patches.dtype)
        products = tl.dot(tl.trans(centred), centred, products, input_precision="ieee")
    products /= COUNT
    # The row, and the column, of the sums.
    across = tl.sum(tl.where((tap == NUMBERS)[:, None], products, 0.0), 0)
    down = tl.sum(tl.where((tap == NUMBERS)[None, :], products, 0.0), 1)
    covariance = products - down[:, None] * across[None, :]
    for first in range(0, OUT[2], CHANNELS):
        channel = first + tl.arange(0, CHANNELS)
        mask = (channel < OUT[2])[:, None] & (tap < NUMBERS)[None, :]
        weight = tl.load(weight_ptr + channel[:, None] * NUMBERS + tap[None, :], mask=mask, other=0).to(tl.float32)
        variance = tl.sum(tl.dot(weight, covariance, input_precision="ieee") * weight, 1)
        rstd = tl.rsqrt(tl.maximum(variance, 0.0) + tl.cast(eps, tl.float32))
        tl.store(mean_ptr + n * OUT[2] + channel, tl.sum(weight * (shift + across)[None, :], 1), mask=channel < OUT[2])
        tl.store(rstd_ptr + n * OUT[2] + channel, rstd, mask=channel < OUT[2])


@triton.jit
def _rectified(patches, weight, mean):
    return tl.maximum(tl.dot(patches, weight, input_precision="ieee") - mean[None, :], 0.0)


@triton.jit
def conv_norm_relu_pool_kernel(
    x_ptr,
    weight_ptr,
    mean_ptr,
    rstd_ptr,
    out_ptr,
    IMAGE: tl.constexpr,
    OUT: tl.constexpr,
    PADDING: tl.constexpr,
    TAPS: tl.constexpr,
    WINDOWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    NUMBERS: tl.constexpr = 9 * IMAGE[2]
    WIDE: tl.constexpr = OUT[1] // 2
    COUNT: tl.constexpr = OUT[0] // 2 * WIDE
    TILES: tl.constexpr = (COUNT + WINDOWS - 1) // WINDOWS
    n = (tl.program_id(0) // TILES).to(tl.int64)
    x_ptr += n * (IMAGE[0] * IMAGE[1] * IMAGE[2])
    out_ptr += n * (COUNT * OUT[2])
    window = tl.program_id(0) % TILES * WINDOWS + tl.arange(0, WINDOWS)
    inside = window < COUNT
    i = window // WIDE * 2
    j = window % WIDE * 2
    # One after the other for all channels: the patches of the four taps of a window.
    p_0 = _patches(x_ptr, i, j, inside, IMAGE, PADDING, TAPS)
    p_1 = _patches(x_ptr, i, j + 1, inside, IMAGE, PADDING, TAPS)
    p_2 = _patches(x_ptr, i + 1, j, inside, IMAGE, PADDING, TAPS)
    p_3 = _patches(x_ptr, i + 1, j + 1, inside, IMAGE, PADDING, TAPS)
    tap = tl.arange(0, TAPS)
    for first in range(0, OUT[2], CHANNELS):
        channel = first + tl.arange(0, CHANNELS)
        mask = (channel < OUT[2])[None, :] & (tap < NUMBERS)[:, None]
        weight = tl.load(weight_ptr + channel[None, :] * NUMBERS + tap[:, None], mask=mask, other=0)
        mean = tl.load(mean_ptr + n * OUT[2] + channel, mask=channel < OUT[2], other=0)
        rstd = tl.load(rstd_ptr + n * OUT[2] + channel, mask=channel < OUT[2], other=0)
        total = _rectified(p_0, weight, mean)
        total += _rectified(p_1, weight, mean)
        total += _rectified(p_2, weight, mean)
        total += _rectified(p_3, weight, mean)
        pooled = (total * (rstd * 0.25)[None, :]).to(out_ptr.dtype.element_ty)
        mask = inside[:, None] & (channel < OUT[2])[None, :]
        tl.store(out_ptr + window[:, None] * OUT[2] + channel[None, :], pooled, mask=mask)


def conv_norm_relu_pool(
    x: Tensor, weight: Tensor, scale: Tensor | None, shift: Tensor | None, padding: int, eps: float, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if keep or scale is not None or shift is not None:
        raise NotImplementedError("the op conv_norm_relu_pool has no scale, shift and gradient in triton_conv.py")
    n, c, h, w = x.shape
    out = (h + 2 * padding - 2, w + 2 * padding - 2, len(weight))
    windows = (out[0] // 2) * (out[1] // 2)
    pooled = launch.empty((n, out[2], out[0] // 2, out[1] // 2), x.dtype, x.device, True)
    mean, rstd = (launch.empty((n, out[2]), working_dtype(x.dtype), x.device) for _ in range(2))
    arguments = {
        "x_ptr": x.contiguous(memory_format=torch.channels_last),
        "weight_ptr": weight.contiguous(memory_format=torch.channels_last),
        "mean_ptr": mean,
        "rstd_ptr": rstd,
        "IMAGE": (h, w, c),
        "OUT": out,
        "PADDING": padding,
        "TAPS": triton.next_power_of_2(9 * c + 1),
        "CHANNELS": _CHANNELS,
    }
    launch.start(conv_statistics_kernel, (n,), eps=eps, PIXELS=_PIXELS, num_warps=_WARPS, **arguments)
    grid = (n * triton.cdiv(windows, _WINDOWS),)
    launch.start(conv_norm_relu_pool_kernel, grid, out_ptr=pooled, WINDOWS=_WINDOWS, num_warps=_WARPS, **arguments)
    return pooled, x.new_empty((0, out[2], *out[:2])), mean, rstd
