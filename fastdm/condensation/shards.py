"""A rank's classes: a contiguous range of them, balanced by work. Its images are all that it has of the set."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fastdm.condensation.settings import Settings
from fastdm.data.pool import Dataset, Pool
from fastdm.errors import FastDMError
from fastdm.system.ranks import Ranks

BACKWARD = 3
"""Work of a synthetic image, which has a backward pass, in that of a real one."""


@dataclass(frozen=True)
class Shard:
    """part: the real images of a rank's classes, None for all; counts: classes of every rank; ipc: rows of a class."""

    part: Pool | None
    counts: tuple[int, ...]
    ipc: int
    rank: int

    @property
    def row_counts(self) -> list[int]:
        """Rows of the synthetic images that every rank has."""
        return [self.ipc * count for count in self.counts]

    @property
    def rows(self) -> range:
        """The rows of this rank."""
        first = self.ipc * sum(self.counts[: self.rank])
        return range(first, first + self.ipc * self.counts[self.rank])


def shard(dataset: Dataset, settings: Settings, ranks: Ranks) -> Shard:
    """This rank's classes; FastDMError where there are more ranks than classes."""
    if ranks.size == 1:
        return Shard(None, (dataset.num_classes,), settings.ipc, 0)
    if ranks.size > dataset.num_classes:
        raise FastDMError(
            f"there are {ranks.size} ranks for the {dataset.num_classes} classes of {dataset.name}, and a class is not "
            f"divided: use at most {dataset.num_classes}"
        )
    bounds = balanced(class_work(dataset, settings), ranks.size)
    part = dataset.train.classes(bounds[ranks.rank], bounds[ranks.rank + 1])
    counts = tuple(stop - first for first, stop in pairwise(bounds))
    return Shard(part, counts, settings.ipc, ranks.rank)


def class_work(dataset: Dataset, settings: Settings) -> Tensor:
    """The work of an iteration on every class, int64 [classes], in that of a real image."""
    real = dataset.train.class_sizes.clamp(max=settings.batch_real)
    return real + BACKWARD * settings.ipc * settings.partition**2


def balanced(work: Tensor, parts: int) -> list[int]:
    """Divide items of `work`, int64 [n], into contiguous parts of at least one: the parts' bounds, from 0 to n.

    A bound lies where the work before it is nearest to its share of all.
    """
    before = torch.cat([work.new_zeros(1), work.cumsum(0)]).double()
    bounds = [0]
    for part in range(1, parts):
        nearest = int((before - before[-1] * part / parts).abs().argmin())
        bounds.append(min(max(nearest, bounds[-1] + 1), len(work) - (parts - part)))
    return [*bounds, len(work)]
