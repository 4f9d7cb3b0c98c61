"""Tables drawn without the package, what the augmentation must give for them, and how far float32 may be off."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastdm.kernels import table
from fastdm.kernels.augmentation import reference

FAMILIES = ("color", "crop", "cutout", "flip", "scale", "rotate")
FLOAT32_EPS = 2.0**-23


def draw_table(
    rows: int, families: Sequence[str], size: tuple[int, int], generator: torch.Generator, ratio: float = 1.2
) -> Tensor:
    """A table with the ranges of DM's defaults."""
    height, width = size

    def u() -> Tensor:
        return torch.rand(rows, generator=generator)

    def integer(n: int) -> Tensor:
        return (u() * n).floor()

    result = table.identity(rows)
    if "color" in families:
        result[:, table.BRIGHTNESS] = u() - 0.5
        result[:, table.SATURATION] = 2 * u()
        result[:, table.CONTRAST] = u() + 0.5
    if "crop" in families:
        for column, length in ((table.SHIFT_ROWS, height), (table.SHIFT_COLS, width)):
            reach = int(0.125 * length + 0.5)
            result[:, column] = integer(2 * reach + 1) - reach
    if "cutout" in families:
        edges = ((table.CUTOUT_TOP, table.CUTOUT_BOTTOM, height), (table.CUTOUT_LEFT, table.CUTOUT_RIGHT, width))
        for first, last, length in edges:
            hole = int(0.5 * length + 0.5)
            start = integer(length + (1 - hole % 2)) - hole // 2
            result[:, first] = start.clamp(0, length - 1)
            result[:, last] = (start + hole - 1).clamp(0, length - 1)
    if "flip" in families:
        result[:, table.FLIP] = integer(2)
    if "scale" in families:
        result[:, table.SCALE_X] = u() * (ratio - 1 / ratio) + 1 / ratio
        result[:, table.SCALE_Y] = u() * (ratio - 1 / ratio) + 1 / ratio
    if "rotate" in families:
        angle = (u() - 0.5) * math.radians(30)
        result[:, table.ROTATE_COS], result[:, table.ROTATE_SIN] = angle.cos(), angle.sin()
    return result


def exact(
    images: Tensor,
    rows: Tensor,
    group: Tensor | None = None,
    index: Tensor | None = None,
    mean: Tensor | None = None,
    std: Tensor | None = None,
) -> Tensor:
    """The definition, in float64 on the CPU."""
    pixels = images.cpu().double()
    if images.dtype == torch.uint8:  # Normalised outside, so that the reference works in float64.
        assert mean is not None
        assert std is not None
        pixels = (pixels / 255 - mean.cpu().double()[:, None, None]) / std.cpu().double()[:, None, None]
    group, index = (None if t is None else t.cpu() for t in (group, index))
    return reference.dsa(pixels, rows.cpu(), group, index, None, None, torch.float64, False)


def tolerance(families: Sequence[str], size: tuple[int, int], largest: float) -> float:
    """The bound of the error in float32, for pixels of at most `largest`.

    Color makes about 8 operations on values of up to 3 · largest. A sampled coordinate is a sum of products of up to
    the size, so it is off by about size · ε; a pixel moves by at most 2 · largest per coordinate, on two axes. Scale
    and rotation do this one after the other.
    """
    color = 8 * 3 * largest * FLOAT32_EPS
    sampling = len({"scale", "rotate"} & set(families)) * 2 * 2 * largest * max(size) * FLOAT32_EPS
    gain = 3 if "color" in families else 1
    return (color if "color" in families else 2 * largest * FLOAT32_EPS) + gain * sampling


def apart(families: Sequence[str], size: tuple[int, int], largest: float) -> float:
    """The bound of the difference between two forms in float32: both may be off, but moves alone copy pixels."""
    return 2 * tolerance(families, size, largest) if {"color", "scale", "rotate"} & set(families) else 0.0
