"""The gradient of `triton_conv.py`'s block to its images, as Triton kernels that compute the convolution again.

With the patches P [pixels, 9 · channels] of an image and the weights W, the convolution is y = P W, and the norm makes
z = (y − mean) · rstd of it. Let dz be the gradient before the rectifier, a quarter of the pooled pixel's where z > 0
and 0 elsewhere, and let b and a be the means of dz and dz · z over the image's pixels. Then

    dy = rstd · (dz − b − a · z)   and   dP = dy Wᵀ = (dz · rstd) Wᵀ + P Q + q

with the matrix Q = −W diag(a · rstd²) Wᵀ and the row q = (a · rstd² · mean − b · rstd) Wᵀ of each image. As a last
number of each patch is 1, q is a row of Q, and the sums of dz and dz · z are products with what dzᵀ P is. So all that
is done for each number of the convolution is a comparison. Three kernels follow each other:

1. `conv_form_kernel`: Q, which is linear in b and a, so that each program adds up what its own pixels contribute;
2. `conv_patches_gradient_kernel`: dP, in float32;
3. `fold_kernel`: the gradient to each pixel, the sum over the nine patches it lies in.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import launch

_SHARES = 8
"""Programs among which the pixels of an image are divided for Q, at most."""
_FORM_PIXELS = 64
_FORM_CHANNELS = 64
_FORM_WARPS = 4
_PIXELS = 128
_CHANNELS = 32
_WARPS = 8
"""Pixels and output channels of a program at a time, so few that all of them stay in registers."""
_FOLD_ELEMENTS = 512
_FOLD_WARPS = 4


@triton.jit
def _patches(x_ptr, pixel, IMAGE: tl.constexpr, OUT: tl.constexpr, PADDING: tl.constexpr, TAPS: tl.constexpr):
    """Load the patches of output pixels, [pixels, TAPS] in the order (row, column, channel), then a 1; 0 elsewhere."""
    H: tl.constexpr = IMAGE[0]
    W: tl.constexpr = IMAGE[1]
    C: tl.constexpr = IMAGE[2]
    tap = tl.arange(0, TAPS)
    inside = (pixel < OUT[0] * OUT[1])[:, None]
    row = (pixel // OUT[1])[:, None] + (tap // (3 * C) - PADDING)[None, :]
    column = (pixel % OUT[1])[:, None] + (tap // C % 3 - PADDING)[None, :]
    known = inside & (tap < 9 * C)[None, :] & (row >= 0) & (row < H) & (column >= 0) & (column < W)
    patches = tl.load(x_ptr + (row * W + column) * C + (tap % C)[None, :], mask=known, other=0)
    return tl.where(inside & (tap == 9 * C)[None, :], 1.0, patches).to(x_ptr.dtype.element_ty)


@triton.jit
def _weights(weight_ptr, channel, OUT: tl.constexpr, NUMBERS: tl.constexpr, TAPS: tl.constexpr):
    """Load the weights [channels, TAPS] of some output channels."""
    tap = tl.arange(0, TAPS)
    mask = (channel < OUT[2])[:, None] & (tap < NUMBERS)[None, :]
    return tl.load(weight_ptr + channel[:, None] * NUMBERS + tap[None, :], mask=mask, other=0)


@triton.jit
def _rectified_gradient(grad_ptr, pixel, channel, patches, weight, mean, OUT: tl.constexpr):
    """Return 4 · dz [pixels, channels]: the gradient to the pooled pixel, where the convolution exceeds its mean."""
    i = pixel // OUT[1] // 2
    j = pixel % OUT[1] // 2
    # An odd last row or column is not pooled.
    mask = ((i < OUT[0] // 2) & (j < OUT[1] // 2))[:, None] & (channel < OUT[2])[None, :]
    g = tl.load(grad_ptr + ((i * (OUT[1] // 2) + j) * OUT[2])[:, None] + channel[None, :], mask=mask, other=0)
    y = tl.dot(patches, tl.trans(weight), input_precision="ieee")
    return tl.where(y > mean[None, :], g, 0.0).to(patches.dtype)


@triton.jit
def _halves(x, DTYPE: tl.constexpr):
    """Return the float32 matrix x as (coarse + fine) · scale, both of a DTYPE that holds half of its digits."""
    scale = tl.cast(1.0, tl.float32)
    if DTYPE.is_fp16():  # which is 0 below 2⁻²⁴
        largest = tl.max(tl.abs(x))  # in one reduction: Triton 3.6 fails at two for sm_100
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
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    NUMBERS: tl.constexpr = 9 * IMAGE[2]
    COUNT: tl.constexpr = OUT[0] * OUT[1]
    QUARTER: tl.constexpr = 0.25 / COUNT
    n = (tl.program_id(0) // SHARES).to(tl.int64)
    x_ptr += n * (IMAGE[0] * IMAGE[1] * IMAGE[2])
    grad_ptr += n * (OUT[0] // 2 * (OUT[1] // 2) * OUT[2])
    is_one = (tl.arange(0, TAPS) == NUMBERS)[None, :]
    form = tl.zeros((TAPS, TAPS), tl.float32)
    for start in range(tl.program_id(0) % SHARES * PIXELS, COUNT, SHARES * PIXELS):
        pixel = start + tl.arange(0, PIXELS)
        patches = _patches(x_ptr, pixel, IMAGE, OUT, PADDING, TAPS)
        for first in range(0, OUT[2], CHANNELS):
            channel = first + tl.arange(0, CHANNELS)
            weight = _weights(weight_ptr, channel, OUT, NUMBERS, TAPS)
            mean = tl.load(mean_ptr + n * OUT[2] + channel, mask=channel < OUT[2], other=0)
            rstd = tl.load(rstd_ptr + n * OUT[2] + channel, mask=channel < OUT[2], other=0)
            g = _rectified_gradient(grad_ptr, pixel, channel, patches, weight, mean, OUT)
            sums = tl.dot(tl.trans(g), patches, input_precision="ieee")
            # With the 1 of a patch goes the mean.
            wide = weight.to(tl.float32)
            a = tl.sum(sums * tl.where(is_one, -mean[:, None], wide), 1) * (QUARTER * rstd * rstd * rstd)
            b = tl.sum(tl.where(is_one, sums, 0.0), 1) * (QUARTER * rstd)
            left = _halves(tl.where(is_one, (a * mean - b)[:, None], wide * -a[:, None]), weight.dtype)
            product = tl.dot(tl.trans(left[1]), weight, input_precision="ieee")
            form += tl.dot(tl.trans(left[0]), weight, product, input_precision="ieee") * left[2]
    tap = tl.arange(0, TAPS)
    form_ptr += tl.program_id(0).to(tl.int64) * (TAPS * TAPS)
    tl.store(form_ptr + tap[:, None] * TAPS + tap[None, :], form)


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
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    NUMBERS: tl.constexpr = 9 * IMAGE[2]
    COUNT: tl.constexpr = OUT[0] * OUT[1]
    TILES: tl.constexpr = (COUNT + PIXELS - 1) // PIXELS
    n = (tl.program_id(0) // TILES).to(tl.int64)
    x_ptr += n * (IMAGE[0] * IMAGE[1] * IMAGE[2])
    grad_ptr += n * (OUT[0] // 2 * (OUT[1] // 2) * OUT[2])
    form_ptr += n * (SHARES * TAPS * TAPS)
    out_ptr += n * (COUNT * TAPS)
    pixel = tl.program_id(0) % TILES * PIXELS + tl.arange(0, PIXELS)
    tap = tl.arange(0, TAPS)
    patches = _patches(x_ptr, pixel, IMAGE, OUT, PADDING, TAPS)
    total = tl.zeros((PIXELS, TAPS), tl.float32)
    for first in range(0, OUT[2], CHANNELS):
        channel = first + tl.arange(0, CHANNELS)
        weight = _weights(weight_ptr, channel, OUT, NUMBERS, TAPS)
        mean = tl.load(mean_ptr + n * OUT[2] + channel, mask=channel < OUT[2], other=0)
        rstd = tl.load(rstd_ptr + n * OUT[2] + channel, mask=channel < OUT[2], other=0)
        g = _rectified_gradient(grad_ptr, pixel, channel, patches, weight, mean, OUT)
        scaled = (weight.to(tl.float32) * rstd[:, None]).to(weight.dtype)
        total = tl.dot(g, scaled, total, input_precision="ieee")
    square = tap[:, None] * TAPS + tap[None, :]
    form = tl.load(form_ptr + square)
    for share in tl.static_range(1, SHARES):
        form += tl.load(form_ptr + share * (TAPS * TAPS) + square)
    form = _halves(form, patches.dtype)
    product = tl.dot(patches, form[1], input_precision="ieee")
    product = tl.dot(patches, form[0], product, input_precision="ieee")
    out = total * 0.25 + product * form[2]
    tl.store(out_ptr + (pixel * TAPS)[:, None] + tap[None, :], out, mask=(pixel < COUNT)[:, None])


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
    pixels = out[0] * out[1]
    taps = triton.next_power_of_2(9 * c + 1)
    shares = min(_SHARES, triton.cdiv(pixels, _FORM_PIXELS))
    form = launch.empty((n, shares, taps, taps), torch.float32, x.device)
    patches = launch.empty((n, pixels, taps), torch.float32, x.device)
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
    size = {"PIXELS": _FORM_PIXELS, "CHANNELS": _FORM_CHANNELS, "num_warps": _FORM_WARPS}
    launch.start(conv_form_kernel, (n * shares,), **size, **arguments)
    size = {"PIXELS": _PIXELS, "CHANNELS": _CHANNELS, "num_warps": _WARPS}
    grid = (n * triton.cdiv(pixels, _PIXELS),)
    launch.start(conv_patches_gradient_kernel, grid, out_ptr=patches, **size, **arguments)
    grid = (n * triton.cdiv(h * w * c, _FOLD_ELEMENTS),)
    size = {"ELEMENTS": _FOLD_ELEMENTS, "num_warps": _FOLD_WARPS}
    launch.start(fold_kernel, grid, patches_ptr=patches, out_ptr=grad_x, **size, **shape)
    return grad_x
