"""The public code's augmentation call: `DiffAugment` and `ParamDiffAug`, with its draws for equal seeds.

Code written for DatasetCondensation and its relatives (DC-BENCH, CAFE, IDM, DataDAM, MTT, TESLA, …) can import these
two names from here instead and runs through `fastdm.kernels.dsa`.
"""

from dataclasses import replace

import torch
from torch import Tensor

from fastdm.augmentation import Strategy, augment
from fastdm.errors import FastDMError


class ParamDiffAug:
    """Strengths and state of `DiffAugment`; attributes may be set freely.

    `Siamese` (`batchmode` in the MTT line of repositories; both are kept equal) and `latestseed` are state:
    every call of `DiffAugment` sets them.

    >>> import fastdm
    >>> param = fastdm.ParamDiffAug()
    >>> param.ratio_rotate = 30.0
    """

    def __init__(self) -> None:
        self.aug_mode = "S"
        self.prob_flip = 0.5
        self.ratio_scale = 1.2
        self.ratio_rotate = 15.0
        self.ratio_crop_pad = 0.125
        self.ratio_cutout = 0.5
        self.brightness = 1.0
        self.saturation = 2.0
        self.contrast = 0.5
        self.Siamese = False
        self.batchmode = False
        self.latestseed = -1


def DiffAugment(x: Tensor, strategy: str = "", seed: int = -1, param: ParamDiffAug | None = None) -> Tensor:
    """Augment a batch of normalised images [N, C, H, W], C 1 or 3, differentiably.

    seed -1: every image gets its own parameters, from the global generator. Any other seed is Siamese: the first
    image's draw holds for the whole batch; every draw first seeds the global generator with `param.latestseed`
    (which starts at `seed`) and then adds 1 to it. The family of mode "S", scale and rotate draw on the CPU; color,
    crop, cutout and flip on the device of `x`, as many values as there are images, so that equal seeds give the
    public code's transformations and leave the generators in the same state.

    >>> import fastdm, torch
    >>> images = torch.randn(4, 3, 32, 32)
    >>> fastdm.DiffAugment(images, "color_crop_cutout_flip_scale_rotate", seed=7).shape
    torch.Size([4, 3, 32, 32])
    """
    if strategy in ("", "none", "None"):
        return x
    param = ParamDiffAug() if param is None else param
    drawn = Strategy.parse(strategy)  # before the state changes: an unknown family is an error that changes nothing
    if param.aug_mode not in ("S", "M"):
        raise FastDMError(f"aug_mode is {param.aug_mode!r}; it is 'S' (one family) or 'M' (all families)")
    drawn = Strategy(
        drawn.families,
        "S" if param.aug_mode == "S" else "M",
        brightness=param.brightness,
        saturation=param.saturation,
        contrast=param.contrast,
        ratio_crop_pad=param.ratio_crop_pad,
        ratio_cutout=param.ratio_cutout,
        prob_flip=param.prob_flip,
        ratio_scale=param.ratio_scale,
        ratio_rotate=param.ratio_rotate,
    )
    param.Siamese = param.batchmode = seed != -1
    param.latestseed = seed

    if drawn.mode == "S":
        _seed(param)
        choice = int(torch.randint(0, len(drawn.families), size=(1,)))
        drawn = replace(drawn, families=(drawn.families[choice],), mode="M")
    draws = {family: _draw(family, drawn, param, x) for family in drawn.families}
    if param.Siamese:
        draws = {family: [values[:1] for values in numbers] for family, numbers in draws.items()}
    return augment(x, drawn.tables(draws, (x.shape[2], x.shape[3]), x.device)).contiguous()


def _seed(param: ParamDiffAug) -> None:
    """Seed the global generator for the next draw of a Siamese call."""
    if param.latestseed != -1:
        torch.manual_seed(param.latestseed)
        param.latestseed += 1


def _draw(family: str, strategy: Strategy, param: ParamDiffAug, x: Tensor) -> list[Tensor]:
    """One value per image for every parameter of the family, in the order in which the public code draws them."""
    n = len(x)
    height, width = x.shape[2:]
    draws = []
    if family in ("color", "flip", "scale", "rotate"):
        device = x.device if family in ("color", "flip") else torch.device("cpu")
        dtype = x.dtype if family in ("color", "flip") else torch.float32
        for _ in range({"color": 3, "flip": 1, "scale": 2, "rotate": 1}[family]):
            _seed(param)
            draws.append(torch.rand(n, dtype=dtype, device=device))
    else:
        limits = strategy.crop_range if family == "crop" else strategy.cutout_range
        for size in (height, width):
            _seed(param)
            draws.append(torch.randint(*limits(size), size=(n,), device=x.device))
    return draws
