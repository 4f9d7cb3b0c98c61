"""What the objectives have in common that compare single images: embeddings kept whole, and their Gram matrices.

Inner products of the images of a class say all about their distances and covariances, whatever the dimension: a product
of matrices for every class, in one batched call. They are computed in the precision of matrix products that is set.
"""

import torch
from torch import Tensor

from fastdm.data.batches import RealBatch
from fastdm.networks.model import Network
from fastdm.objectives.objective import Augment, Segments


@torch.no_grad()
def embed_real(network: Network, batch: RealBatch, segments: Segments, augment: Augment, micro_batch: int) -> Tensor:
    """The embedding of every real image, float32 (float64 of float64) [rows, D], of `micro_batch` images at once."""
    parts = []
    for start in range(0, len(segments.group), micro_batch):
        rows = slice(start, start + micro_batch)
        parts.append(wide(network.embed(augment(batch.rows(rows), segments.group[rows]))))
    return torch.cat(parts)


def wide(features: Tensor) -> Tensor:
    """Features in float32, or in float64 if they are."""
    return features.to(torch.promote_types(features.dtype, torch.float32))


def gram(x: Tensor, y: Tensor) -> Tensor:
    """Inner products of the rows of every class: [classes, n, D], [classes, m, D] → [classes, n, m].

    On a CPU one after the other: in a batch of one, a product is rounded in another way than in a larger one.
    """
    if not x.is_cuda:
        return torch.stack([a @ b.T for a, b in zip(x, y, strict=True)])
    return torch.bmm(x, y.transpose(1, 2))


def class_mean(features: Tensor, mask: Tensor) -> Tensor:
    """[classes, 1, D], of the rows that the mask [classes, n, 1] has."""
    return features.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
