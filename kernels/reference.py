"""Every op in plain PyTorch: the definition of correct, and the path of machines without Triton.

The functions take validated arguments (``ops.py`` checks them) on any device and in any floating-point type. They
compute in float32, or in float64 where the input is float64, and are vectorised over groups and classes.
"""

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from . import table as columns

LEAKY_SLOPE = 0.01
"""Slope of the activation "leakyrelu" below zero."""

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leakyrelu": lambda x: F.leaky_relu(x, LEAKY_SLOPE),
    "swish": F.silu,
    "sigmoid": torch.sigmoid,
}
POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "avg": lambda x: F.avg_pool2d(x, 2),
    "max": lambda x: F.max_pool2d(x, 2),
    "none": lambda x: x,
}
DRAW_STREAM = 1
"""The stream of ``uniform`` that ``draw`` reads."""


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type that an input of ``dtype`` is computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


# --- augmentation ----------------------------------------------------------------------------------------------------


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
    """Read, normalise and augment images [M, C, H, W] by the rows of a table; see ``fastdm.kernels.dsa``."""
    work = working_dtype(images.dtype)
    x = images if index is None else images[index]
    x = x.to(work)
    if not images.dtype.is_floating_point:
        assert mean is not None
        assert std is not None
        x = (x / 255 - mean.to(work)[:, None, None]) / std.to(work)[:, None, None]
    rows = _rows(table, group, len(x), work)
    for is_applied, forward, _ in _FAMILIES:
        x = _where(is_applied(rows), x, rows, forward)
    if x is images:
        x = x.clone()
    return x.to(dtype, memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def dsa_backward(grad: Tensor, table: Tensor, group: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return the gradient of ``dsa`` with respect to float images: the transposed families in reversed order."""
    work = working_dtype(dtype)
    x = grad.to(work)
    rows = _rows(table, group, len(x), work)
    for is_applied, _, backward in reversed(_FAMILIES):
        x = _where(is_applied(rows), x, rows, backward)
    if x is grad:
        x = x.clone()
    return x.to(dtype, memory_format=torch.contiguous_format)


def _rows(table: Tensor, group: Tensor | None, n: int, dtype: torch.dtype) -> Tensor:
    rows = table.to(dtype)
    return rows.expand(n, -1) if group is None else rows[group]


def _where(applied: Tensor, x: Tensor, rows: Tensor, transform: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Transform the images whose row applies the family, and leave the others exactly as they are."""
    if x.device.type != "cpu":  # Elsewhere a selection would wait for the device.
        return torch.where(applied[:, None, None, None], transform(x, rows), x)
    chosen = applied.nonzero().squeeze(1)
    if len(chosen) == 0:
        return x
    if len(chosen) == len(x):
        return transform(x, rows)
    return x.index_copy(0, chosen, transform(x[chosen], rows[chosen]))


def _pixelwise(rows: Tensor, column: int) -> Tensor:
    return rows[:, column, None, None, None]


def _is_colored(rows: Tensor) -> Tensor:
    return (rows[:, columns.BRIGHTNESS] != 0) | (rows[:, columns.SATURATION] != 1) | (rows[:, columns.CONTRAST] != 1)


def _color(x: Tensor, rows: Tensor) -> Tensor:
    x = x + _pixelwise(rows, columns.BRIGHTNESS)
    m = x.mean(1, keepdim=True)
    x = (x - m) * _pixelwise(rows, columns.SATURATION) + m
    mu = x.mean((1, 2, 3), keepdim=True)
    return (x - mu) * _pixelwise(rows, columns.CONTRAST) + mu


def _color_backward(grad: Tensor, rows: Tensor) -> Tensor:
    saturation, contrast = _pixelwise(rows, columns.SATURATION), _pixelwise(rows, columns.CONTRAST)
    return (
        contrast * saturation * grad
        + contrast * (1 - saturation) * grad.mean(1, keepdim=True)
        + (1 - contrast) * grad.mean((1, 2, 3), keepdim=True)
    )


def _is_moved(rows: Tensor) -> Tensor:
    return (
        (rows[:, columns.SHIFT_ROWS] != 0)
        | (rows[:, columns.SHIFT_COLS] != 0)
        | (rows[:, columns.CUTOUT_BOTTOM] >= rows[:, columns.CUTOUT_TOP])
        | (rows[:, columns.FLIP] != 0)
    )


def _source(rows: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return for every output pixel [n, 1, H * W] of crop, cutout and flip its input pixel, and whether it has one."""
    at = rows.to(torch.int64)[:, :, None]
    i = torch.arange(height, device=rows.device).expand(len(rows), height)
    j = torch.arange(width, device=rows.device).expand(len(rows), width)
    j = torch.where(at[:, columns.FLIP] != 0, width - 1 - j, j)
    masked_row = (i >= at[:, columns.CUTOUT_TOP]) & (i <= at[:, columns.CUTOUT_BOTTOM])
    masked_col = (j >= at[:, columns.CUTOUT_LEFT]) & (j <= at[:, columns.CUTOUT_RIGHT])
    i, j = i + at[:, columns.SHIFT_ROWS], j + at[:, columns.SHIFT_COLS]
    inside_row, inside_col = (i >= 0) & (i < height), (j >= 0) & (j < width)
    pixel = i.clamp(0, height - 1)[:, :, None] * width + j.clamp(0, width - 1)[:, None, :]
    valid = inside_row[:, :, None] & inside_col[:, None, :] & ~(masked_row[:, :, None] & masked_col[:, None, :])
    return pixel.flatten(1)[:, None], valid.flatten(1)[:, None]


def _move(x: Tensor, rows: Tensor) -> Tensor:
    pixel, valid = _source(rows, *x.shape[2:])
    moved = x.flatten(2).gather(2, pixel.expand(-1, x.shape[1], -1))
    return torch.where(valid, moved, 0).view(x.shape)


def _move_backward(grad: Tensor, rows: Tensor) -> Tensor:
    pixel, valid = _source(rows, *grad.shape[2:])
    kept = torch.where(valid, grad.flatten(2), 0)
    # Valid output pixels have distinct input pixels, so every sum has one term that is not zero.
    return torch.zeros_like(kept).scatter_add_(2, pixel.expand_as(kept), kept).view(grad.shape)


def _is_scaled(rows: Tensor) -> Tensor:
    return (rows[:, columns.SCALE_X] != 1) | (rows[:, columns.SCALE_Y] != 1)


def _scaling(rows: Tensor) -> Tensor:
    zero = torch.zeros_like(rows[:, 0])
    entries = (rows[:, columns.SCALE_X], zero, zero, zero, rows[:, columns.SCALE_Y], zero)
    return torch.stack(entries, 1).view(-1, 2, 3)


def _is_rotated(rows: Tensor) -> Tensor:
    return (rows[:, columns.ROTATE_COS] != 1) | (rows[:, columns.ROTATE_SIN] != 0)


def _rotation(rows: Tensor) -> Tensor:
    cos, sin, zero = rows[:, columns.ROTATE_COS], rows[:, columns.ROTATE_SIN], torch.zeros_like(rows[:, 0])
    return torch.stack((cos, -sin, zero, sin, cos, zero), 1).view(-1, 2, 3)


def _sample(theta: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    def forward(x: Tensor, rows: Tensor) -> Tensor:
        grid = F.affine_grid(theta(rows), list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    return forward


def _sample_backward(theta: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    def backward(grad: Tensor, rows: Tensor) -> Tensor:
        grid = F.affine_grid(theta(rows), list(grad.shape), align_corners=False)
        # The sampled image only lends its shape: grid_sample is linear in it.
        sampled: Tensor = torch.ops.aten.grid_sampler_2d_backward(grad, grad, grid, 0, 0, False, [True, False])[0]
        return sampled

    return backward


_FAMILIES = (
    (_is_colored, _color, _color_backward),
    (_is_moved, _move, _move_backward),
    (_is_scaled, _sample(_scaling), _sample_backward(_scaling)),
    (_is_rotated, _sample(_rotation), _sample_backward(_rotation)),
)


# --- norm, activation, pool ------------------------------------------------------------------------------------------


def norm_relu_pool(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, activation: str, pool: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the pooled output and the mean and 1 / deviation [N, C] of every channel; see the public function."""
    # Contiguous, because PyTorch computes E[x²] − mean² of channels-last images, which loses digits.
    wide = x.to(working_dtype(x.dtype), memory_format=torch.contiguous_format)
    n, c, h, w = x.shape
    scale, shift = (None if t is None else t.to(wide.dtype) for t in (weight, bias))
    normed, mean, rstd = torch.native_group_norm(wide, scale, shift, n, c, h * w, c, eps)
    out = POOLS[pool](ACTIVATIONS[activation](normed))
    return out.to(x.dtype, memory_format=memory_format(x)), mean, rstd


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
    """Return the gradients to x, weight and bias (the latter two [C], also where the affine part is absent)."""
    work = working_dtype(x.dtype)
    normed = (x.to(work) - mean[:, :, None, None]) * rstd[:, :, None, None]
    scaled = _affine(normed, weight, bias)
    grad_scaled = _pool_backward(grad.to(work), ACTIVATIONS[activation](scaled), pool)
    grad_scaled = grad_scaled * _slope(scaled, activation)
    grad_weight, grad_bias = (grad_scaled * normed).sum((0, 2, 3)), grad_scaled.sum((0, 2, 3))
    g = grad_scaled if weight is None else grad_scaled * weight.to(work)[:, None, None]
    centred = g - g.mean((2, 3), keepdim=True) - normed * (g * normed).mean((2, 3), keepdim=True)
    grad_x = (centred * rstd[:, :, None, None]).to(x.dtype, memory_format=memory_format(x))
    return grad_x, grad_weight, grad_bias


def norm_relu_pool_mean(
    x: Tensor,
    offsets: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str,
    pool: str,
) -> Tensor:
    """Return the class means of the pooled output, flattened in NCHW order; see the public function."""
    out = norm_relu_pool(x.to(working_dtype(x.dtype)), weight, bias, eps, activation, pool)[0]
    return class_means(out.flatten(1), offsets)


def conv_norm_relu_pool(
    x: Tensor, weight: Tensor, padding: int, eps: float, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the block's output, the convolution's (empty unless it shall be kept), and the norm's mean and rstd."""
    conv = F.conv2d(x, weight, padding=padding).contiguous(memory_format=torch.channels_last)
    out, mean, rstd = norm_relu_pool(conv, None, None, eps, "relu", "avg")
    return out, conv if keep else conv[:0].clone(memory_format=torch.channels_last), mean, rstd


def conv_norm_relu_pool_backward(
    grad: Tensor, conv: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, padding: int
) -> Tensor:
    """Return the gradient to x."""
    grad_conv = norm_relu_pool_backward(grad, conv, mean, rstd, None, None, "relu", "avg")[0]
    grad_x = F.conv_transpose2d(grad_conv, weight, padding=padding)
    return grad_x.contiguous(memory_format=torch.channels_last)


def memory_format(x: Tensor) -> torch.memory_format:
    """Return the format of a 4-d tensor; contiguous where both fit or neither does."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def _affine(normed: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    scaled = normed if weight is None else normed * weight.to(normed.dtype)[:, None, None]
    return scaled if bias is None else scaled + bias.to(normed.dtype)[:, None, None]


def _slope(scaled: Tensor, activation: str) -> Tensor:
    """Return the derivative of the activation."""
    if activation == "relu":
        return (scaled > 0).to(scaled.dtype)
    if activation == "leakyrelu":
        return torch.where(scaled > 0, 1.0, LEAKY_SLOPE).to(scaled.dtype)
    s = scaled.sigmoid()
    return s * (1 - s) if activation == "sigmoid" else s * (1 + scaled * (1 - s))


def _pool_backward(grad: Tensor, activated: Tensor, pool: str) -> Tensor:
    """Spread the gradient of the pooled output over the activations; an odd last row or column gets none."""
    if pool == "none":
        return grad
    height, width = activated.shape[2:]
    spread = grad.repeat_interleave(2, 2).repeat_interleave(2, 3)
    if pool == "avg":
        spread = spread / 4
    else:
        _, winner = F.max_pool2d(activated, 2, return_indices=True)
        spread = torch.zeros_like(activated).flatten(2).scatter_(2, winner.flatten(2), grad.flatten(2))
        return spread.view(activated.shape)
    return F.pad(spread, (0, width - spread.shape[3], 0, height - spread.shape[2]))


# --- class means -----------------------------------------------------------------------------------------------------


def class_means(features: Tensor, offsets: Tensor) -> Tensor:
    """Return the means [classes, D] of the rows of each class; 0 for a class without rows."""
    sizes = offsets.diff()
    owner = torch.repeat_interleave(sizes, output_size=len(features))
    sums = features.new_zeros(len(sizes), features.shape[1]).index_add_(0, owner, features)
    return sums / sizes.clamp(min=1)[:, None]


def class_mean_difference(
    real: Tensor, synthetic: Tensor, real_offsets: Tensor, synthetic_offsets: Tensor, empty: str
) -> tuple[Tensor, Tensor]:
    """Return Σ_c ‖mean of real[c] − mean of synthetic[c]‖² and the differences [classes, D]."""
    work = working_dtype(real.dtype)
    difference = class_means(real.to(work), real_offsets) - class_means(synthetic.to(work), synthetic_offsets)
    full = (real_offsets.diff() > 0) & (synthetic_offsets.diff() > 0)
    difference = torch.where(full[:, None], difference, 0)
    return difference.square().sum(), difference


def class_mean_difference_backward(
    grad: Tensor, difference: Tensor, synthetic_offsets: Tensor, rows: int, dtype: torch.dtype
) -> Tensor:
    """Return the gradient [rows, D] to the synthetic features: −2 · grad · difference / class size, for every row."""
    sizes = synthetic_offsets.diff()
    owner = torch.repeat_interleave(sizes, output_size=rows)
    return (difference * (-2 * grad / sizes.clamp(min=1))[:, None])[owner].to(dtype)


# --- random numbers --------------------------------------------------------------------------------------------------

_MASK = 0xFFFFFFFF


def philox(key: Sequence[Tensor | int], counter: Sequence[Tensor | int], rounds: int = 10) -> tuple[Tensor, ...]:
    """Philox 4×32 (Salmon et al., 2011) on words stored in int64 tensors: four words out of two and four."""
    k0, k1 = key
    c0, c1, c2, c3 = counter
    for _ in range(rounds):
        # A product of two 32-bit words wraps in int64, but its 64 bits are right.
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (p1 >> 32) & _MASK ^ c1 ^ k0, p1 & _MASK, (p0 >> 32) & _MASK ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return cast(tuple[Tensor, ...], (c0, c1, c2, c3))


def random_words(key: Tensor, rows: Tensor, n: int, stream: int) -> Tensor:
    """Return int64 [len(rows), n]: 32-bit words, word j of row r from the counter (step, r, stream, j // 4)."""
    seed, step = key[0], key[1]
    block = torch.arange((n + 3) // 4, device=key.device)
    counter = (step & _MASK, rows[:, None] & _MASK, torch.full_like(block, stream), block)
    words = philox((seed & _MASK, (seed >> 32) & _MASK), counter)
    return torch.stack([w.expand(len(rows), -1) for w in words], -1).flatten(1)[:, :n]


def uniform(key: Tensor, rows: Tensor, n: int, stream: int) -> Tensor:
    """Return float32 [len(rows), n]: the upper 24 bits of each word · 2⁻²⁴."""
    return (random_words(key, rows, n, stream) >> 8).to(torch.float32) * 2.0**-24


def draw(key: Tensor, class_offsets: Tensor, n: int, classes: Tensor, replace: bool = False) -> Tensor:
    """Draw n distinct images of each class by Floyd's algorithm; see the public function.

    Floyd's candidate t_i ∈ [0, m − n + i] is replaced by m − n + i where it was taken before. It was taken if an
    earlier candidate has the same value, or if it is the replacement of an earlier candidate i' = t_i − (m − n) that
    was itself replaced. So "replaced" runs along the chain i → i', which log₂ n rounds of pointer jumping resolve
    for all images and classes at once.
    """
    start, size = class_offsets[classes], class_offsets.diff()[classes]
    if replace:
        picked = (random_words(key, classes, n, DRAW_STREAM) * size[:, None]) >> 32
        return picked.sort(dim=1).values + start[:, None]
    i = torch.arange(n, device=key.device)
    limit = (size - n)[:, None] + i
    candidate = (random_words(key, classes, n, DRAW_STREAM) * (limit + 1)) >> 32
    ordered, order = candidate.sort(dim=1, stable=True)
    repeated = torch.zeros_like(ordered, dtype=torch.bool)
    repeated[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    replaced = torch.zeros_like(repeated).scatter_(1, order, repeated)
    link = candidate - (size - n)[:, None]
    link = torch.where((link >= 0) & (link < i), link, i)
    for _ in range((n - 1).bit_length()):
        replaced = replaced | replaced.gather(1, link)
        link = link.gather(1, link)
    return torch.where(replaced, limit, candidate).sort(dim=1).values + start[:, None]
