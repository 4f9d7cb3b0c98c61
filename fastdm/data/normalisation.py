"""Mean and standard deviation per channel: the standard ones of known data sets, else measured."""

from collections.abc import Sequence

import torch
from torch import Tensor

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_NORMALISATION = {
    "MNIST": ((0.1307,), (0.3081,)),
    "FashionMNIST": ((0.2861,), (0.3530,)),
    "SVHN": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "CIFAR10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "CIFAR100": ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
}


def standard_normalisation(name: str, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and std per channel that everybody uses for the data set called `name`, if there are such."""
    preset = _IMAGENET if "imagenet" in name.lower() else _NORMALISATION.get(name)
    return preset if preset and len(preset[0]) == channels else None


def normalisation(name: str, images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The standard mean and std per channel, else those of the pixels / 255."""
    channels = images.shape[1]
    if preset := standard_normalisation(name, channels):
        return preset
    counts = torch.zeros(channels, 256, dtype=torch.int64)
    for chunk in torch.split(images, 4096):  # keeps the copies small
        for channel in range(channels):
            counts[channel] += torch.bincount(chunk[:, channel].flatten(), minlength=256)
    weights = counts.double() / counts.sum(1, keepdim=True)
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = (weights * values).sum(1)
    std = (weights * (values - mean[:, None]).square()).sum(1).sqrt()
    std[std == 0] = 1  # a channel of one value
    return tuple(mean.tolist()), tuple(std.tolist())


def per_channel(values: Sequence[float]) -> Tensor:
    """A mean or std to be applied to images: float32 [C, 1, 1] on the CPU, whatever PyTorch's defaults are."""
    return torch.tensor(values, dtype=torch.float32, device="cpu")[:, None, None]
