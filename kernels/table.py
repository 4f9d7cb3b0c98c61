"""The parameter table of the augmentation: float32 [G, 16], one row per group of images.

A family that a row does not apply holds its identity value, so the row alone says what is done. Families act in the
order color, crop, cutout, flip, scale, rotate. Shifts and cutout bounds are integers stored as floats, and a table
belongs to the image size it was drawn for.
"""

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

BRIGHTNESS = 0
"""b of x + b."""
SATURATION = 1
"""s of (x - m) * s + m, with m the channel mean at the pixel."""
CONTRAST = 2
"""k of (x - μ) * k + μ, with μ the mean of the whole image."""
SHIFT_ROWS = 3
"""ti of out[i, j] = in[i + ti, j + tj]."""
SHIFT_COLS = 4
"""tj of out[i, j] = in[i + ti, j + tj]."""
CUTOUT_TOP = 5
"""First masked row, clamped into the image."""
CUTOUT_BOTTOM = 6
"""Last masked row, inclusive; smaller than the first one where nothing is masked."""
CUTOUT_LEFT = 7
"""First masked column, clamped into the image."""
CUTOUT_RIGHT = 8
"""Last masked column, inclusive; smaller than the first one where nothing is masked."""
FLIP = 9
"""1 where left and right are swapped, else 0."""
SCALE_X = 10
"""Factor of the column coordinate, about the centre; above 1 shrinks the picture."""
SCALE_Y = 11
"""Factor of the row coordinate, about the centre; above 1 shrinks the picture."""
ROTATE_COS = 12
"""Cosine of the angle."""
ROTATE_SIN = 13
"""Sine of the angle."""
COLUMNS = 16
"""Width of the table; the columns 14 and 15 are reserved and hold 0."""

MAX_ENLARGEMENT = 1.5
"""Largest enlargement by a scale that the backward pass can follow, 1 / SCALE_X or 1 / SCALE_Y."""
ROUNDING = 1e-5
"""How far a float32 row may lie beyond what it must hold."""

_IDENTITY = {SATURATION: 1, CONTRAST: 1, CUTOUT_BOTTOM: -1, CUTOUT_RIGHT: -1, SCALE_X: 1, SCALE_Y: 1, ROTATE_COS: 1}


def identity(rows: int, device: torch.device | str | None = None) -> Tensor:
    """Return float32 [rows, 16], the table that leaves every image as it is, made on the device."""
    table = torch.zeros(rows, COLUMNS, dtype=torch.float32, device=device)
    for column, value in _IDENTITY.items():
        table[:, column] = value
    return table


RULES = ("is_integer", "span", "most", "start", "centre", "scale", "shift", "low", "high", "run", "identity")
"""The rows of a tensor float32 [11, 16] that says how columns come from uniform numbers: those of `Rules`."""


@dataclass(frozen=True)
class Rules:
    """How the columns of the table come from uniform numbers, [16] each: all columns in one operation.

    is_integer, span, most, start: where is_integer is not 0, the uniform number u becomes start + floor(span · u), the
    floor at most `most`, which is span − 1; elsewhere span · u.
    centre, scale, shift, low, high: the parameter is scale · (number - centre) + shift, kept within low and high, for
    the columns of the rotation its cosine and sine.
    run: number of the table that the column belongs to, −1 for none. identity: its value in the others.
    All are float32 tensors, or all are NumPy arrays, whose operations cost a fraction on the CPU.
    """

    library: ModuleType
    is_integer: Any
    span: Any
    most: Any
    start: Any
    centre: Any
    scale: Any
    shift: Any
    low: Any
    high: Any
    run: Any
    identity: Any

    def numbers(self, u: Tensor) -> Tensor:
        """Return what is drawn, from the uniform number of every column: [G, 16]."""
        u = u * self.span
        return torch.where(self.is_integer != 0, u.floor().minimum(self.most) + self.start, u)

    def values(self, numbers: Any) -> Any:
        """Return the parameters of all families: [G, 16]."""
        values = ((numbers - self.centre) * self.scale + self.shift).clip(self.low, self.high)
        cos, sin = values[:, ROTATE_COS], values[:, ROTATE_SIN]
        self.library.cos(cos, out=cos)
        self.library.sin(sin, out=sin)
        return values

    def pick(self, values: Any, run: Any) -> Any:
        """Return the table of one run: the same in all rows, or each row its own, [G, 1]."""
        return self.library.where(self.run == run, values, self.identity)


def tables_of(u: Tensor, source: Tensor, rules: Tensor, runs: int, choose: bool, one_family: bool) -> Tensor:
    """Return what `draw_tables` draws, from uniform numbers [G, numbers]."""
    columns = Rules(torch, *rules)
    values = columns.values(columns.numbers(u[:, source]))
    if not choose:
        return torch.stack([columns.pick(values, run) for run in range(runs)])
    # Clamped because the float32 product may round up to its end.
    choice = (u[: 1 if one_family else None, :1] * runs).floor().clamp(max=runs - 1)
    table: Tensor = columns.pick(values, choice)
    return table[None]
