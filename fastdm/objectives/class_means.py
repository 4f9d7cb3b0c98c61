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
        means: Tensor | None = None
        for classes, rows in segments.passes(micro_batch):
            images = rows.stop - rows.start
            bounds = (offsets[classes.start : classes.stop + 1] - rows.start).clamp(0, images)
            mean = network.embed_mean(augment(batch.rows(rows), group[rows]), bounds)
            means = mean.new_zeros(len(segments.counts), mean.shape[1]) if means is None else means
            means[classes] += mean * (images / sum(segments.counts[classes]))
        assert means is not None
        return means

    def loss(self, target: Tensor, features: Tensor, real: Segments, synthetic: Segments) -> Tensor:
        """Squared distance of the class means: float32 scalar; target: float32 [classes, D], as `real` gives it."""
        return class_mean_difference(target, features, None, synthetic.offsets)

    def bytes(self, real: int, synthetic: int, dimension: int) -> int:
        """Nothing that counts: two means."""
        return 0
