"""The parameter table of the augmentation: float32 [G, 16], one row per group of images.

A family that a row does not apply holds its identity value, so the row alone says what is done. Families act in the
order color, crop, cutout, flip, scale, rotate. Shifts and cutout bounds are integers stored as floats, and a table
belongs to the image size it was drawn for.
"""

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
