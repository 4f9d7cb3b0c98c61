"""InstanceNorm, activation and 2×2 pooling in one pass, as Triton kernels.

A tile holds the pixels of its pooling windows as four tensors, the *taps* upper left, upper right, lower left and lower
right, so pooling, its gradient and all the rest is elementwise in either memory format:

- contiguous: tiles are [channels, windows]; wide loads of the upper and the lower pixel rows, each split into its even
  and odd columns;
- channels-last: tiles are [windows, channels]; four wide loads.

The kernels are written for images of several tiles, which they read three times (mean, centred squares, result). Where
an image is one tile the loops fold at compile time and their loads merge into one; the compile check shows it. The
variance is the mean of the centred squares, never E[x²] − mean².
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch
from .class_mean_triton import class_means
from .reference import LEAKY_SLOPE, memory_format

SLOPE: tl.constexpr = tl.constexpr(LEAKY_SLOPE)

# Sizes common to the functions below. H, W, C: the image. LAST: channels-last. WIDE: windows per row, padded to a power
# of two. WINDOWS, CHANNELS: the tile. FULL: no tap of any tile lies outside the image.


@triton.jit
def _spread(window, channel, LAST: tl.constexpr):
    """Shape vectors of windows and channels for a tile."""
    if LAST:
        return window[:, None], channel[None, :]
    else:
        return window[None, :], channel[:, None]


@triton.jit
def _taps(
    first, channel, H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, LAST: tl.constexpr, WIDE: tl.constexpr,
    WINDOWS: tl.constexpr,
):  # fmt: skip
    """Return where the tile at window ``first`` is read and written: offsets and masks of its parts.

    Contiguous: two parts, upper and lower rows of pixels [channels, 2 · windows]. Channels-last: the four taps.
    """
    if LAST:
        window, channel = _spread(first + tl.arange(0, WINDOWS), channel, LAST)
        i = window // WIDE * 2
        j = window % WIDE * 2
        offset = (i * W + j) * C + channel
        m_0 = (i < H) & (j < W) & (channel < C)
        m_1 = (i < H) & (j + 1 < W) & (channel < C)
        m_2 = (i + 1 < H) & (j < W) & (channel < C)
        m_3 = (i + 1 < H) & (j + 1 < W) & (channel < C)
        return (offset, offset + C, offset + W * C, offset + (W + 1) * C), (m_0, m_1, m_2, m_3)
    else:
        pixel = first * 2 + tl.arange(0, 2 * WINDOWS)[None, :]
        i = pixel // (2 * WIDE) * 2
        j = pixel % (2 * WIDE)
        offset = channel[:, None] * (H * W) + i * W + j
        inside = (channel < C)[:, None] & (j < W)
        return (offset, offset + W), (inside & (i < H), inside & (i + 1 < H))


@triton.jit
def _load(
    ptr, first, channel, H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, LAST: tl.constexpr, WIDE: tl.constexpr,
    WINDOWS: tl.constexpr, CHANNELS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Load the taps of a tile, 0 outside the image."""
    offset, mask = _taps(first, channel, H, W, C, LAST, WIDE, WINDOWS)
    if LAST:
        return (
            tl.load(ptr + offset[0], mask=mask[0], other=0).to(ACC),
            tl.load(ptr + offset[1], mask=mask[1], other=0).to(ACC),
            tl.load(ptr + offset[2], mask=mask[2], other=0).to(ACC),
            tl.load(ptr + offset[3], mask=mask[3], other=0).to(ACC),
        )
    else:
        upper = tl.load(ptr + offset[0], mask=mask[0], other=0).to(ACC)
        lower = tl.load(ptr + offset[1], mask=mask[1], other=0).to(ACC)
        t_0, t_1 = tl.split(tl.reshape(upper, (CHANNELS, WINDOWS, 2)))
        t_2, t_3 = tl.split(tl.reshape(lower, (CHANNELS, WINDOWS, 2)))
        return t_0, t_1, t_2, t_3


@triton.jit
def _store(
    ptr, taps, first, channel, H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, LAST: tl.constexpr,
    WIDE: tl.constexpr, WINDOWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Store the taps of a tile where they lie in the image."""
    offset, mask = _taps(first, channel, H, W, C, LAST, WIDE, WINDOWS)
    element = ptr.dtype.element_ty
    if LAST:
        tl.store(ptr + offset[0], taps[0].to(element), mask=mask[0])
        tl.store(ptr + offset[1], taps[1].to(element), mask=mask[1])
        tl.store(ptr + offset[2], taps[2].to(element), mask=mask[2])
        tl.store(ptr + offset[3], taps[3].to(element), mask=mask[3])
    else:
        upper = tl.reshape(tl.join(taps[0].to(element), taps[1].to(element)), (CHANNELS, 2 * WINDOWS))
        lower = tl.reshape(tl.join(taps[2].to(element), taps[3].to(element)), (CHANNELS, 2 * WINDOWS))
        tl.store(ptr + offset[0], upper, mask=mask[0])
        tl.store(ptr + offset[1], lower, mask=mask[1])


@triton.jit
def _pooled(
    first, channel, H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, LAST: tl.constexpr, WIDE: tl.constexpr,
    WINDOWS: tl.constexpr,
):  # fmt: skip
    """Return where the pooled pixels of a tile lie in the pooled image: offset and mask."""
    window, channel = _spread(first + tl.arange(0, WINDOWS), channel, LAST)
    i = window // WIDE
    j = window % WIDE
    mask = (i < H // 2) & (j < W // 2) & (channel < C)
    if LAST:
        return (i * (W // 2) + j) * C + channel, mask
    else:
        return channel * ((H // 2) * (W // 2)) + i * (W // 2) + j, mask


@triton.jit
def _centre(
    taps, mean, first, H: tl.constexpr, W: tl.constexpr, LAST: tl.constexpr, WIDE: tl.constexpr, WINDOWS: tl.constexpr,
    FULL: tl.constexpr,
):  # fmt: skip
    """Subtract the mean, leaving 0 outside the image."""
    d_0 = taps[0] - mean
    d_1 = taps[1] - mean
    d_2 = taps[2] - mean
    d_3 = taps[3] - mean
    if not FULL:
        window, _ = _spread(first + tl.arange(0, WINDOWS), first + tl.arange(0, WINDOWS), LAST)
        i = window // WIDE * 2
        j = window % WIDE * 2
        d_0 = tl.where((i < H) & (j < W), d_0, 0.0)
        d_1 = tl.where((i < H) & (j + 1 < W), d_1, 0.0)
        d_2 = tl.where((i + 1 < H) & (j < W), d_2, 0.0)
        d_3 = tl.where((i + 1 < H) & (j + 1 < W), d_3, 0.0)
    return d_0, d_1, d_2, d_3


@triton.jit
def _sum(taps, LAST: tl.constexpr):
    """Sum the taps of a tile over its windows: one value per channel."""
    return tl.sum((taps[0] + taps[1]) + (taps[2] + taps[3]), 0 if LAST else 1, keep_dims=True)


@triton.jit
def _activate(x, ACTIVATION: tl.constexpr):
    if ACTIVATION == "relu":
        return tl.maximum(x, 0.0)
    elif ACTIVATION == "leakyrelu":
        return tl.where(x > 0, x, SLOPE * x)
    elif ACTIVATION == "sigmoid":
        return 1 / (1 + tl.exp(-x))
    else:
        return x / (1 + tl.exp(-x))


@triton.jit
def _slope(x, ACTIVATION: tl.constexpr):
    """Return the derivative of the activation."""
    if ACTIVATION == "relu":
        return tl.where(x > 0, 1.0, 0.0).to(x.dtype)
    elif ACTIVATION == "leakyrelu":
        return tl.where(x > 0, 1.0, SLOPE).to(x.dtype)
    else:
        s = 1 / (1 + tl.exp(-x))
        return s * (1 - s) if ACTIVATION == "sigmoid" else s * (1 + x * (1 - s))


@triton.jit
def _affine(weight_ptr, bias_ptr, channel, C: tl.constexpr, LAST: tl.constexpr, ACC: tl.constexpr):
    """Return weight and bias of a tile's channels, 1 and 0 where there is none."""
    weight = tl.full(channel.shape, 1, ACC)
    bias = tl.full(channel.shape, 0, ACC)
    if weight_ptr is not None:
        weight = tl.load(weight_ptr + channel, mask=channel < C, other=0).to(ACC)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + channel, mask=channel < C, other=0).to(ACC)
    _, weight = _spread(weight, weight, LAST)
    _, bias = _spread(bias, bias, LAST)
    return weight, bias


@triton.jit
def _activated(d, factor, bias, ACTIVATION: tl.constexpr):
    """Return the activations of centred taps."""
    a_0 = _activate(d[0] * factor + bias, ACTIVATION)
    a_1 = _activate(d[1] * factor + bias, ACTIVATION)
    a_2 = _activate(d[2] * factor + bias, ACTIVATION)
    a_3 = _activate(d[3] * factor + bias, ACTIVATION)
    return a_0, a_1, a_2, a_3


@triton.jit
def _pool(a, POOL: tl.constexpr):
    if POOL == "max":
        return tl.maximum(tl.maximum(a[0], a[1]), tl.maximum(a[2], a[3]))
    else:
        return ((a[0] + a[1]) + (a[2] + a[3])) * 0.25


@triton.jit
def norm_relu_pool_fwd_kernel(
    x_ptr, weight_ptr, bias_ptr, out_ptr, mean_ptr, rstd_ptr, eps,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, LAST: tl.constexpr, WIDE: tl.constexpr, TOTAL: tl.constexpr,
    WINDOWS: tl.constexpr, CHANNELS: tl.constexpr, FULL: tl.constexpr, ACTIVATION: tl.constexpr, POOL: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    x_ptr += n * (C * H * W)
    out_ptr += n * (C * H * W if POOL == "none" else C * (H // 2) * (W // 2))
    weight, bias = _affine(weight_ptr, bias_ptr, channel, C, LAST, ACC)
    eps = tl.cast(eps, ACC)

    mean = weight * 0
    for first in range(0, TOTAL, WINDOWS):
        x = _load(x_ptr, first, channel, H, W, C, LAST, WIDE, WINDOWS, CHANNELS, ACC)
        mean += _sum(x, LAST)
    mean = mean / (H * W)
    variance = weight * 0
    for first in range(0, TOTAL, WINDOWS):
        x = _load(x_ptr, first, channel, H, W, C, LAST, WIDE, WINDOWS, CHANNELS, ACC)
        d = _centre(x, mean, first, H, W, LAST, WIDE, WINDOWS, FULL)
        variance += _sum((d[0] * d[0], d[1] * d[1], d[2] * d[2], d[3] * d[3]), LAST)
    rstd = tl.rsqrt(variance / (H * W) + eps)
    for first in range(0, TOTAL, WINDOWS):
        x = _load(x_ptr, first, channel, H, W, C, LAST, WIDE, WINDOWS, CHANNELS, ACC)
        d = _centre(x, mean, first, H, W, LAST, WIDE, WINDOWS, FULL)
        a = _activated(d, rstd * weight, bias, ACTIVATION)
        if POOL == "none":
            _store(out_ptr, a, first, channel, H, W, C, LAST, WIDE, WINDOWS, CHANNELS)
        else:
            offset, mask = _pooled(first, channel, H, W, C, LAST, WIDE, WINDOWS)
            tl.store(out_ptr + offset, _pool(a, POOL).to(out_ptr.dtype.element_ty), mask=mask)
    tl.store(mean_ptr + n * C + channel, tl.reshape(mean, (CHANNELS,)), mask=channel < C)
    tl.store(rstd_ptr + n * C + channel, tl.reshape(rstd, (CHANNELS,)), mask=channel < C)


@triton.jit
def norm_relu_pool_mean_kernel(
    x_ptr, offsets_ptr, weight_ptr, bias_ptr, out_ptr, eps,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, LAST: tl.constexpr, WIDE: tl.constexpr, WINDOWS: tl.constexpr,
    CHANNELS: tl.constexpr, FULL: tl.constexpr, ACTIVATION: tl.constexpr, POOL: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    label = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    weight, bias = _affine(weight_ptr, bias_ptr, channel, C, LAST, ACC)
    eps = tl.cast(eps, ACC)

    # A program adds up its share of a class's images; the shares are added afterwards, in their order.
    class_first = tl.load(offsets_ptr + label)
    class_last = tl.load(offsets_ptr + label + 1)
    share = tl.cdiv(class_last - class_first, tl.num_programs(2))
    share_first = class_first + tl.program_id(2) * share
    share_last = tl.minimum(share_first + share, class_last)
    total = tl.zeros((WINDOWS, CHANNELS) if LAST else (CHANNELS, WINDOWS), ACC)
    for n in range(share_first, share_last):
        image_ptr = x_ptr + tl.cast(n, tl.int64) * (C * H * W)
        x = _load(image_ptr, 0, channel, H, W, C, LAST, WIDE, WINDOWS, CHANNELS, ACC)
        mean = _sum(x, LAST) / (H * W)
        d = _centre(x, mean, 0, H, W, LAST, WIDE, WINDOWS, FULL)
        variance = _sum((d[0] * d[0], d[1] * d[1], d[2] * d[2], d[3] * d[3]), LAST) / (H * W)
        total += _pool(_activated(d, tl.rsqrt(variance + eps) * weight, bias, ACTIVATION), POOL)
    total /= tl.maximum(class_last - class_first, 1).to(ACC)

    out_ptr += (tl.program_id(2) * tl.num_programs(0) + label) * (C * (H // 2) * (W // 2))
    window, channel = _spread(tl.arange(0, WINDOWS), channel, LAST)
    i = window // WIDE
    j = window % WIDE
    offset = channel * ((H // 2) * (W // 2)) + i * (W // 2) + j
    tl.store(out_ptr + offset, total, mask=(i < H // 2) & (j < W // 2) & (channel < C))


@triton.jit
def _grads(
    grad_ptr, x_ptr, mean, rstd, weight, bias, first, channel, H: tl.constexpr, W: tl.constexpr, C: tl.constexpr,
    LAST: tl.constexpr, WIDE: tl.constexpr, WINDOWS: tl.constexpr, CHANNELS: tl.constexpr, ACTIVATION: tl.constexpr,
    POOL: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Return the normalised taps, and the gradient before the activation there, 0 where no window reaches."""
    x = _load(x_ptr, first, channel, H, W, C, LAST, WIDE, WINDOWS, CHANNELS, ACC)
    y_0 = (x[0] - mean) * rstd
    y_1 = (x[1] - mean) * rstd
    y_2 = (x[2] - mean) * rstd
    y_3 = (x[3] - mean) * rstd
    z_0 = y_0 * weight + bias
    z_1 = y_1 * weight + bias
    z_2 = y_2 * weight + bias
    z_3 = y_3 * weight + bias
    if POOL == "none":
        g_0, g_1, g_2, g_3 = _load(grad_ptr, first, channel, H, W, C, LAST, WIDE, WINDOWS, CHANNELS, ACC)
    else:
        offset, mask = _pooled(first, channel, H, W, C, LAST, WIDE, WINDOWS)
        g = tl.load(grad_ptr + offset, mask=mask, other=0).to(ACC)
        if POOL == "max":
            # The first of equals wins, as in PyTorch.
            a_0 = _activate(z_0, ACTIVATION)
            a_1 = _activate(z_1, ACTIVATION)
            a_2 = _activate(z_2, ACTIVATION)
            a_3 = _activate(z_3, ACTIVATION)
            best = tl.maximum(tl.maximum(a_0, a_1), tl.maximum(a_2, a_3))
            g_0 = tl.where(a_0 == best, g, 0.0)
            g = tl.where(a_0 == best, 0.0, g)
            g_1 = tl.where(a_1 == best, g, 0.0)
            g = tl.where(a_1 == best, 0.0, g)
            g_2 = tl.where(a_2 == best, g, 0.0)
            g_3 = tl.where(a_2 == best, 0.0, g)
        else:
            g_0 = g * 0.25
            g_1 = g_0
            g_2 = g_0
            g_3 = g_0
    g_0 *= _slope(z_0, ACTIVATION)
    g_1 *= _slope(z_1, ACTIVATION)
    g_2 *= _slope(z_2, ACTIVATION)
    g_3 *= _slope(z_3, ACTIVATION)
    return (y_0, y_1, y_2, y_3), (g_0, g_1, g_2, g_3)


@triton.jit
def norm_relu_pool_bwd_kernel(
    grad_ptr, x_ptr, mean_ptr, rstd_ptr, weight_ptr, bias_ptr, grad_x_ptr, grad_weight_ptr, grad_bias_ptr,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, LAST: tl.constexpr, WIDE: tl.constexpr, TOTAL: tl.constexpr,
    WINDOWS: tl.constexpr, CHANNELS: tl.constexpr, ACTIVATION: tl.constexpr, POOL: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    x_ptr += n * (C * H * W)
    grad_x_ptr += n * (C * H * W)
    grad_ptr += n * (C * H * W if POOL == "none" else C * (H // 2) * (W // 2))
    weight, bias = _affine(weight_ptr, bias_ptr, channel, C, LAST, ACC)
    mean = tl.load(mean_ptr + n * C + channel, mask=channel < C, other=0)
    rstd = tl.load(rstd_ptr + n * C + channel, mask=channel < C, other=0)
    _, mean = _spread(mean, mean, LAST)
    _, rstd = _spread(rstd, rstd, LAST)

    # Outside the image the gradient is 0, so no sum needs a mask.
    grad_bias = weight * 0
    grad_weight = weight * 0
    for first in range(0, TOTAL, WINDOWS):
        y, g = _grads(
            grad_ptr, x_ptr, mean, rstd, weight, bias, first, channel, H, W, C, LAST, WIDE, WINDOWS, CHANNELS,
            ACTIVATION, POOL, ACC,
        )  # fmt: skip
        grad_bias += _sum(g, LAST)
        grad_weight += _sum((g[0] * y[0], g[1] * y[1], g[2] * y[2], g[3] * y[3]), LAST)
    b = grad_bias / (H * W)
    a = grad_weight / (H * W)
    factor = weight * rstd
    for first in range(0, TOTAL, WINDOWS):
        y, g = _grads(
            grad_ptr, x_ptr, mean, rstd, weight, bias, first, channel, H, W, C, LAST, WIDE, WINDOWS, CHANNELS,
            ACTIVATION, POOL, ACC,
        )  # fmt: skip
        dx_0 = (g[0] - b - y[0] * a) * factor
        dx_1 = (g[1] - b - y[1] * a) * factor
        dx_2 = (g[2] - b - y[2] * a) * factor
        dx_3 = (g[3] - b - y[3] * a) * factor
        _store(grad_x_ptr, (dx_0, dx_1, dx_2, dx_3), first, channel, H, W, C, LAST, WIDE, WINDOWS, CHANNELS)
    tl.store(grad_weight_ptr + n * C + channel, tl.reshape(grad_weight, (CHANNELS,)), mask=channel < C)
    tl.store(grad_bias_ptr + n * C + channel, tl.reshape(grad_bias, (CHANNELS,)), mask=channel < C)


class _Tile(NamedTuple):
    """Sizes of a tile, by the names that the kernels use."""

    WIDE: int
    TOTAL: int
    WINDOWS: int
    CHANNELS: int
    warps: int

    def is_full(self, height: int, width: int) -> bool:
        """Whether no tap lies outside the image."""
        return height % 2 == 0 and width == 2 * self.WIDE and self.TOTAL % self.WINDOWS == 0


_SECTOR = 32
"""Bytes that global memory moves at once: what a channels-last tile reads of a pixel, if the image fits."""
_VECTOR = 16
"""Bytes of one load, the least that a channels-last tile reads of a pixel."""
_WARPS = 16
_WINDOWS_PER_THREAD = 8
"""With four taps each they take 32 registers in the forward kernel, and twice as many in the backward kernel."""
_ROOM = 2**20 if launch.INTERPRETED else _WARPS * 32 * _WINDOWS_PER_THREAD
"""Windows · channels of a tile."""
_SHARES = 32
"""Programs among which the images of one class are divided."""


def _tile(x: Tensor, largest: int) -> _Tile:
    """Choose the tile for images [N, C, H, W]: ``_ROOM``, or up to ``largest`` where that holds the whole image."""
    _, c, h, w = x.shape
    wide = triton.next_power_of_2((w + 1) // 2)
    total = (h + 1) // 2 * wide
    whole, room = triton.next_power_of_2(total), _ROOM
    if memory_format(x) == torch.channels_last:
        channels, least = (max(size // x.element_size(), 1) for size in (_SECTOR, _VECTOR))
        if whole * channels > room and whole * least <= largest:
            channels, room = least, largest
    else:
        channels = max(1024 // whole, 1)
    channels = min(triton.next_power_of_2(c), channels)
    windows = min(whole, room // channels)
    return _Tile(wide, total, windows, channels, min(_WARPS, max(1, windows * channels // (32 * _WINDOWS_PER_THREAD))))


def norm_relu_pool(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, activation: str, pool: str
) -> tuple[Tensor, Tensor, Tensor]:
    n, c, h, w = x.shape
    last = memory_format(x) == torch.channels_last
    tile = _tile(x, 2 * _ROOM)
    shape = (n, c, h, w) if pool == "none" else (n, c, h // 2, w // 2)
    out = launch.empty(shape, x.dtype, x.device, last)
    statistics = torch.float64 if x.dtype == torch.float64 else torch.float32
    mean = launch.empty((n, c), statistics, x.device)
    rstd = launch.empty((n, c), statistics, x.device)
    launch.start(
        norm_relu_pool_fwd_kernel,
        (n, triton.cdiv(c, tile.CHANNELS)),
        x if last else x.contiguous(),
        weight,
        bias,
        out,
        mean,
        rstd,
        eps,
        H=h,
        W=w,
        C=c,
        LAST=last,
        WIDE=tile.WIDE,
        TOTAL=tile.TOTAL,
        WINDOWS=tile.WINDOWS,
        CHANNELS=tile.CHANNELS,
        FULL=tile.is_full(h, w),
        ACTIVATION=activation,
        POOL=pool,
        ACC=launch.accumulator(x.dtype),
        num_warps=tile.warps,
    )
    return out, mean, rstd


def norm_relu_pool_backward(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    activation: str,
    pool: str,
) -> tuple[Tensor, Tensor, Tensor]:
    n, c, h, w = x.shape
    last = memory_format(x) == torch.channels_last
    tile = _tile(x, _ROOM)
    grad_x = launch.empty(x.shape, x.dtype, x.device, last)
    grad_weight = launch.empty((n, c), mean.dtype, x.device)
    grad_bias = launch.empty((n, c), mean.dtype, x.device)
    launch.start(
        norm_relu_pool_bwd_kernel,
        (n, triton.cdiv(c, tile.CHANNELS)),
        grad.contiguous(memory_format=memory_format(x)),
        x if last else x.contiguous(),
        mean,
        rstd,
        weight,
        bias,
        grad_x,
        grad_weight,
        grad_bias,
        H=h,
        W=w,
        C=c,
        LAST=last,
        WIDE=tile.WIDE,
        TOTAL=tile.TOTAL,
        WINDOWS=tile.WINDOWS,
        CHANNELS=tile.CHANNELS,
        ACTIVATION=activation,
        POOL=pool,
        ACC=launch.accumulator(x.dtype),
        num_warps=tile.warps,
    )
    return grad_x, grad_weight.sum(0), grad_bias.sum(0)


def norm_relu_pool_mean(
    x: Tensor,
    offsets: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str,
    pool: str,
) -> Tensor:
    n, c, h, w = x.shape
    tile = _tile(x, _ROOM)
    classes = offsets.shape[0] - 1
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    if pool == "none" or tile.TOTAL > tile.WINDOWS:
        # Not the last block of a network, whose images are small: two launches serve.
        out = norm_relu_pool(x, weight, bias, eps, activation, pool)[0]
        return class_means(out.flatten(1), offsets)
    last = memory_format(x) == torch.channels_last
    shares = max(1, min(_SHARES, n // max(classes, 1) // 4))
    sums = launch.empty((shares, classes, c * (h // 2) * (w // 2)), dtype, x.device)
    launch.start(
        norm_relu_pool_mean_kernel,
        (classes, triton.cdiv(c, tile.CHANNELS), shares),
        x if last else x.contiguous(),
        offsets.contiguous(),
        weight,
        bias,
        sums,
        eps,
        H=h,
        W=w,
        C=c,
        LAST=last,
        WIDE=tile.WIDE,
        WINDOWS=tile.WINDOWS,
        CHANNELS=tile.CHANNELS,
        FULL=tile.is_full(h, w),
        ACTIVATION=activation,
        POOL=pool,
        ACC=launch.accumulator(x.dtype),
        num_warps=tile.warps,
    )
    return sums.sum(0)
