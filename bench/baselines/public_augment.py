"""The public code's `DiffAugment`, transcribed from its description: the same values, draws and generator state.

It works as the public function does, one transformation after the other over the whole batch, with index grids for crop
and cutout and with matrices made from Python lists for scale and rotation, so it costs about what that one costs. It
differs where the public function fails on today's PyTorch: one image with a seed, and scale and rotation of images that
are not float32. It shares no code with the package.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class Param:
    """The strengths and the state that the function reads and writes."""

    aug_mode: str = "S"
    prob_flip: float = 0.5
    ratio_scale: float = 1.2
    ratio_rotate: float = 15.0
    ratio_crop_pad: float = 0.125
    ratio_cutout: float = 0.5
    brightness: float = 1.0
    saturation: float = 2.0
    contrast: float = 0.5
    Siamese: bool = False
    latestseed: int = -1


# --- the transformations: images [N, C, H, W] and one value per image, [N] -------------------------------------------


def brightness(x: Tensor, b: Tensor) -> Tensor:
    return x + b.view(-1, 1, 1, 1)


def saturation(x: Tensor, s: Tensor) -> Tensor:
    mean = x.mean(dim=1, keepdim=True)
    return (x - mean) * s.view(-1, 1, 1, 1) + mean


def contrast(x: Tensor, k: Tensor) -> Tensor:
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return (x - mean) * k.view(-1, 1, 1, 1) + mean


def crop(x: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """out[i, j] = x[i + rows, j + cols], zero outside."""
    n, _, height, width = x.shape
    batch, i, j = _grid(n, height, width, device=x.device)
    i = torch.clamp(i + rows.view(-1, 1, 1) + 1, 0, height + 1)
    j = torch.clamp(j + cols.view(-1, 1, 1) + 1, 0, width + 1)
    padded = F.pad(x, [1, 1, 1, 1, 0, 0, 0, 0])
    return padded.permute(0, 2, 3, 1).contiguous()[batch, i, j].permute(0, 3, 1, 2)


def cutout(x: Tensor, rows: Tensor, cols: Tensor, ratio: float = 0.5) -> Tensor:
    """A hole of zeros whose every index is clamped into the image; rows, cols: its offsets."""
    n, _, height, width = x.shape
    hole = [int(size * ratio + 0.5) for size in (height, width)]
    batch, i, j = _grid(n, *hole, device=x.device)
    i = torch.clamp(i + rows.view(-1, 1, 1) - hole[0] // 2, min=0, max=height - 1)
    j = torch.clamp(j + cols.view(-1, 1, 1) - hole[1] // 2, min=0, max=width - 1)
    mask = torch.ones(n, height, width, dtype=x.dtype, device=x.device)
    mask[batch, i, j] = 0
    return x * mask.unsqueeze(1)


def flip(x: Tensor, u: Tensor, probability: float = 0.5) -> Tensor:
    return torch.where(u.view(-1, 1, 1, 1) < probability, x.flip(3), x)


def scale(x: Tensor, sx: Tensor, sy: Tensor) -> Tensor:
    return _affine(x, [[[a, 0.0, 0.0], [0.0, b, 0.0]] for a, b in zip(sx.tolist(), sy.tolist(), strict=True)])


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return _affine(x, [[[c, -s, 0.0], [s, c, 0.0]] for c, s in zip(cos.tolist(), sin.tolist(), strict=True)])


def _grid(*sizes: int, device: torch.device) -> tuple[Tensor, ...]:
    return torch.meshgrid(*(torch.arange(size, device=device) for size in sizes), indexing="ij")


def _affine(x: Tensor, theta: list[list[list[float]]]) -> Tensor:
    matrices = torch.tensor(theta, dtype=torch.float32).to(x.device, x.dtype)
    grid = F.affine_grid(matrices, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


# --- the public call -------------------------------------------------------------------------------------------------


def diff_augment(x: Tensor, strategy: str, seed: int, param: Any = None) -> Tensor:
    """Augment images [N, C, H, W]; seed -1: each its own way, else all like the first.

    param: a `Param`, or anything with its attributes.
    """
    param = param or Param()
    if strategy in ("None", "none", ""):
        return x
    param.Siamese = seed != -1
    param.latestseed = seed
    families = strategy.split("_")
    if param.aug_mode == "S":
        _seed(param)
        families = [families[int(torch.randint(0, len(families), size=(1,)).item())]]
    for family in families:
        x = _augment(family, x, param)
    return x.contiguous()


def _seed(param: Param) -> None:
    if param.latestseed != -1:
        torch.random.manual_seed(param.latestseed)
        param.latestseed += 1


def _augment(family: str, x: Tensor, param: Param) -> Tensor:
    """One family, with values that are drawn for it."""
    n, _, *size = x.shape

    def draw(function: Callable[..., Tensor], *args: Any, **keywords: Any) -> Tensor:
        """One value per image; with a seed the first image's value for all."""
        _seed(param)
        values = function(*args, **keywords)
        if param.Siamese:
            values[:] = values[0].clone()
        return values

    def uniform() -> Tensor:
        return draw(torch.rand, n, dtype=x.dtype, device=x.device)

    def integers(low: int, high: int) -> Tensor:
        return draw(torch.randint, low, high, size=[n], device=x.device)

    def uniform_on_cpu() -> Tensor:
        return draw(torch.rand, n, dtype=torch.float32)

    match family:
        case "color":
            x = brightness(x, (uniform() - 0.5) * param.brightness)
            x = saturation(x, uniform() * param.saturation)
            return contrast(x, uniform() + param.contrast)
        case "crop":
            reach = [int(side * param.ratio_crop_pad + 0.5) for side in size]
            return crop(x, *(integers(-most, most + 1) for most in reach))
        case "cutout":
            odd = [int(side * param.ratio_cutout + 0.5) % 2 for side in size]
            return cutout(x, integers(0, size[0] + 1 - odd[0]), integers(0, size[1] + 1 - odd[1]), param.ratio_cutout)
        case "flip":  # float32 whatever the images are, and whatever PyTorch's default is.
            return flip(x, draw(torch.rand, n, dtype=torch.float32, device=x.device), param.prob_flip)
        case "scale":
            low = 1.0 / param.ratio_scale
            return scale(x, *(uniform_on_cpu() * (param.ratio_scale - low) + low for _ in range(2)))
        case "rotate":
            angle = (uniform_on_cpu() - 0.5) * 2 * param.ratio_rotate / 180 * math.pi
            return rotate(x, angle.cos(), angle.sin())
    raise ValueError(family)
