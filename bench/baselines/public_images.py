"""Real images as the public code holds and draws them."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fastdm import data


class PublicImages(Dataset[tuple[Tensor, int]]):
    """Random uint8 images, converted and normalised when one is read, as torchvision's data sets are.

    like: has the classes, shape, mean and deviation.
    """

    def __init__(self, per_class: int, like: data.Dataset, seed: int = 0) -> None:
        channels, height, width = like.image_shape
        size = (like.num_classes * per_class, height, width, channels)
        self.images = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
        self.labels = np.arange(len(self.images)) % like.num_classes
        self._mean, self._std = (torch.tensor(values)[:, None, None] for values in (like.mean, like.std))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        pixels = torch.from_numpy(self.images[index]).permute(2, 0, 1).contiguous().float().div(255)
        return pixels.sub_(self._mean).div_(self._std), int(self.labels[index])


class PublicPool:
    """All images of a data set in one tensor, and their places by class: `images_all` and `indices_class`."""

    def __init__(self, images: Tensor, labels: Iterable[int], classes: int) -> None:
        self._images = images
        self._places: list[list[int]] = [[] for _ in range(classes)]
        for place, label in enumerate(labels):
            self._places[label].append(place)

    def get_images(self, c: int, n: int) -> Tensor:
        """n random images of a class."""
        return self._images[np.random.permutation(self._places[c])[:n]]  # noqa: NPY002 what the public code calls
