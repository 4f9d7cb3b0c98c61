"""The pool: every image of one split as uint8, sorted by class."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Pool:
    """Class-sorted uint8 images.

    images: uint8 [N, C, H, W]; the images of class c are ``images[class_offsets[c]:class_offsets[c + 1]]``.
    class_offsets: int64 [classes + 1], on the CPU, rising from 0 to N.
    """

    images: Tensor
    class_offsets: Tensor

    @property
    def num_classes(self) -> int:
        return len(self.class_offsets) - 1

    @property
    def class_sizes(self) -> Tensor:
        """int64 [classes]: number of images of each class."""
        return self.class_offsets.diff()

    @property
    def labels(self) -> Tensor:
        """int64 [N]: the class of each image."""
        return torch.repeat_interleave(torch.arange(self.num_classes), self.class_sizes)

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set as fastdm uses it: class-sorted pools and what is needed to normalise them.

    A normalised pixel is (x / 255 - mean) / std, per channel.
    """

    name: str
    train: Pool
    test: Pool | None
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def num_classes(self) -> int:
        return self.train.num_classes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width
