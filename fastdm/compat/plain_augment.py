"""The families of `DiffAugment` in plain PyTorch, for what the kernels do not take: any channels, dtype and strength.

Every function takes images [N, C, H, W] and its parameters, [N] or, one for all images, [1]; derivatives of every kind
are PyTorch's.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdm.errors import FastDMError


class Strengths(Protocol):
    """The attributes of `ParamDiffAug` that decide how drawn numbers become parameters."""

    prob_flip: float
    ratio_scale: float
    ratio_rotate: float
    ratio_crop_pad: float
    ratio_cutout: float
    brightness: float
    saturation: float
    contrast: float


def apply_family(family: str, x: Tensor, draws: Sequence[Tensor], param: Strengths) -> Tensor:
    """Apply one family with the numbers that were drawn for it: uniform in [0, 1), integers for crop and cutout."""
    if family in ("color", "scale", "rotate") and not x.is_floating_point():
        raise FastDMError(f"the images are {x.dtype}; {family} needs floating-point images")
    return _FAMILIES[family](x, draws, param)


def _color(x: Tensor, draws: Sequence[Tensor], param: Strengths) -> Tensor:
    brightness, saturation, contrast = (u.view(-1, 1, 1, 1) for u in draws)
    x = x + (brightness - 0.5) * param.brightness
    mean = x.mean(1, keepdim=True)
    x = (x - mean) * (saturation * param.saturation) + mean
    mean = x.mean((1, 2, 3), keepdim=True)
    return (x - mean) * (contrast + param.contrast) + mean


def _crop(x: Tensor, draws: Sequence[Tensor], param: Strengths) -> Tensor:
    """out[i, j] = x[i + rows, j + cols], 0 outside."""
    rows, is_row = _shifted(x.shape[2], draws[0])
    cols, is_col = _shifted(x.shape[3], draws[1])
    if len(draws[0]) == 1:
        moved = x[:, :, rows[0]][:, :, :, cols[0]]
    else:
        pixels = (rows[:, :, None] * x.shape[3] + cols[:, None, :]).flatten(1)[:, None]
        moved = x.flatten(2).gather(2, pixels.expand(-1, x.shape[1], -1)).view(x.shape)
    return moved.masked_fill(~(is_row[:, None, :, None] & is_col[:, None, None, :]), 0)


def _shifted(size: int, shift: Tensor) -> tuple[Tensor, Tensor]:
    """The positions 0…size - 1, moved by every shift and clamped, and which of them needed no clamping: [N, size]."""
    at = torch.arange(size, device=shift.device) + shift.view(-1, 1)
    kept = at.clamp(0, size - 1)
    return kept, kept == at


def _cutout(x: Tensor, draws: Sequence[Tensor], param: Strengths) -> Tensor:
    """The hole is a product with 0, as in the public code: what is not finite there becomes NaN."""
    (rows, cols) = (_hole(size, u, param.ratio_cutout) for size, u in zip(x.shape[2:], draws, strict=True))
    return x * (~(rows[:, None, :, None] & cols[:, None, None, :])).to(x.dtype)


def _hole(size: int, offset: Tensor, ratio: float) -> Tensor:
    """Which positions the hole covers along an axis, [N, size]: clamped into the image, so never empty."""
    hole = int(size * ratio + 0.5)
    at = torch.arange(size, device=offset.device)
    if hole <= 0:
        return torch.zeros(1, size, dtype=torch.bool, device=offset.device)
    first = offset.view(-1, 1) - hole // 2
    return (at >= first.clamp(0, size - 1)) & (at <= (first + hole - 1).clamp(0, size - 1))


def _flip(x: Tensor, draws: Sequence[Tensor], param: Strengths) -> Tensor:
    return torch.where(draws[0].view(-1, 1, 1, 1) < param.prob_flip, x.flip(3), x)


def _scale(x: Tensor, draws: Sequence[Tensor], param: Strengths) -> Tensor:
    low = 1 / param.ratio_scale
    sx, sy = (u * (param.ratio_scale - low) + low for u in draws)
    zero = torch.zeros_like(sx)
    return _sample(x, torch.stack((sx, zero, zero, zero, sy, zero), 1))


def _rotate(x: Tensor, draws: Sequence[Tensor], param: Strengths) -> Tensor:
    angle = (draws[0] - 0.5) * 2 * param.ratio_rotate / 180 * torch.pi
    cos, sin = angle.cos(), angle.sin()
    zero = torch.zeros_like(cos)
    return _sample(x, torch.stack((cos, -sin, zero, sin, cos, zero), 1))


def _sample(x: Tensor, theta: Tensor) -> Tensor:
    """Bilinear, 0 outside, on the grid of the matrices; computed in float32 for types that are narrower."""
    work = torch.promote_types(x.dtype, torch.float32)
    grid = F.affine_grid(theta.view(-1, 2, 3), [len(theta), *x.shape[1:]], align_corners=False)
    grid = grid.to(x.device, work).expand(len(x), -1, -1, -1)
    sampled = F.grid_sample(x.to(work), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return sampled.to(x.dtype)


_FAMILIES: dict[str, Callable[[Tensor, Sequence[Tensor], Strengths], Tensor]] = {
    "color": _color,
    "crop": _crop,
    "cutout": _cutout,
    "flip": _flip,
    "scale": _scale,
    "rotate": _rotate,
}
