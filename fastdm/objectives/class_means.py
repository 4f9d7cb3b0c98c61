"""DM's objective: the class means of the embedding (Zhao & Bilen, WACV 2023, equation 4)."""

import torch
from torch import Tensor

from fastdm.data.batches import RealBatch
from fastdm.kernels import class_mean_difference
from fastdm.networks.model import Network
from fastdm.objectives.objective import Augment, Segments


class ClassMeans:
    """Σ_c ‖ mean_i ψ(real_c,i) − mean_j ψ(synthetic_c,j) ‖², summed over classes and dimensions, not normalised."""

    @torch.no_grad()
    def real(
        self, network: Network, batch: RealBatch, segments: Segments, augment: Augment, micro_batch: int
    ) -> Tensor:
        """Mean embedding of every class: float32 (float64 of float64) [classes, D]."""
        group, offsets = segments.group, segments.offsets
        if micro_batch >= len(group):
            return network.embed_mean(augment(batch, group), offsets)
        total: Tensor | None = None
        for start in range(0, len(group), micro_batch):
            rows = slice(start, start + micro_batch)
            features = network.embed(augment(batch.rows(rows), group[rows]))
            features = features.to(torch.promote_types(features.dtype, torch.float32))
            share = _sums(features, offsets, start)
            total = share if total is None else total.add_(share)
        assert total is not None
        return total / offsets.diff().clamp(min=1)[:, None]

    def loss(self, target: Tensor, features: Tensor, real: Segments, synthetic: Segments) -> Tensor:
        """Squared distance of the class means: float32 scalar; target: float32 [classes, D], as `real` gives it."""
        return class_mean_difference(target, features, None, synthetic.offsets)


def _sums(features: Tensor, offsets: Tensor, first: int) -> Tensor:
    """Sums over the classes [classes, D] of the features [n, D] of a class-sorted batch's rows from `first` on.

    In a fixed order and in the features' precision, which index_add_ and, in TF32, a product on a GPU have not.
    """
    bounds = (offsets - first).clamp(0, len(features))
    if features.is_cuda:
        return torch.segment_reduce(features, "sum", offsets=bounds, axis=0)
    # On a CPU a product with the 0/1 membership of images in classes is faster, and as exact.
    rows = torch.arange(len(features))
    membership = (rows >= bounds[:-1, None]) & (rows < bounds[1:, None])
    return membership.to(features.dtype) @ features
