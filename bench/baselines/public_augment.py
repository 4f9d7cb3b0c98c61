"""The public code's `DiffAugment`, transcribed from its description: the same values, draws and generator state.

It works as the public function does, one transformation after the other over the whole batch, with index grids for crop
and cutout and with matrices made from Python lists for scale and rotation, so it costs about what that one costs. It
differs where the public function fails on today's PyTorch: one image with a seed, and scale and rotation of images that
are not float32. It shares no code with the package.
"""

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Param(Protocol):
    """The strengths and the state that the function reads and writes."""

    aug_mode: str
    prob_flip: float
    ratio_scale: float
    ratio_rotate: float
    ratio_crop_pad: float
    ratio_cutout: float
    brightness: float
    saturation: float
    contrast: float
    Siamese: bool
    latestseed: int


def diff_augment(x: Tensor, strategy: str, seed: int, param: Param) -> Tensor:
    """Augment images [N, C, H, W]; seed -1: each its own way, else all like the first."""
    if strategy in ("None", "none", ""):
        return x
    param.Siamese = seed != -1
    param.latestseed = seed
    families = strategy.split("_")
    if param.aug_mode == "S":
        _seed(param)
        families = [families[int(torch.randint(0, len(families), size=(1,)).item())]]
    for family in families:
        for transform in _TRANSFORMS[family]:
            x = transform(x, param)
    return x.contiguous()


def _seed(param: Param) -> None:
    if param.latestseed != -1:
        torch.random.manual_seed(param.latestseed)
        param.latestseed += 1


def _draw(param: Param, function: Callable[..., Tensor], *args: Any, **keywords: Any) -> Tensor:
    """One value per image; with a seed the first image's value for all."""
    _seed(param)
    values = function(*args, **keywords)
    if param.Siamese:
        values[:] = values[0].clone()
    return values


def _brightness(x: Tensor, param: Param) -> Tensor:
    u = _draw(param, torch.rand, len(x), 1, 1, 1, dtype=x.dtype, device=x.device)
    return x + (u - 0.5) * param.brightness


def _saturation(x: Tensor, param: Param) -> Tensor:
    mean = x.mean(dim=1, keepdim=True)
    u = _draw(param, torch.rand, len(x), 1, 1, 1, dtype=x.dtype, device=x.device)
    return (x - mean) * (u * param.saturation) + mean


def _contrast(x: Tensor, param: Param) -> Tensor:
    mean = x.mean(dim=[1, 2, 3], keepdim=True)
    u = _draw(param, torch.rand, len(x), 1, 1, 1, dtype=x.dtype, device=x.device)
    return (x - mean) * (u + param.contrast) + mean


def _grid(*sizes: int, device: torch.device) -> tuple[Tensor, ...]:
    return torch.meshgrid(*(torch.arange(size, device=device) for size in sizes), indexing="ij")


def _crop(x: Tensor, param: Param) -> Tensor:
    n, _, height, width = x.shape
    reach = [int(size * param.ratio_crop_pad + 0.5) for size in (height, width)]
    rows, cols = (_draw(param, torch.randint, -most, most + 1, size=[n, 1, 1], device=x.device) for most in reach)
    batch, i, j = _grid(n, height, width, device=x.device)
    i = torch.clamp(i + rows + 1, 0, height + 1)
    j = torch.clamp(j + cols + 1, 0, width + 1)
    padded = F.pad(x, [1, 1, 1, 1, 0, 0, 0, 0])
    return padded.permute(0, 2, 3, 1).contiguous()[batch, i, j].permute(0, 3, 1, 2)


def _cutout(x: Tensor, param: Param) -> Tensor:
    n, _, height, width = x.shape
    hole = [int(size * param.ratio_cutout + 0.5) for size in (height, width)]
    rows, cols = (
        _draw(param, torch.randint, 0, size + (1 - side % 2), size=[n, 1, 1], device=x.device)
        for size, side in zip((height, width), hole, strict=True)
    )
    batch, i, j = _grid(n, *hole, device=x.device)
    i = torch.clamp(i + rows - hole[0] // 2, min=0, max=height - 1)
    j = torch.clamp(j + cols - hole[1] // 2, min=0, max=width - 1)
    mask = torch.ones(n, height, width, dtype=x.dtype, device=x.device)
    mask[batch, i, j] = 0
    return x * mask.unsqueeze(1)


def _flip(x: Tensor, param: Param) -> Tensor:
    # float32 whatever the images are, and whatever PyTorch's default is.
    u = _draw(param, torch.rand, len(x), 1, 1, 1, dtype=torch.float32, device=x.device)
    return torch.where(u < param.prob_flip, x.flip(3), x)


def _sample(x: Tensor, theta: list[list[list[float]]]) -> Tensor:
    grid = F.affine_grid(torch.tensor(theta, dtype=torch.float32), list(x.shape), align_corners=False)
    grid = grid.to(x.device, x.dtype)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _scale(x: Tensor, param: Param) -> Tensor:
    low = 1.0 / param.ratio_scale
    sx, sy = (
        (_draw(param, torch.rand, len(x), dtype=torch.float32) * (param.ratio_scale - low) + low).tolist()
        for _ in range(2)
    )
    return _sample(x, [[[sx[n], 0.0, 0.0], [0.0, sy[n], 0.0]] for n in range(len(x))])


def _rotate(x: Tensor, param: Param) -> Tensor:
    u = _draw(param, torch.rand, len(x), dtype=torch.float32)
    angle = (u - 0.5) * 2 * param.ratio_rotate / 180 * math.pi
    cos, sin = angle.cos().tolist(), angle.sin().tolist()
    return _sample(x, [[[cos[n], -sin[n], 0.0], [sin[n], cos[n], 0.0]] for n in range(len(x))])


_TRANSFORMS: dict[str, list[Callable[[Tensor, Param], Tensor]]] = {
    "color": [_brightness, _saturation, _contrast],
    "crop": [_crop],
    "cutout": [_cutout],
    "flip": [_flip],
    "scale": [_scale],
    "rotate": [_rotate],
}
