"""What an objective is: a statistic of the real images' embeddings, and a loss that pulls the synthetic ones to it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

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
    chunk's first class.
    """

    rows: slice
    offsets: Tensor
    group: Tensor


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

    def loss(self, network: Network, target: Tensor, synthetic: Tensor, segments: Segments) -> Tensor:
        """How far the synthetic images [N, C, H, W], augmented, are from it: a scalar, differentiable in them."""
        ...
