"""The families of `DiffAugment` in plain PyTorch: for any channels, dtype and strength, and for a few images.

Every function takes images [N, C, H, W] and its parameters, [N] or, one for all images, [1] (of color and flip
[N, 1, 1, 1] or [1, 1, 1, 1]); derivatives of every kind are PyTorch's.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
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


BY_NUMPY = ("crop", "cutout", "scale", "rotate")
"""The families whose indices and matrices NumPy computes where their draws are on the CPU."""


def apply_family(family: str, x: Tensor, draws: Sequence[Any], param: Strengths) -> Tensor:
    """Apply one family with the numbers that were drawn for it: uniform in [0, 1), integers for crop and cutout.

    draws: tensors; of `BY_NUMPY` NumPy arrays if they are on the CPU.
    """
    if family in ("color", "scale", "rotate") and not x.is_floating_point():
        raise FastDMError(f"the images are {x.dtype}; {family} needs floating-point images")
    return _FAMILIES[family](x, draws, param)


def _color(x: Tensor, draws: Sequence[Tensor], param: Strengths) -> Tensor:
    brightness, saturation, contrast = draws
    x = x + (brightness - 0.5) * param.brightness
    mean = x.mean(1, keepdim=True)
    x = (x - mean) * (saturation * param.saturation) + mean
    mean = x.mean((1, 2, 3), keepdim=True)
    return (x - mean) * (contrast + param.contrast) + mean


def _crop(x: Tensor, draws: Sequence[Any], param: Strengths) -> Tensor:
    """out[i, j] = x[i + rows, j + cols], 0 outside."""
    height, width = x.shape[2:]
    if len(draws[0]) == 1 and isinstance(draws[0], np.ndarray):
        up, left = int(draws[0][0]), int(draws[1][0])
        if abs(up) < height and abs(left) < width:  # one shift for all images: one operation
            return torch.constant_pad_nd(x, (-left, left, -up, up))
    (rows, is_row), (cols, is_col) = _shifted(height, draws[0]), _shifted(width, draws[1])
    pixels = _tensor((rows[:, :, None] * width + cols[:, None, :]).reshape(len(rows), 1, height * width))
    inside = _tensor(is_row[:, None, :, None] & is_col[:, None, None, :])
    flat = x.flatten(2)
    moved = flat[:, :, pixels[0, 0]] if len(pixels) == 1 else flat.gather(2, pixels.expand(-1, x.shape[1], -1))
    return torch.where(inside, moved.view(x.shape), 0)


def _shifted(size: int, shift: Any) -> tuple[Any, Any]:
    """The positions 0…size - 1, moved by every shift and clamped, and which of them needed no clamping: [N, size]."""
    at = _positions(size, shift) + shift[:, None]
    kept = at.clip(0, size - 1)
    return kept, kept == at


def _cutout(x: Tensor, draws: Sequence[Any], param: Strengths) -> Tensor:
    """The hole is a product with 0, as in the public code: what is not finite there becomes NaN."""
    rows, cols = (_hole(size, u, param.ratio_cutout) for size, u in zip(x.shape[2:], draws, strict=True))
    return x * _tensor(~(rows[:, None, :, None] & cols[:, None, None, :])).to(x.dtype)


def _hole(size: int, offset: Any, ratio: float) -> Any:
    """Which positions the hole covers along an axis, [N, size]: clamped into the image; only a side of 0 is empty."""
    side = int(size * ratio + 0.5)
    at, first = _positions(size, offset), offset[:, None] - side // 2
    if side == 0:
        return at < at[:1, None]
    return (at >= first.clip(0, size - 1)) & (at <= (first + (side - 1)).clip(0, size - 1))


def _flip(x: Tensor, draws: Sequence[Tensor], param: Strengths) -> Tensor:
    is_flipped = draws[0] < param.prob_flip
    if len(is_flipped) == 1 and is_flipped.is_cpu:
        return x.flip(3) if is_flipped.item() else x.clone()
    return torch.where(is_flipped, x.flip(3), x)


def _scale(x: Tensor, draws: Sequence[Any], param: Strengths) -> Tensor:
    low = 1 / param.ratio_scale
    theta = np.zeros((len(draws[0]), 2, 3), np.float32)
    for axis, u in enumerate(draws):
        theta[:, axis, axis] = u * (param.ratio_scale - low) + low
    return _sample(x, theta)


def _rotate(x: Tensor, draws: Sequence[Any], param: Strengths) -> Tensor:
    angle = (draws[0] - 0.5) * (2 * param.ratio_rotate / 180 * np.pi)
    theta = np.zeros((len(angle), 2, 3), np.float32)
    theta[:, 0, 0] = theta[:, 1, 1] = np.cos(angle)
    theta[:, 1, 0] = np.sin(angle)
    theta[:, 0, 1] = -theta[:, 1, 0]
    return _sample(x, theta)


def _sample(x: Tensor, theta: Any) -> Tensor:
    """Bilinear, 0 outside, on the grid of the matrices; computed in float32 for types that are narrower.

    As `F.affine_grid` and `F.grid_sample`, whose checks cost as much as sampling one image.
    """
    work = x if x.dtype in (torch.float32, torch.float64) else x.to(torch.float32)
    grid = torch.affine_grid_generator(torch.from_numpy(theta), [len(theta), *x.shape[1:]], False)
    if grid.dtype != work.dtype or grid.device != work.device:
        grid = grid.to(work)
    if len(grid) != len(x):
        grid = grid.expand(len(x), -1, -1, -1)
    sampled = torch.grid_sampler(work, grid, _BILINEAR, _ZEROS, False)
    return sampled if work is x else sampled.to(x.dtype)


_BILINEAR, _ZEROS = 0, 0


# --- index arithmetic: by NumPy on the CPU, where it costs a fraction, else on the device of the draws ---------------


def _positions(size: int, draw: Any) -> Any:
    return torch.arange(size, device=draw.device) if isinstance(draw, Tensor) else np.arange(size)


def _tensor(array: Any) -> Tensor:
    return array if isinstance(array, Tensor) else torch.from_numpy(array)


_FAMILIES: dict[str, Callable[[Tensor, Sequence[Any], Strengths], Tensor]] = {
    "color": _color,
    "crop": _crop,
    "cutout": _cutout,
    "flip": _flip,
    "scale": _scale,
    "rotate": _rotate,
}
