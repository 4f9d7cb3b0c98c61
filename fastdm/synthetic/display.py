"""Normalised images as a screen shows them, and the public code's picture of a set: one class per row."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from fastdm.data.normalisation import per_channel
from fastdm.errors import FastDMError, whole_number
from fastdm.system.files import writing

GRID_GAP = 2
"""Black pixels between the images of a grid."""

AT_ONCE = 64
"""Images that are converted at a time, so that nobody holds a second set in float32."""

_FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
}


def display_pixels(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalised images [N, C, H, W] for display: de-normalised, clipped to [0, 1], uint8 on the CPU."""
    shift, scale = per_channel(mean), per_channel(std)
    pixels = torch.empty(images.shape, dtype=torch.uint8, device="cpu")
    for some, into in zip(images.detach().split(AT_ONCE), pixels.split(AT_ONCE), strict=True):
        into.copy_((some.cpu() * scale + shift).clamp_(0, 1).mul_(255).add_(0.5))
    return pixels


def write_grid(path: str | Path, pixels: Tensor, num_classes: int, *, zoom: int = 1) -> None:
    """Write uint8 [classes * ipc, C, H, W], one class per row, each pixel `zoom` wide, in the format of the suffix."""
    zoom = whole_number("zoom", zoom, 1)
    if Path(path).suffix.lower() not in _FORMATS:
        raise FastDMError(f"{path} must end in {', '.join(_FORMATS)}; a grid is written as PNG or JPEG")
    kind, options = _FORMATS[Path(path).suffix.lower()]
    channels, height, width = pixels.shape[1:]
    ipc, high, wide = len(pixels) // num_classes, height + GRID_GAP, width + GRID_GAP
    grid = torch.zeros(num_classes * high + GRID_GAP, ipc * wide + GRID_GAP, channels, dtype=torch.uint8, device="cpu")
    cells = grid[GRID_GAP:, GRID_GAP:].unflatten(1, (ipc, wide)).unflatten(0, (num_classes, high))
    cells[:, :height, :, :width].copy_(pixels.view(num_classes, ipc, *pixels.shape[1:]).permute(0, 3, 1, 4, 2))
    with writing(path) as temporary:
        sheet = grid.repeat_interleave(zoom, 0).repeat_interleave(zoom, 1) if zoom > 1 else grid
        Image.fromarray(sheet.squeeze(2).numpy()).save(temporary, format=kind, **options)
