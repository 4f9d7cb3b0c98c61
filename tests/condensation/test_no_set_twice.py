"""No rank holds the whole set twice, whatever is written: its peak is measured."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

import fastdm
from fastdm.data.pool import Dataset, Pool
from fastdm.runs.recording import peak_resident
from fastdm.system.device import resident_memory
from tests.ranks import said, start, wait

CLASSES, IPC, SIDE = 6, 500, 64
SET_BYTES = CLASSES * IPC * 3 * SIDE**2 * 4


class Small(nn.Module):
    """A network that costs next to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.AvgPool2d(16), nn.Conv2d(3, 4, 3))

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.layers(images).flatten(1)
        return features


def measured(folder: Path) -> None:
    """Condense a set much larger than all else, with a picture, a checkpoint and the final files."""
    images = torch.zeros(CLASSES * 2, 3, SIDE, SIDE, dtype=torch.uint8)
    data = Dataset("large", Pool(images, torch.arange(CLASSES + 1) * 2), None, tuple("abcdef"), (0.5,) * 3, (0.25,) * 3)
    options: dict[str, Any] = {"batch_real": 2, "network": Small, "init": "noise", "device": "cpu", "strategy": ""}
    options |= {"precision": "fp32", "iterations": 1, "picture_every": 1, "save_every": 1}
    fastdm.condense(data, 1, save_path=folder / "small", **options)  # what libraries take is there
    before = resident_memory()
    done = fastdm.condense(data, IPC, save_path=folder, **options)
    assert done.images.nbytes == SET_BYTES
    print((peak_resident() - before) / SET_BYTES)


def test_no_rank_holds_the_set_twice(tmp_path: Path) -> None:
    """In sets: a rank of three has its images and momentum, 2/3, and copies of them while they are saved, 2/3; at the
    end all images, 1, and of a picture the pixels and the sheet, 1/2. A second set would make it 2 2/3."""
    folder = tmp_path / "run"
    assert wait(start(3, measured, folder, folder=folder)) == [0, 0, 0], said(folder)
    assert all(1.6 < float(text) < 2.6 for text in said(folder)), said(folder)
