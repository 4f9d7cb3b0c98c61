"""The public code's augmentation call: `DiffAugment` and `ParamDiffAug`, with its draws for equal seeds.

Code written for DatasetCondensation and its relatives (DC-BENCH, CAFE, IDM, DataDAM, MTT, TESLA, …) can import these
two names from here instead and runs through the kernels of `fastdm.kernels.dsa`, and through plain PyTorch where they
do not take a call.
"""

from collections.abc import Callable
from functools import cache, lru_cache

import torch
from torch import Tensor

from fastdm.augmentation import FAMILIES, Strategy
from fastdm.compat.plain_augment import apply_family
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

    Rotation samples with `align_corners=False`; repositories that pass True (the MTT line) get other pixels for images
    that are not square.

    >>> import fastdm, torch
    >>> images = torch.randn(4, 3, 32, 32)
    >>> fastdm.DiffAugment(images, "color_crop_cutout_flip_scale_rotate", seed=7).shape
    torch.Size([4, 3, 32, 32])
    """
    families = _families(strategy)  # before the state changes: an unknown family is an error that changes nothing
    if not families:
        return x
    if x.dim() != 4:
        raise FastDMError(f"the images have the shape {tuple(x.shape)}; it must be [N, C, H, W]")
    param = ParamDiffAug() if param is None else param
    if param.aug_mode not in ("S", "M"):
        raise FastDMError(f"aug_mode is {param.aug_mode!r}; it is 'S' (one family) or 'M' (all families)")
    param.Siamese = param.batchmode = seed != -1
    param.latestseed = seed

    if param.aug_mode == "S":
        _seed(param)
        families = (families[int(torch.randint(0, len(families), size=(1,), device="cpu"))],)
    draws = [_draw(family, param, x) for family in families]
    if param.Siamese:
        draws = [[values[:1] for values in numbers] for numbers in draws]
    strategies = _passes(families, param) if _is_for_kernels(x, len(families)) else None
    if strategies is None:
        for family, numbers in zip(families, draws, strict=True):
            x = apply_family(family, x, numbers, param)
        return x.contiguous()
    start = 0
    for one_pass in strategies:
        end = start + len(one_pass.families)
        numbers_of = dict(zip(one_pass.families, draws[start:end], strict=True))
        (rows,) = one_pass.tables(numbers_of, (x.shape[2], x.shape[3]), x.device)
        x = apply_rows(x, rows)
        start = end
    return x


@lru_cache
def _families(strategy: str | None) -> tuple[str, ...]:
    if strategy is None or strategy.lower() in ("", "none"):
        return ()
    families = tuple(strategy.split("_"))
    for family in families:
        if family not in FAMILIES:
            raise unknown("augmentation", family, FAMILIES)
    return families


def _is_for_kernels(x: Tensor, families: int) -> bool:
    """Whether the kernels take the images, and take less time: a single family of few images costs PyTorch less than
    the way to them.

    float64 is left to PyTorch: the table of the kernels is float32, and the public code computes in float64.
    """
    if x.is_cpu and families == 1 and x.numel() < _FEW:
        return False
    return x.is_floating_point() and x.dtype != torch.float64 and x.shape[1] in (1, 3) and x.numel() > 0


_FEW = 32 * 3 * 32 * 32
"""Numbers in a batch; the times are the same at about so many."""


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
        for _ in range({"color": 3, "flip": 1, "scale": 2, "rotate": 1}[family]):
            _seed(param)
            draws.append(torch.rand(n, dtype=dtype, device=device))
    return draws
