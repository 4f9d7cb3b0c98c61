"""What TensorBoard shows of a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL.PngImagePlugin import PngImageFile

from fastdm.errors import FastDMError

FOLDER = "tensorboard"


class Events:
    """Writes event files to `folder`/tensorboard; what was written before is no longer shown from `first` on.

    Raises FastDMError if TensorBoard is not installed.
    """

    def __init__(self, folder: Path, first: int | None = None) -> None:
        check_installed()
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder / FOLDER), purge_step=first)

    def losses(self, first: int, losses: Sequence[float]) -> None:
        """The losses of the iterations from `first` on."""
        for iteration, loss in enumerate(losses, first):
            self._writer.add_scalar("loss", loss, iteration)

    def accuracies(self, iteration: int, means: Mapping[str, float]) -> None:
        """The mean accuracy in [0, 1] of every network, after `iteration` iterations."""
        for network, mean in means.items():
            self._writer.add_scalar(f"accuracy/{network}", mean, iteration)

    def picture(self, iteration: int, path: Path) -> None:
        """A picture from a PNG file."""
        with PngImageFile(path) as picture:  # Image.open refuses large ones
            pixels = np.asarray(picture)
        self._writer.add_image("synthetic images", pixels, iteration, dataformats="HW" if pixels.ndim == 2 else "HWC")

    def close(self) -> None:
        self._writer.close()


def check_installed() -> None:
    """Raise FastDMError if TensorBoard is not installed."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise FastDMError("TensorBoard is not installed: pip install tensorboard") from error
