"""What an objective is: a statistic of the real images' embeddings, and a loss that pulls the synthetic ones to it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fastdm.data.batches import RealBatch
from fastdm.networks.model import Network

Augment = Callable[[RealBatch, Tensor], Tensor]
"""Gives augmented images [N, C, H, W] from real images and the class, int64 [N], of each."""


@dataclass(frozen=True)
class Segments:
    """Which rows of a class-sorted tensor belong to the classes of a chunk.

    rows: of the whole tensor, those of the chunk. offsets: int64 [classes + 1], counted from the chunk's first row; the
    images of class c are `offsets[c]` to `offsets[c + 1]`. group: int64 [rows], the class of each, counted from the
    chunk's first class. counts: images of each class. most: images of the largest class of all chunks.
    """

    rows: slice
    offsets: Tensor
    group: Tensor
    counts: tuple[int, ...]
    most: int

    def passes(self, most: int) -> Iterator[tuple[slice, slice]]:
        """Split the chunk into passes of at most `most` images: (classes, rows), both counted from its first.

        A pass is of whole classes, or of an even share of one that is larger, so that what is summed over the images of
        a class does not depend on the classes that share its chunk.
        """
        first = start = end = 0
        for number, count in enumerate(self.counts):
            if end > start and end + count - start > most:
                yield slice(first, number), slice(start, end)
                first, start = number, end
            shares = -(-count // most)
            if shares > 1:
                for share in range(shares):
                    rows = slice(end + count * share // shares, end + count * (share + 1) // shares)
                    yield slice(number, number + 1), rows
                first, start = number + 1, end + count
            end += count
        if end > start:
            yield slice(first, len(self.counts)), slice(start, end)

    def padded(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features [rows, D] by class, [classes, most, D], with zeros where a class is smaller, and a mask [classes,
        most, 1] of their dtype: 1 where an image is, else 0. Without gradient, unless all classes are of one size.
        """
        classes = len(self.offsets) - 1
        position = self.offsets[:-1, None] + torch.arange(self.most, device=features.device)
        mask = (position < self.offsets[1:, None]).to(features.dtype)[..., None]
        if len(self.group) == classes * self.most:
            return features.view(classes, self.most, -1), mask
        rows = features.detach().index_select(0, position.flatten().clamp_(max=len(features) - 1))
        return rows.view(classes, self.most, -1) * mask, mask


class Objective(Protocol):
    """What is matched between the real and the synthetic images of a chunk of classes."""

    def real(
        self, network: Network, batch: RealBatch, segments: Segments, augment: Augment, micro_batch: int
    ) -> Tensor:
        """What the synthetic images are to match, computed without gradient from at most `micro_batch` images at once.

        On a CPU few images, so that they and a layer's activations stay in its cache; a network that looks at the whole
        batch (BatchNorm) needs all of them at once.
        """
        ...

    def loss(self, target: Tensor, features: Tensor, real: Segments, synthetic: Segments) -> Tensor:
        """How far the embedding of the synthetic images, [N, D], is from it: a scalar, differentiable in it."""
        ...

    def bytes(self, real: int, synthetic: int, dimension: int) -> int:
        """What `loss` and its gradient take at a time for one class of so many images, with features [dimension], about
        and at most: embeddings that are kept whole, and matrices of pairs of images."""
        ...
