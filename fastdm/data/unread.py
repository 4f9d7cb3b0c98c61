"""Data sets of which only the shape is known, to plan for."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastdm.data.pool import Backing, Dataset, Pool
from fastdm.errors import FastDMError, whole_number


@dataclass(frozen=True)
class _Unread:
    """The file behind images of which only the shape is known."""

    images: Tensor

    def ready(self) -> bool:
        return False

    def gather(self, index: Tensor, out: Tensor) -> None:
        raise FastDMError("this data set is only a shape: it can be planned for, and not read")

    def part(self, rows: slice) -> Backing:
        return _Unread(self.images[rows])


def unread_dataset(
    classes: int, images: int, image_shape: tuple[int, int, int], name: str = "", *, in_memory: bool = False
) -> Dataset:
    """A data set of which only the shape is known: `images` in all, as equally many per class as can be.

    in_memory: whether it will be arrays in memory; else a packed file.

    >>> data = unread_dataset(1000, 1_281_167, (3, 64, 64))
    >>> data.num_classes, len(data.train), data.train.images.numel() // 10**9
    (1000, 1281167, 15)
    """
    whole_number("classes", classes, 1)
    whole_number("images", images, classes)
    for side, value in zip(("channels", "height", "width"), image_shape, strict=True):
        whole_number(side, value, 1)
    offsets = torch.arange(classes + 1) * images // classes
    # One image in the memory of all.
    pixels = torch.zeros(image_shape, dtype=torch.uint8).expand(images, *image_shape)
    pool = Pool(pixels, offsets, None if in_memory else _Unread(pixels))
    names = tuple(map(str, range(classes)))
    channels = image_shape[0]
    return Dataset(name or "planned", pool, None, names, (0.5,) * channels, (0.25,) * channels)
