"""Differentiable Siamese augmentation (DSA): strategies, and the drawing of their parameters into tables.

A transformation is drawn into a table row first and applied to images afterwards (`fastdm.kernels.dsa`). One row per
class makes it Siamese: real and synthetic images of a class share the row. One row per image is what evaluation uses.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fastdm.errors import FastDMError
from fastdm.kernels import dsa, table, uniform

FAMILIES = ("color", "crop", "cutout", "flip", "scale", "rotate")
"""The families of transformations in the order in which one call of `dsa` applies them."""

DSA_STREAM = 2
"""The random stream of the augmentation (see `fastdm.kernels.uniform`)."""

_NUM_UNIFORM = 12  # 1 choice + 3 color + 2 crop + 2 cutout + 1 flip + 2 scale + 1 rotate


@dataclass(frozen=True)
class Strategy:
    """Which families of transformations are drawn, how strong they are, and how they combine.

    families: subset of `FAMILIES`, in the order of application (matters in mode "M" only); empty: no augmentation.
    mode: "S" applies one family, drawn uniformly; "M" applies all of them.
    The strengths carry the names and defaults of the public code's ``ParamDiffAug``.
    """

    families: tuple[str, ...]
    mode: Literal["S", "M"] = "S"
    brightness: float = 1.0
    saturation: float = 2.0
    contrast: float = 0.5
    ratio_crop_pad: float = 0.125
    ratio_cutout: float = 0.5
    prob_flip: float = 0.5
    ratio_scale: float = 1.2
    ratio_rotate: float = 15.0

    def __post_init__(self) -> None:
        for family in self.families:
            if family not in FAMILIES:
                raise FastDMError(
                    f"unknown augmentation {family!r} in the strategy; known are {', '.join(FAMILIES)}, "
                    "joined by underscores, or 'none'"
                )
        if len(set(self.families)) != len(self.families):
            raise FastDMError(f"the strategy {'_'.join(self.families)!r} names a family twice; name each once")
        if self.mode not in ("S", "M"):
            raise FastDMError(f"augmentation mode {self.mode!r} is unknown; it is 'S' (one family) or 'M' (all)")
        if not 1 <= self.ratio_scale <= 1.5:
            # Beyond 1.5 an output pixel's gradient leaves the 3x3 window that the gather-form backward looks at.
            raise FastDMError(f"ratio_scale is {self.ratio_scale}; it must lie between 1 and 1.5")
        if not 0 <= self.ratio_crop_pad <= 1:
            raise FastDMError(f"ratio_crop_pad is {self.ratio_crop_pad}; it is a share of the image, between 0 and 1")
        if not 0 < self.ratio_cutout <= 1:
            raise FastDMError(f"ratio_cutout is {self.ratio_cutout}; it is a share of the image, above 0 and up to 1")

    @classmethod
    def parse(cls, text: str | None, mode: Literal["S", "M"] = "S") -> "Strategy":
        """The strategy written as ``color_crop_cutout_flip_scale_rotate``; "none", "" and None mean no augmentation."""
        if text is None or text.lower() in ("", "none"):
            return cls((), mode)
        return cls(tuple(text.split("_")), mode)

    def __str__(self) -> str:
        return "_".join(self.families) or "none"

    def __bool__(self) -> bool:
        return bool(self.families)

    def draw(self, key: Tensor, rows: Tensor, size: tuple[int, int], *, one_family: bool = False) -> list[Tensor]:
        """Draw one transformation per row of `rows`, reproducibly from (seed, step, row).

        key: int64 [2], (seed, step); rows: int64 [G], what tells the rows apart (class or image numbers);
        size: (height, width) of the images; one_family: in mode "S", draw the family once for all rows
        (as the public evaluation does) instead of once per row.
        Returns tables float32 [G, 16] on the device of `key`, to be applied one after the other (see `augment`).
        """
        u = uniform(key, rows, _NUM_UNIFORM, DSA_STREAM)
        choice = _integer(u[:1, 0] if one_family else u[:, 0], 0, len(self.families))
        draws = {
            "color": [u[:, 1], u[:, 2], u[:, 3]],
            "crop": [_integer(u[:, 4 + axis], *self.crop_range(size[axis])) for axis in (0, 1)],
            "cutout": [_integer(u[:, 6 + axis], *self.cutout_range(size[axis])) for axis in (0, 1)],
            "flip": [u[:, 8]],
            "scale": [u[:, 9], u[:, 10]],
            "rotate": [u[:, 11]],
        }
        tables = []
        for run in self.runs():
            rows_table = table.identity(len(rows), device=u.device)
            for family in run:
                columns = self.columns(family, draws[family], size)
                if self.mode == "S":
                    chosen = choice == self.families.index(family)
                    for column, value in columns.items():
                        rows_table[:, column] = torch.where(chosen, value, rows_table[:, column])
                else:
                    for column, value in columns.items():
                        rows_table[:, column] = value
            tables.append(rows_table)
        return tables

    def runs(self) -> list[list[str]]:
        """The families, split where their order differs from `FAMILIES`: one table, one call of `dsa`, per run.

        In mode "S" a row has one family only, so that one table serves for any order.
        """
        if self.mode == "S":
            return [list(self.families)] if self.families else []
        runs: list[list[str]] = []
        for family in self.families:
            if not runs or FAMILIES.index(family) < FAMILIES.index(runs[-1][-1]):
                runs.append([])
            runs[-1].append(family)
        return runs

    def crop_range(self, size: int) -> tuple[int, int]:
        """Half-open range of the shift along an axis of `size` pixels."""
        reach = int(size * self.ratio_crop_pad + 0.5)
        return -reach, reach + 1

    def cutout_range(self, size: int) -> tuple[int, int]:
        """Half-open range of the hole's offset along an axis of `size` pixels."""
        return 0, size + 1 - self._hole(size) % 2

    def columns(self, family: str, draws: Sequence[Tensor], size: tuple[int, int]) -> dict[int, Tensor]:
        """Table columns of one family from its draws: uniform numbers, or integers for crop and cutout, [G] each."""
        match family:
            case "color":
                brightness, saturation, contrast = draws
                return {
                    table.BRIGHTNESS: (brightness - 0.5) * self.brightness,
                    table.SATURATION: saturation * self.saturation,
                    table.CONTRAST: contrast + self.contrast,
                }
            case "crop":
                rows, cols = draws
                return {table.SHIFT_ROWS: rows.float(), table.SHIFT_COLS: cols.float()}
            case "cutout":
                (top, bottom), (left, right) = (self._hole_bounds(*axis) for axis in zip(draws, size, strict=True))
                return {
                    table.CUTOUT_TOP: top,
                    table.CUTOUT_BOTTOM: bottom,
                    table.CUTOUT_LEFT: left,
                    table.CUTOUT_RIGHT: right,
                }
            case "flip":
                return {table.FLIP: (draws[0] < self.prob_flip).float()}
            case "scale":
                low = 1.0 / self.ratio_scale
                scale_x, scale_y = (u * (self.ratio_scale - low) + low for u in draws)
                return {table.SCALE_X: scale_x, table.SCALE_Y: scale_y}
            case _:
                angle = (draws[0] - 0.5) * 2 * self.ratio_rotate / 180 * math.pi
                return {table.ROTATE_COS: angle.cos(), table.ROTATE_SIN: angle.sin()}

    def _hole(self, size: int) -> int:
        return int(size * self.ratio_cutout + 0.5)

    def _hole_bounds(self, offset: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """First and last index of the hole along an axis; every index is clamped, so the hole is never empty."""
        first = offset - self._hole(size) // 2
        last = first + self._hole(size) - 1
        return first.clamp(0, size - 1).float(), last.clamp(0, size - 1).float()


def _integer(u: Tensor, low: int, high: int) -> Tensor:
    """Integers in [low, high) from uniform numbers; clamped because the float32 product may round up to its end."""
    return (u * (high - low)).floor().clamp(max=high - low - 1) + low


def augment(
    images: Tensor,
    tables: Sequence[Tensor],
    group: Tensor | None = None,
    *,
    index: Tensor | None = None,
    mean: Sequence[float] | Tensor | None = None,
    std: Sequence[float] | Tensor | None = None,
    dtype: torch.dtype | None = None,
    channels_last: bool = False,
) -> Tensor:
    """Apply the tables that `Strategy.draw` gave, in their order, each in one call of `fastdm.kernels.dsa`.

    Without tables (no augmentation) the images are only gathered, normalised and converted.
    """
    if not tables:
        tables, group = [table.identity(1, device=images.device)], None
    if dtype is None:
        dtype = images.dtype if images.is_floating_point() else torch.float32
    first, *rest = tables
    # Between two calls the images keep the precision of the arithmetic.
    between = torch.promote_types(dtype, torch.float32)
    images = dsa(
        images,
        first,
        group,
        index=index,
        mean=mean,
        std=std,
        dtype=between if rest else dtype,
        channels_last=channels_last and not rest,
    )
    for position, rows in enumerate(rest, 1):
        last = position == len(rest)
        images = dsa(images, rows, group, dtype=dtype if last else between, channels_last=channels_last and last)
    return images
