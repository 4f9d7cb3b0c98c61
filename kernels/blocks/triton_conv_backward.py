"""The gradient of `triton_conv.py`'s block to its images, as Triton kernels that compute the convolution again.

With the patches P [pixels, 9 · channels] of an image and the weights W, the convolution is y = P W, and the norm makes
z = (y − mean) · rstd of it. Let dz be the gradient before the rectifier, a quarter of the pooled pixel's where z > 0
and 0 elsewhere, and let b and a be the means of dz and dz · z over the image's pixels. Then

    dy = rstd · (dz − b − a · z)   and   dP = dy Wᵀ = (dz · rstd) Wᵀ + P Q + q

with the matrix Q = −W diag(a · rstd²) Wᵀ and the row q = (a · rstd² · mean − b · rstd) Wᵀ of each image. As a last
number of each patch is 1, q is a row of Q. Three kernels follow each other:

1. `conv_form_kernel`: Q, which is linear in b and a, so that each program adds up what its own pixels contribute;
2. `conv_patches_gradient_kernel`: dP, in float32;
3. `fold_kernel`: the gradient to each pixel, the sum over the nine patches it lies in.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import launch

_SHARES = 4
"""Programs among which the pixels of an image are divided for Q, at most."""
_FORM_WINDOWS = 64
_FORM_CHANNELS = 32
_FORM_WARPS = 4
_WINDOWS = 64
_CHANNELS = 32
_WARPS = 4
"""Pooling windows and output channels of a program at a time, so few that all of them stay in registers."""
_FOLD_ELEMENTS = 512
_FOLD_WARPS = 4


@triton.jit
def _patches(x_ptr, i, j, inside, IMAGE: tl.constexpr, PADDING: tl.constexpr, TAPS: tl.constexpr):
    """Load the patches of output pixels (i, j), [pixels, TAPS] in the order (row, column, channel), then a 1."""
    H: tl.constexpr = IMAGE[0]
    W: tl.constexpr = IMAGE[1]
    C: tl.constexpr = IMAGE[2]
    tap = tl.arange(0, TAPS)
    row = i[:, None] + (tap // (3 * C) - PADDING)[None, :]
    column = j[:, None] + (tap // C % 3 - PADDING)[None, :]
    known = inside[:, None] & (tap < 9 * C)[None, :] & (row >= 0) & (row < H) & (column >= 0) & (column < W)
    patches = tl.load(x_ptr + (row * W + column) * C + (tap % C)[None, :], mask=known, other=0)
    return tl.where((tap == 9 * C)[None, :], 1.0, patches).to(x_ptr.dtype.element_ty)


@triton.jit
def _window_patches(x_ptr, i, j, inside, IMAGE: tl.constexpr, PADDING: tl.constexpr, TAPS: tl.constexpr):
    """Load the patches of the four pixels of windows whose first is (i, j)."""
    p_0 = _patches(x_ptr, i, j, inside, IMAGE, PADDING, TAPS)
    p_1 = _patches(x_ptr, i, j + 1, inside, IMAGE, PADDING, TAPS)
    p_2 = _patches(x_ptr, i + 1, j, inside, IMAGE, PADDING, TAPS)
    p_3 = _patches(x_ptr, i + 1, j + 1, inside, IMAGE, PADDING, TAPS)
    return p_0, p_1, p_2, p_3


@triton.jit
def _load_channels(
    weight_ptr, mean_ptr, rstd_ptr, channel, OUT: tl.constexpr, NUMBERS: tl.constexpr, TAPS: tl.constexpr
):
    """Load the weights [channels, TAPS] of some output channels, and their mean and rstd."""
    tap = tl.arange(0, TAPS)
    known = channel < OUT[2]
    mask = known[:, None] & (tap < NUMBERS)[None, :]
    weight = tl.load(weight_ptr + channel[:, None] * NUMBERS + tap[None, :], mask=mask, other=0)
    return weight, tl.load(mean_ptr + channel, mask=known, other=0), tl.load(rstd_ptr + channel, mask=known, other=0)


@triton.jit
def _add_positive(patches, weight, mean, count, total):
    """Add, where the convolution exceeds its mean, 1 to `count` and the excess to `total`."""
    excess = tl.dot(patches, tl.trans(weight), input_precision="ieee") - mean[None, :]
    return count + tl.where(excess > 0, 1.0, 0.0), total + tl.maximum(excess, 0.0)


@triton.jit
def _halves(x, DTYPE: tl.constexpr):
    """Return the float32 matrix x as (coarse + fine) · scale, both of a DTYPE that holds half of its digits."""
    largest = tl.max(tl.max(tl.abs(x), 1), 0)
    scale = tl.where(largest > 0, largest, 1.0)
    x /= scale
    coarse = x.to(DTYPE)
    return coarse, (x - coarse.to(tl.float32)).to(DTYPE), scale


@triton.jit
def conv_form_kernel(
    grad_ptr,
    x_ptr,
    weight_ptr,
    mean_ptr,
    rstd_ptr,
    form_ptr,
    IMAGE: tl.constexpr,
    OUT: tl.constexpr,
    PADDING: tl.constexpr,
    TAPS: tl.constexpr,
    SHARES: tl.constexpr,
    WINDOWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    NUMBERS: tl.constexpr = 9 * IMAGE[2]
    WIDE: tl.constexpr = OUT[1] // 2
    COUNT: tl.constexpr = OUT[0] // 2 * WIDE
    QUARTER: tl.constexpr = 0.25 / (OUT[0] * OUT[1])
    n = (tl.program_id(0) // SHARES).to(tl.int64)
    x_ptr += n * (IMAGE[0] * IMAGE[1] * IMAGE[2])
    grad_ptr += n * (COUNT * OUT[2])
    tap = tl.arange(0, TAPS)
    form = tl.zeros((TAPS, TAPS), tl.float32)
    for start in range(tl.program_id(0) % SHARES * WINDOWS, COUNT, SHARES * WINDOWS):
        window = start + tl.arange(0, WINDOWS)
        inside = window < COUNT
        p = _window_patches(x_ptr, window // WIDE * 2, window % WIDE * 2, inside, IMAGE, PADDING, TAPS)
        for first in range(0, OUT[2], CHANNELS):
            channel = first + tl.arange(0, CHANNELS)
            weight, mean, rstd = _load_channels(
                weight_ptr, mean_ptr + n * OUT[2], rstd_ptr + n * OUT[2], channel, OUT, NUMBERS, TAPS
            )
            mask = inside[:, None] & (channel < OUT[2])[None, :]
            g = tl.load(grad_ptr + window[:, None] * OUT[2] + channel[None, :], mask=mask, other=0).to(tl.float32)
            count = tl.zeros((WINDOWS, CHANNELS), tl.float32)
            total = tl.zeros((WINDOWS, CHANNELS), tl.float32)
            count, total = _add_positive(p[0], weight, mean, count, total)
            count, total = _add_positive(p[1], weight, mean, count, total)
            count, total = _add_positive(p[2], weight, mean, count, total)
            count, total = _add_positive(p[3], weight, mean, count, total)
            b = tl.sum(g * count, 0) * QUARTER * rstd
            a = tl.sum(g * total, 0) * QUARTER * rstd * rstd * rstd
            left = weight.to(tl.float32) * -a[:, None]
            left = _halves(tl.where((tap == NUMBERS)[None, :], (a * mean - b)[:, None], left), weight.dtype)
            product = tl.dot(tl.trans(left[1]), weight, input_precision="ieee")
            form += tl.dot(tl.trans(left[0]), weight, product, input_precision="ieee") * left[2]
    form_ptr += tl.program_id(0).to(tl.int64) * (TAPS * TAPS)
    tl.store(form_ptr + tap[:, None] * TAPS + tap[None, :], form)


@triton.jit
def _add_rectified(patches, weight, mean, g, scaled, total):
    """Add the share of dP, times 4, that comes through the rectifier, of some output channels."""
    is_positive = tl.dot(patches, tl.trans(weight), input_precision="ieee") > mean[None, :]
    return tl.dot(tl.where(is_positive, g, 0.0).to(g.dtype), scaled, total, input_precision="ieee")


@triton.jit
def _load_form(form_ptr, SHARES: tl.constexpr, TAPS: tl.constexpr, DTYPE: tl.constexpr):
    tap = tl.arange(0, TAPS)
    offset = tap[:, None] * TAPS + tap[None, :]
    form = tl.load(form_ptr + offset)
    for share in tl.static_range(1, SHARES):
        form += tl.load(form_ptr + share * (TAPS * TAPS) + offset)
    return _halves(form, DTYPE)


@triton.jit
def _store_patches(out_ptr, patches, total, form, i, j, inside, OUT: tl.constexpr, TAPS: tl.constexpr):
    product = tl.dot(patches, form[1], input_precision="ieee")
    product = tl.dot(patches, form[0], product, input_precision="ieee")
    mask = inside & (i < OUT[0]) & (j < OUT[1])
    offset = ((i * OUT[1] + j) * TAPS)[:, None] + tl.arange(0, TAPS)[None, :]
    tl.store(out_ptr + offset, total * 0.25 + product * form[2], mask=mask[:, None])


@triton.jit
def conv_patches_gradient_kernel(
    grad_ptr,
    x_ptr,
    weight_ptr,
    mean_ptr,
    rstd_ptr,
    form_ptr,
    out_ptr,
    IMAGE: tl.constexpr,
    OUT: tl.constexpr,
    PADDING: tl.constexpr,
    TAPS: tl.constexpr,
    SHARES: tl.constexpr,
    WINDOWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    NUMBERS: tl.constexpr = 9 * IMAGE[2]
    # With the last row and column of an odd size, which are not pooled.
    WIDE: tl.constexpr = (OUT[1] + 1) // 2
    COUNT: tl.constexpr = (OUT[0] + 1) // 2 * WIDE
    TILES: tl.constexpr = (COUNT + WINDOWS - 1) // WINDOWS
    n = (tl.program_id(0) // TILES).to(tl.int64)
    x_ptr += n * (IMAGE[0] * IMAGE[1] * IMAGE[2])
    grad_ptr += n * (OUT[0] // 2 * (OUT[1] // 2) * OUT[2])
    out_ptr += n * (OUT[0] * OUT[1] * TAPS)
    window = tl.program_id(0) % TILES * WINDOWS + tl.arange(0, WINDOWS)
    inside = window < COUNT
    i = window // WIDE
    j = window % WIDE
    p = _window_patches(x_ptr, i * 2, j * 2, inside, IMAGE, PADDING, TAPS)
    is_pooled = (i < OUT[0] // 2) & (j < OUT[1] // 2)
    pooled = grad_ptr + ((i * (OUT[1] // 2) + j) * OUT[2])[:, None]
    t_0 = tl.zeros((WINDOWS, TAPS), tl.float32)
    t_1 = tl.zeros((WINDOWS, TAPS), tl.float32)
    t_2 = tl.zeros((WINDOWS, TAPS), tl.float32)
    t_3 = tl.zeros((WINDOWS, TAPS), tl.float32)
    for first in range(0, OUT[2], CHANNELS):
        channel = first + tl.arange(0, CHANNELS)
        weight, mean, rstd = _load_channels(
            weight_ptr, mean_ptr + n * OUT[2], rstd_ptr + n * OUT[2], channel, OUT, NUMBERS, TAPS
        )
        g = tl.load(pooled + channel[None, :], mask=is_pooled[:, None] & (channel < OUT[2])[None, :], other=0)
        scaled = (weight.to(tl.float32) * rstd[:, None]).to(weight.dtype)
        t_0 = _add_rectified(p[0], weight, mean, g, scaled, t_0)
        t_1 = _add_rectified(p[1], weight, mean, g, scaled, t_1)
        t_2 = _add_rectified(p[2], weight, mean, g, scaled, t_2)
        t_3 = _add_rectified(p[3], weight, mean, g, scaled, t_3)
    form = _load_form(form_ptr + n * (SHARES * TAPS * TAPS), SHARES, TAPS, x_ptr.dtype.element_ty)
    _store_patches(out_ptr, p[0], t_0, form, i * 2, j * 2, inside, OUT, TAPS)
    _store_patches(out_ptr, p[1], t_1, form, i * 2, j * 2 + 1, inside, OUT, TAPS)
    _store_patches(out_ptr, p[2], t_2, form, i * 2 + 1, j * 2, inside, OUT, TAPS)
    _store_patches(out_ptr, p[3], t_3, form, i * 2 + 1, j * 2 + 1, inside, OUT, TAPS)


@triton.jit
def fold_kernel(
    patches_ptr,
    out_ptr,
    IMAGE: tl.constexpr,
    OUT: tl.constexpr,
    PADDING: tl.constexpr,
    TAPS: tl.constexpr,
    ELEMENTS: tl.constexpr,
):
    W: tl.constexpr = IMAGE[1]
    C: tl.constexpr = IMAGE[2]
    COUNT: tl.constexpr = IMAGE[0] * W * C
    TILES: tl.constexpr = (COUNT + ELEMENTS - 1) // ELEMENTS
    n = (tl.program_id(0) // TILES).to(tl.int64)
    patches_ptr += n * (OUT[0] * OUT[1] * TAPS)
    element = tl.program_id(0) % TILES * ELEMENTS + tl.arange(0, ELEMENTS)
    inside = element < COUNT
    total = tl.zeros((ELEMENTS,), tl.float32)
    for tap in tl.static_range(9):
        i = element // (W * C) + (PADDING - tap // 3)
        j = element // C % W + (PADDING - tap % 3)
        known = inside & (i >= 0) & (i < OUT[0]) & (j >= 0) & (j < OUT[1])
        total += tl.load(patches_ptr + (i * OUT[1] + j) * TAPS + (tap * C + element % C), mask=known, other=0)
    tl.store(out_ptr + n * COUNT + element, total.to(out_ptr.dtype.element_ty), mask=inside)


def conv_norm_relu_pool_backward_x(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, padding: int
) -> Tensor:
    n, c, h, w = x.shape
    out = (h + 2 * padding - 2, w + 2 * padding - 2, len(weight))
    taps = triton.next_power_of_2(9 * c + 1)
    shares = min(_SHARES, triton.cdiv((out[0] // 2) * (out[1] // 2), _FORM_WINDOWS))
    windows = ((out[0] + 1) // 2) * ((out[1] + 1) // 2)
    form = launch.empty((n, shares, taps, taps), torch.float32, x.device)
    patches = launch.empty((n, *out[:2], taps), torch.float32, x.device)
    grad_x = launch.empty(x.shape, x.dtype, x.device, True)
    shape = {"IMAGE": (h, w, c), "OUT": out, "PADDING": padding, "TAPS": taps}
    arguments = {
        "grad_ptr": grad.contiguous(memory_format=torch.channels_last),
        "x_ptr": x.contiguous(memory_format=torch.channels_last),
        "weight_ptr": weight.contiguous(memory_format=torch.channels_last),
        "mean_ptr": mean,
        "rstd_ptr": rstd,
        "form_ptr": form,
        "SHARES": shares,
        **shape,
    }
    size = {"WINDOWS": _FORM_WINDOWS, "CHANNELS": _FORM_CHANNELS, "num_warps": _FORM_WARPS}
    launch.start(conv_form_kernel, (n * shares,), **size, **arguments)
    size = {"WINDOWS": _WINDOWS, "CHANNELS": _CHANNELS, "num_warps": _WARPS}
    grid = (n * triton.cdiv(windows, _WINDOWS),)
    launch.start(conv_patches_gradient_kernel, grid, out_ptr=patches, **size, **arguments)
    grid = (n * triton.cdiv(h * w * c, _FOLD_ELEMENTS),)
    size = {"ELEMENTS": _FOLD_ELEMENTS, "num_warps": _FOLD_WARPS}
    launch.start(fold_kernel, grid, patches_ptr=patches, out_ptr=grad_x, **size, **shape)
    return grad_x
