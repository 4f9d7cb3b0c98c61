"""Some classes of a data set."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from fastdm.data.pool import Dataset, Pool


def of_classes(dataset: Dataset, classes: Sequence[int]) -> Dataset:
    """The data set of these classes only: label i is the class `classes[i]`. Its images are copied to memory.

    >>> from fastdm.data import open_dataset
    >>> few = of_classes(open_dataset("digits"), [7, 3])
    >>> few.class_names, few.num_classes
    (('7', '3'), 2)
    """
    return replace(
        dataset,
        train=_pool(dataset.train, classes),
        test=dataset.test and _pool(dataset.test, classes),
        class_names=tuple(dataset.class_names[label] for label in classes),
    )


def _pool(pool: Pool, classes: Sequence[int]) -> Pool:
    offsets = pool.class_offsets.tolist()
    rows = torch.cat([torch.arange(offsets[label], offsets[label + 1]) for label in classes])
    sizes = pool.class_sizes[list(classes)]
    return Pool(pool.read(rows), torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)]))
