"""The augmentation in plain PyTorch: the definition of correct, and the path of machines without Triton.

The functions take checked arguments on any device and in any floating-point type. They compute in float32, or in
float64 where the input is float64, and are vectorised over the rows of the table.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import table as columns
from ..numerics import memory_format, working_dtype


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
    """Read, normalise and augment images [M, C, H, W] by the rows of a table; see `fastdm.kernels.dsa`."""
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
    return x.to(dtype).contiguous(memory_format=memory_format(channels_last))


def dsa_backward(grad: Tensor, table: Tensor, group: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return the gradient of `dsa` with respect to float images: the transposed families in reversed order."""
    work = working_dtype(dtype)
    x = grad.to(work)
    rows = _rows(table, group, len(x), work)
    for is_applied, _, backward in reversed(_FAMILIES):
        x = _where(is_applied(rows), x, rows, backward)
    if x is grad:
        x = x.clone()
    return x.to(dtype).contiguous()


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
