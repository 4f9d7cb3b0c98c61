"""The augmentation call of the IDC line of repositories: `DiffAug`, with its draws for equal seeds.

Code written for IDC and its relatives (DREAM, M3D, DANCE, DSDM, TGDD, NCFM) can import this name from here instead and
runs through `fastdm.kernels.dsa`.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fastdm.augmentation import DRAWS, FAMILIES, Strategy, augment
from fastdm.errors import FastDMError

_ALWAYS = ("flip", "color", "cutout")


class DiffAug:
    """Differentiable augmentation of images [N, C, H, W], C 1 or 3; attributes may be set freely.

    Flip, then color, then one of the other families of the strategy (with `single_aug` False all of them, in its
    order), then cutout; `single`: one of all families. batch: one set of parameters for the whole batch, drawn from
    NumPy's global generator, instead of one per image, which PyTorch's gives (scale and rotate: NumPy's). The family is
    drawn from NumPy's. seed above 0: both generators are seeded with it before every function. Equal seeds give the
    public code's transformations and leave the generators in the same state.

    >>> import torch
    >>> from fastdm.compat import DiffAug
    >>> DiffAug("color_crop_cutout", batch=True)(torch.rand(4, 3, 32, 32), seed=7).shape
    torch.Size([4, 3, 32, 32])
    """

    def __init__(
        self,
        strategy: str = "color_crop_cutout_flip_scale_rotate",
        batch: bool = False,
        ratio_cutout: float = 0.5,
        single: bool = False,
    ) -> None:
        self.prob_flip = 0.5
        self.ratio_scale = 1.2
        self.ratio_rotate = 15.0
        self.ratio_crop_pad = 0.125
        self.ratio_cutout = ratio_cutout
        self.brightness = 1.0
        self.saturation = 2.0
        self.contrast = 0.5
        self.batch = batch
        if not isinstance(strategy, str):
            raise FastDMError(f"the strategy is a {type(strategy).__name__}; it must be a str, such as 'color_crop'")
        families = () if strategy.lower() in ("", "none") else tuple(strategy.lower().split("_"))
        for family in families:
            if family not in FAMILIES:
                raise FastDMError(f"unknown augmentation {family!r} in the strategy; known are {', '.join(FAMILIES)}")
        self.aug = bool(families)
        self.flip, self.color, self.cutout = (family in families and not single for family in _ALWAYS)
        self.strategy = [family for family in families if single or family not in _ALWAYS]

    def __call__(self, x: Tensor, single_aug: bool = True, seed: int = -1) -> Tensor:
        if not self.aug:
            return x
        if not isinstance(x, Tensor):
            raise FastDMError(f"the images are a {type(x).__name__}; they must be a tensor [N, 1 or 3, H, W]")
        if x.dim() != 4 or x.shape[1] not in (1, 3) or not x.is_floating_point():
            raise FastDMError(f"the images are {x.dtype} {list(x.shape)}; they must be floats [N, 1 or 3, H, W]")
        strategy = Strategy(
            (),
            "M",
            brightness=self.brightness,
            saturation=self.saturation,
            contrast=self.contrast,
            ratio_crop_pad=self.ratio_crop_pad,
            ratio_cutout=self.ratio_cutout,
            prob_flip=self.prob_flip,
            ratio_scale=self.ratio_scale,
            ratio_rotate=self.ratio_rotate,
        )
        draw = _Draw(x, strategy, self.batch, seed)
        first = {family: draw(family) for family, used in (("flip", self.flip), ("color", self.color)) if used}
        others = self.strategy
        if others and single_aug:
            others = [others[np.random.randint(len(others))]]  # noqa: NPY002
        middle = {family: draw(family) for family in others}
        last = {"cutout": draw("cutout")} if self.cutout else {}
        for draws in (first, middle, last):
            if draws:
                x = augment(x, draw.tables(draws))
        return x.contiguous()


class _Draw:
    """Draws the numbers of a family, in the public code's order and from its generators."""

    def __init__(self, x: Tensor, strategy: Strategy, batch: bool, seed: int) -> None:
        self._x = x
        self._strategy = strategy
        self._batch = batch
        self._seed = seed

    def __call__(self, family: str) -> list[Tensor]:
        """One number per image, or one for all, for every parameter of the family."""
        numbers = []
        for number in range(len(DRAWS[family])):
            if self._seed > 0 and (number == 0 or family == "color"):  # its three are functions of their own
                np.random.seed(self._seed)  # noqa: NPY002
                torch.manual_seed(self._seed)
            numbers.append(self._number(family, number))
        return numbers

    def _number(self, family: str, axis: int) -> Tensor:
        n, device = len(self._x), self._x.device
        if family in ("crop", "cutout"):
            limits = self._strategy.crop_range if family == "crop" else self._strategy.cutout_range
            low, high = limits(self._x.shape[2 + axis])
            if self._batch:
                return torch.tensor([np.random.randint(low, high)], device=device)  # noqa: NPY002
            return torch.randint(low, high, size=(n,), device=device)
        if self._batch:
            return torch.tensor([np.random.uniform()], device=device)  # noqa: NPY002
        if family in ("scale", "rotate"):
            return torch.from_numpy(np.random.uniform(size=n)).to(device)  # noqa: NPY002
        return torch.rand(n, dtype=self._x.dtype if family == "color" else None, device=device)

    def tables(self, draws: dict[str, list[Tensor]]) -> list[Tensor]:
        """The tables that apply these families, in this order."""
        size = (self._x.shape[2], self._x.shape[3])
        return replace(self._strategy, families=tuple(draws)).tables(draws, size, self._x.device)
