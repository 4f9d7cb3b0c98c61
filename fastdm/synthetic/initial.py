"""Where synthetic images start from, and sets of real images to compare with."""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from fastdm.augmentation import augment
from fastdm.data.pool import Dataset, Pool
from fastdm.data.sources import Source, open_dataset
from fastdm.errors import FastDMError, whole_number
from fastdm.synthetic.partition import check_partition, shrink
from fastdm.synthetic.synthetic_set import SyntheticSet
from fastdm.system.device import undisturbed
from fastdm.system.memory import within_memory

INIT_STEP = 2**32 - 1
"""The step number under which the initial images are drawn: no iteration has it."""

_AT_ONCE = 1024
"""Canvases whose real images are in memory at a time, all their pixels in float32."""


def initial_images(
    dataset: Dataset,
    ipc: int,
    seed: int,
    *,
    init: Literal["real", "noise"] = "real",
    partition: int = 1,
    device: torch.device | None = None,
    part: Pool | None = None,
) -> Tensor:
    """Random real images of every class, or N(0, 1) noise: float32 [classes * ipc, C, H, W], normalised, on `device`.

    Both follow from the seed alone, whatever the device. With a partition, each is a canvas of partition² real images,
    shrunk by the mean of their pixels. part: the real images of some of the classes (`Pool.classes`), of which alone
    the images are then given.
    """
    real = dataset.train if part is None else part
    if init == "noise":
        generator = torch.Generator().manual_seed(seed)
        shape = (dataset.num_classes * ipc, *dataset.image_shape)
        first, last = ipc * real.first_class, ipc * (real.first_class + real.num_classes)
        return torch.randn(shape, generator=generator, dtype=torch.float32)[first:last].to(device, copy=True)
    drawn = real.draw(seed, INIT_STEP, ipc * partition**2).view(-1, partition**2)
    images = torch.empty(len(drawn), *dataset.image_shape, dtype=torch.float32, device=device)
    for into, index in zip(images.split(_AT_ONCE), drawn.split(_AT_ONCE), strict=True):
        read = augment(real.read(index.flatten()), [], mean=dataset.mean, std=dataset.std)
        into.copy_(shrink(read, partition))
    return images


@within_memory("take a smaller ipc")
@undisturbed()
def random_selection(
    dataset: Source, ipc: int, seed: int = 0, *, partition: int = 1, data_path: str | Path = "data"
) -> SyntheticSet:
    """`ipc` random real images per class: those that `condense` starts from with this seed and init="real".

    partition: f, for canvases of f × f shrunk real images. dataset, data_path: as in `open_dataset`. Raises FastDMError
    where a class has fewer images.

    >>> import fastdm
    >>> fastdm.random_selection("digits", ipc=1).images.shape
    torch.Size([10, 1, 8, 8])
    """
    ipc, seed = whole_number("ipc", ipc, 1), whole_number("seed", seed, 0)
    partition = whole_number("partition", partition, 1)
    dataset = open_dataset(dataset, data_path=data_path)
    check_partition(partition, dataset.image_shape[1:])
    smallest = int(dataset.train.class_sizes.min()) // partition**2
    if ipc > smallest:
        most = "the size of the smallest class" + (f" / {partition}²" if partition > 1 else "")
        raise FastDMError(f"ipc is {ipc}; it must be at least 1 and at most {smallest}, {most}")
    return SyntheticSet(
        images=initial_images(dataset, ipc, seed, partition=partition),
        class_names=dataset.class_names,
        mean=dataset.mean,
        std=dataset.std,
        dataset=dataset.name,
        settings={"method": "random selection", "ipc": ipc, "seed": seed},
        partition=partition,
    )


@undisturbed()
def whole_set(dataset: Source, *, data_path: str | Path = "data") -> Pool:
    """All training images of a data set, as `evaluate` takes them.

    dataset, data_path: as in `open_dataset`, which raises FastDMError for what cannot be used.

    >>> import fastdm
    >>> len(fastdm.whole_set("digits"))
    1437
    """
    return open_dataset(dataset, data_path=data_path).train
