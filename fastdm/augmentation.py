"""Differentiable Siamese augmentation (DSA): strategies, and the drawing of their parameters into tables.

A transformation is drawn into a table row first and applied to images afterwards (`fastdm.kernels.dsa`). One row per
class makes it Siamese: real and synthetic images of a class share the row. One row per image is what evaluation uses.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fastdm.errors import FastDMError
from fastdm.kernels import draw_tables, dsa, table

FAMILIES = ("color", "crop", "cutout", "flip", "scale", "rotate")
"""The families of transformations in the order in which one call of `dsa` applies them."""

DSA_STREAM = 2
"""The random stream of the augmentation (see `fastdm.kernels.uniform`)."""

DRAWS: dict[str, list[tuple[int, ...]]] = {
    "color": [(table.BRIGHTNESS,), (table.SATURATION,), (table.CONTRAST,)],
    "crop": [(table.SHIFT_ROWS,), (table.SHIFT_COLS,)],
    "cutout": [(table.CUTOUT_TOP, table.CUTOUT_BOTTOM), (table.CUTOUT_LEFT, table.CUTOUT_RIGHT)],
    "flip": [(table.FLIP,)],
    "scale": [(table.SCALE_X,), (table.SCALE_Y,)],
    "rotate": [(table.ROTATE_COS, table.ROTATE_SIN)],
}
"""The numbers that each family draws, in order, and the columns of the table that come from each."""

_NUM_UNIFORM = 1 + sum(map(len, DRAWS.values()))  # The first chooses the family.


@dataclass(frozen=True)
class Strategy:
    """Which families of transformations are drawn, how strong they are, and how they combine.

    families: subset of `FAMILIES`, in the order of application (matters in mode "M" only); empty: no augmentation.
    mode: "S" applies one family, drawn uniformly; "M" applies all of them.
    The strengths carry the names and defaults of the public code's `ParamDiffAug`.
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
        """The strategy written as `color_crop_cutout_flip_scale_rotate`; "none", "" and None mean no augmentation."""
        if not isinstance(text, str | None):
            raise FastDMError(
                f"the strategy is a {type(text).__name__}; it must be a str of families joined by underscores, or None"
            )
        if text is None or text.lower() in ("", "none"):
            return cls((), mode)
        return cls(tuple(text.split("_")), mode)

    def __str__(self) -> str:
        return "_".join(self.families) or "none"

    def __bool__(self) -> bool:
        return bool(self.families)

    def draw(self, key: Tensor, rows: Tensor, size: tuple[int, int], *, one_family: bool = False) -> list[Tensor]:
        """Draw one transformation per row of `rows`, reproducibly from (seed, step, row).

        key: int64 [2], (seed, step); rows: int64 [G], what distinguishes the rows (class or image numbers);
        size: (height, width) of the images; one_family: in mode "S", draw the family once for all rows
        (as the public evaluation does) instead of once per row.
        Returns tables float32 [G, 16] on the device of `key`, to be applied one after the other (see `augment`).
        """
        if not self.families:
            return []
        source, rules = _rules(self, size, key.device)
        drawn = draw_tables(
            key,
            rows,
            source,
            rules,
            numbers=_NUM_UNIFORM,
            runs=len(self.runs()),
            choose=self.mode == "S",
            one_family=one_family,
            stream=DSA_STREAM,
        )
        return list(drawn)

    def tables(
        self, draws: Mapping[str, Sequence[Tensor]], size: tuple[int, int], device: torch.device
    ) -> list[Tensor]:
        """The tables of mode "M", float32 [G, 16], from numbers that were drawn elsewhere.

        draws: for each of the families, the numbers that `DRAWS` lists, G each: uniform in [0, 1), for crop and
        cutout integers within `crop_range` and `cutout_range`.
        """
        on_cpu = device.type == "cpu"
        columns = _numpy_rules(self, size) if on_cpu else table.Rules(torch, *_rules(self, size, device)[1])
        shape = len(draws[self.families[0]][0]), table.COLUMNS
        numbers: Any = np.zeros(shape, np.float32) if on_cpu else torch.zeros(shape, dtype=torch.float32, device=device)
        for family in self.families:
            for drawn, its_columns in zip(draws[family], DRAWS[family], strict=True):
                values = drawn.numpy().reshape(-1) if on_cpu else drawn.flatten()
                for column in its_columns:
                    numbers[:, column] = values
        values = columns.values(numbers)
        tables = [columns.pick(values, run) for run in range(len(self.runs()))]
        return [torch.from_numpy(rows) for rows in tables] if on_cpu else tables

    def runs(self) -> list[list[str]]:
        """The families that act together: in mode "S" each alone; in mode "M" they are split where their order differs
        from `FAMILIES`, and every run takes a table and a call of `dsa`.
        """
        if self.mode == "S":
            return [[family] for family in self.families]
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
        return 0, size + 1 - self.hole(size) % 2

    def hole(self, size: int) -> int:
        """Side of the cut-out along an axis of `size` pixels."""
        return int(size * self.ratio_cutout + 0.5)


@cache
@torch.inference_mode(False)  # a tensor that is kept must serve every mode
def _rules(strategy: Strategy, size: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """`source` and `rules` of `fastdm.kernels.draw_tables`.

    Kept for good, because bringing constants to a GPU would make the host wait, and a recorded graph reads them.
    """
    ranges = {"crop": strategy.crop_range, "cutout": strategy.cutout_range}
    angle = math.radians(strategy.ratio_rotate)
    shrink = 1.0 / strategy.ratio_scale
    # flip is u < prob_flip: their difference, made large and clamped to 0 and 1.
    large = 2.0**40
    affine = {
        table.BRIGHTNESS: (0.5, strategy.brightness, 0.0),
        table.SATURATION: (0.0, strategy.saturation, 0.0),
        table.CONTRAST: (0.0, 1.0, strategy.contrast),
        table.FLIP: (strategy.prob_flip, -large, 0.0),
        table.SCALE_X: (0.0, strategy.ratio_scale - shrink, shrink),
        table.SCALE_Y: (0.0, strategy.ratio_scale - shrink, shrink),
        table.ROTATE_COS: (0.5, 2 * angle, 0.0),
        table.ROTATE_SIN: (0.5, 2 * angle, 0.0),
    }
    limits = {table.FLIP: (0.0, 1.0)}
    for axis, bounds in enumerate(DRAWS["cutout"]):
        hole = strategy.hole(size[axis])
        for column, reach in zip(bounds, (0, hole - 1), strict=True):
            # Every index of the hole is clamped, so that only one of side 0 is empty: from 0 to -1.
            affine[column] = (0.0, float(hole > 0), float(reach - hole // 2))
            limits[column] = (0.0 if hole else -1.0, size[axis] - 1.0)

    # Of a column that nothing is drawn for.
    sources, columns = (
        [0] * table.COLUMNS,
        [(0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, -math.inf, math.inf, -1.0)] * table.COLUMNS,
    )
    source = 1
    for family, draws in DRAWS.items():
        run = next((number for number, families in enumerate(strategy.runs()) if family in families), -1)
        for axis, its_columns in enumerate(draws):
            first, end = ranges[family](size[axis]) if family in ranges else (0, 1)
            for column in its_columns:
                numbers = (float(family in ranges), float(end - first), float(end - first - 1), float(first))
                parameter = (*affine.get(column, (0.0, 1.0, 0.0)), *limits.get(column, (-math.inf, math.inf)))
                sources[column], columns[column] = source, (*numbers, *parameter, float(run))
            source += 1
    rules = torch.cat([torch.tensor(columns).T, table.identity(1)])
    return torch.tensor(sources, device=device), rules.to(device)


@cache
def _numpy_rules(strategy: Strategy, size: tuple[int, int]) -> table.Rules:
    _, rules = _rules(strategy, size, torch.device("cpu"))
    return table.Rules(np, *rules.numpy())


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
        tables, group = [_identity(images.device)], None
    if dtype is None:
        dtype = images.dtype if images.is_floating_point() else torch.float32
    # Between two calls the images keep the working precision.
    between = dtype if len(tables) == 1 else torch.promote_types(dtype, torch.float32)
    last = len(tables) - 1
    for position, rows in enumerate(tables):
        images = dsa(
            images,
            rows,
            group,
            index=index,
            mean=mean,
            std=std,
            dtype=dtype if position == last else between,
            channels_last=channels_last and position == last,
        )
        index = mean = std = None
    return images


@cache
@torch.inference_mode(False)
def _identity(device: torch.device) -> Tensor:
    """Kept, because on a GPU every column is a launch."""
    return table.identity(1, device)


DSA_STRATEGY = "color_crop_cutout_flip_scale_rotate"
"""The public code's default strategy."""


def default_strategy(dataset: str) -> str:
    """The paper's strategy, for the data set of that name: digits are not flipped."""
    return DSA_STRATEGY.replace("_flip", "") if dataset in ("MNIST", "SVHN", "digits") else DSA_STRATEGY
