"""`RealImages`: the lists of all images, and of every class's, that the public code builds when it starts."""

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastdm.augmentation import augment
from fastdm.data.sources import Source, open_dataset
from fastdm.errors import FastDMError, whole_number
from fastdm.system.device import default_device


class RealImages:
    """The training images of a data set, held as bytes on a device and normalised when they are asked for.

    source, data_path: as in `fastdm.open_dataset`. Takes the place of the lists `images_all`, `labels_all` and
    `indices_class` of `main_DM.py` and its relatives: a quarter of their memory, and no pass over the data set one
    image at a time. mean, std: the normalisation, by default the data set's own.

    >>> from fastdm.compat import RealImages
    >>> real = RealImages("digits", device="cpu")
    >>> real.get_images(3, 5).shape
    torch.Size([5, 1, 8, 8])
    """

    def __init__(
        self,
        source: Source,
        device: str | torch.device = "cpu",
        *,
        data_path: str | Path = "data",
        mean: Iterable[float] | None = None,
        std: Iterable[float] | None = None,
    ) -> None:
        dataset = open_dataset(source, data_path=data_path)
        self._offsets = dataset.train.class_offsets.tolist()
        self._images = dataset.train.to(default_device(device)).images
        channels = dataset.image_shape[0]
        self.mean = dataset.mean if mean is None else tuple(map(float, mean))
        self.std = dataset.std if std is None else tuple(map(float, std))
        if not len(self.mean) == len(self.std) == channels:
            raise FastDMError(f"mean and std must have {channels} values, one per channel")
        if not all(map(math.isfinite, self.mean + self.std)) or min(self.std) <= 0:
            raise FastDMError(f"mean is {self.mean} and std {self.std}; they must be finite, and std above 0")
        self.num_classes = dataset.num_classes

    def __len__(self) -> int:
        return len(self._images)

    def get_images(self, c: int, n: int) -> Tensor:
        """`n` random images of class `c`, all of them if it has fewer: float32 [n, C, H, W], normalised, on the device.

        They are drawn without replacement by NumPy's global generator, and are those that the public function of this
        name gives for the same state of it. Raises FastDMError for a class that there is not.
        """
        c, n = whole_number("c", c, 0), whole_number("n", n, 0)
        if c >= self.num_classes:
            raise FastDMError(f"c is {c}; the data set has {self.num_classes} classes, counted from 0")
        start, stop = self._offsets[c : c + 2]
        chosen = torch.from_numpy(start + np.random.permutation(stop - start)[:n])  # noqa: NPY002
        index = chosen.to(self._images.device)
        return augment(self._images, [], index=index, mean=self.mean, std=self.std)
