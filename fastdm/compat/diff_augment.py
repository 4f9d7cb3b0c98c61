"""The public code's augmentation call: `DiffAugment` and `ParamDiffAug`, with its draws for equal seeds.

Code written for DatasetCondensation and its relatives (DC-BENCH, CAFE, IDM, DataDAM, MTT, TESLA, …) can import these
two names from here instead and runs through the kernels of `fastdm.kernels.dsa`, and through plain PyTorch where they
do not take a call.
"""

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from fastdm.augmentation import FAMILIES, Strategy
from fastdm.compat.plain_augment import BY_NUMPY, apply_family
from fastdm.errors import FastDMError, unknown
from fastdm.kernels.augmentation.op import apply_rows


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


def DiffAugment(x: Tensor, strategy: str | None = "", seed: int = -1, param: ParamDiffAug | None = None) -> Tensor:
    """Augment a batch of normalised images [N, C, H, W], differentiably.

    strategy: families joined by underscores, any of `fastdm.augmentation.FAMILIES`; None, "" and "none" in any case
    return x. In mode "M" all act in the order given; in mode "S" one of them, and a family named twice is twice as
    likely. Integer images can be cropped, cut out and flipped.

    seed -1: every image gets its own parameters, from the global generator. Any other seed is Siamese: the first
    image's draw holds for the whole batch; every draw first seeds the global generator with `param.latestseed`
    (which starts at `seed`) and then adds 1 to it. The family of mode "S", scale and rotate draw on the CPU; color,
    crop, cutout and flip on the device of `x`, as many values as there are images, so that equal seeds give the
    public code's transformations and leave the generators in the same state.

    Within `torch.func` the draws are constants, and shared by what `vmap` maps over.

    Rotation samples with `align_corners=False`; repositories that pass True (the MTT line) get other pixels for images
    that are not square.

    >>> import fastdm, torch
    >>> images = torch.randn(4, 3, 32, 32)
    >>> fastdm.DiffAugment(images, "color_crop_cutout_flip_scale_rotate", seed=7).shape
    torch.Size([4, 3, 32, 32])
    """
    if not isinstance(strategy, str | None):
        raise FastDMError(
            f"the strategy is a {type(strategy).__name__}; it must be a str, such as 'color_crop', or None"
        )
    families = _families(strategy)  # before the state changes: an unknown family is an error that changes nothing
    if not families:
        return x
    if not isinstance(x, Tensor):
        raise FastDMError(f"the images are a {type(x).__name__}; they must be a tensor [N, C, H, W]")
    if x.dim() != 4:
        raise FastDMError(f"the images have the shape {tuple(x.shape)}; it must be [N, C, H, W]")
    if not hasattr(seed, "__int__"):
        raise FastDMError(f"seed is {seed!r}; it must be a number, -1 for parameters of each image's own")
    param = ParamDiffAug() if param is None else param
    if param.aug_mode not in ("S", "M"):
        raise FastDMError(f"aug_mode is {param.aug_mode!r}; it is 'S' (one family) or 'M' (all families)")
    param.Siamese = param.batchmode = seed != -1
    param.latestseed = seed

    if torch._C._are_functorch_transforms_active():
        with torch._C._DisableFuncTorch():  # What is drawn is constant, whatever is differentiated.
            draws, tables = _prepare(families, param, x)
    else:
        draws, tables = _prepare(families, param, x)
    if tables is None:
        for family, numbers in draws:
            x = apply_family(family, x, numbers, param)
        return x.contiguous()
    for rows in tables:
        x = apply_rows(x, rows)
    return x


Draws = list[tuple[str, list[Any]]]
"""Families in the order in which they act, each with what it draws: one value per image, or one for all."""


def _arrays(draws: list[Tensor]) -> list[Any]:
    return [values.numpy() if values.is_cpu else values for values in draws]


def _prepare(families: tuple[str, ...], param: ParamDiffAug, x: Tensor) -> tuple[Draws, list[Tensor] | None]:
    """Draw, and make the tables of the kernels' passes, or None if PyTorch is to apply the families."""
    if param.aug_mode == "S":
        _seed(param)
        families = (families[int(torch.randint(0, len(families), size=(1,), device="cpu"))],)
    draws = [(family, _draw(family, param, x)) for family in families]
    if param.Siamese:
        draws = [(family, [values[:1] for values in numbers]) for family, numbers in draws]
    passes = _passes(families, param) if _is_for_kernels(x, families) else None
    if passes is None:
        return [(family, _arrays(numbers) if family in BY_NUMPY else numbers) for family, numbers in draws], None
    tables, start = [], 0
    for one_pass in passes:
        end = start + len(one_pass.families)
        tables += one_pass.tables(dict(draws[start:end]), (x.shape[2], x.shape[3]), x.device)
        start = end
    return draws, tables


@lru_cache
def _families(strategy: str | None) -> tuple[str, ...]:
    if strategy is None or strategy.lower() in ("", "none"):
        return ()
    families = tuple(strategy.split("_"))
    for family in families:
        if family not in FAMILIES:
            raise unknown("augmentation", family, FAMILIES)
    return families


def _is_for_kernels(x: Tensor, families: tuple[str, ...]) -> bool:
    """Whether the kernels take the images, and on a CPU less time than PyTorch.

    They need one pass over the images for any number of families, but the way to them costs as much as PyTorch's passes
    for two families of a few images, and a hole or a flip is a single pass for PyTorch too.
    float64 is left to PyTorch: the table of the kernels is float32, and the public code computes in float64.
    """
    if x.shape[1] not in (1, 3) or x.numel() == 0 or x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return False
    if not x.is_cpu or len(families) > 2 or torch.autograd.forward_ad._current_level >= 0:
        return True  # PyTorch's grid_sample has no forward mode
    return x.numel() >= _MANY and not {"cutout", "flip"}.issuperset(families)


_MANY = 1 << 18
"""Numbers in a batch for which one pass saves more than the way to it costs."""


def _passes(families: tuple[str, ...], param: ParamDiffAug) -> tuple[Strategy, ...] | None:
    return _cached_passes(
        families,
        param.brightness,
        param.saturation,
        param.contrast,
        param.ratio_crop_pad,
        param.ratio_cutout,
        param.prob_flip,
        param.ratio_scale,
        param.ratio_rotate,
    )


@lru_cache
def _cached_passes(families: tuple[str, ...], *strengths: float) -> tuple[Strategy, ...] | None:
    """The passes of the kernels over the images: one applies families in the order of `FAMILIES`.

    None if `Strategy` has no such strengths.
    """
    passes: list[tuple[str, ...]] = []
    for family in families:
        if passes and FAMILIES.index(passes[-1][-1]) < FAMILIES.index(family):
            passes[-1] += (family,)
        else:
            passes.append((family,))
    try:
        return tuple(Strategy(names, "M", *strengths) for names in passes)
    except FastDMError:
        return None


def _seed(param: ParamDiffAug) -> None:
    """Seed the global generator for the next draw of a Siamese call."""
    if param.latestseed != -1:
        _manual_seed()(int(param.latestseed))
        param.latestseed += 1


@cache
def _manual_seed() -> Callable[[int], object]:
    """`torch.manual_seed`, or what it comes down to without a GPU: it takes 70 times as long to remember the seed for
    one that may turn up."""
    return torch.manual_seed if torch.accelerator.is_available() else torch.default_generator.manual_seed


_UNIFORM = {"color": 3, "flip": 1, "scale": 2, "rotate": 1}
"""How many uniform numbers a family draws."""


def _draw(family: str, param: ParamDiffAug, x: Tensor) -> list[Tensor]:
    """One value per image for every parameter of the family, in the order in which the public code draws them."""
    n = len(x)
    draws = []
    if family in ("crop", "cutout"):
        for size in x.shape[2:]:
            _seed(param)
            if family == "crop":
                reach = int(size * param.ratio_crop_pad + 0.5)
                low, high = -reach, reach + 1
            else:
                low, high = 0, size + 1 - int(size * param.ratio_cutout + 0.5) % 2
            draws.append(torch.randint(low, high, size=(n,), device=x.device))
    else:
        device = "cpu" if family in ("scale", "rotate") else x.device
        dtype = x.dtype if family == "color" and x.is_floating_point() else torch.float32
        shape = (n, 1, 1, 1) if family in ("color", "flip") else (n,)  # as they are used
        for _ in range(_UNIFORM[family]):
            _seed(param)
            draws.append(torch.rand(shape, dtype=dtype, device=device))
    return draws
