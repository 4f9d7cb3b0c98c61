"""Means and covariances of the embedding (DSDM, Li et al., 2024)."""

from torch import Tensor

from fastdm.objectives.gram import class_mean, embed_real, gram, wide
from fastdm.objectives.objective import Segments

WEIGHT = 50
"""The factor of the covariances' distance, to be divided by the dimension of the embedding (DSDM's)."""


class Covariances:
    """Σ_c ‖mean s − mean r‖² + WEIGHT / D · ‖Cov s − Cov r‖²_F, with the unbiased covariances [D, D] of every class.

    They are never written: ‖Cov s − Cov r‖²_F follows from the Gram matrices of the images. A class of a single image
    on either side has no covariance and adds the distance of the means only, one without real images nothing.
    """

    real = staticmethod(embed_real)

    def loss(self, target: Tensor, features: Tensor, real: Segments, synthetic: Segments) -> Tensor:
        """float32 (float64 of float64) scalar; target: float32 [rows, D], as `real` gives it."""
        r, mask = real.padded(target)
        s, _ = synthetic.padded(wide(features))
        r_mean, s_mean = class_mean(r, mask), s.mean(1, keepdim=True)
        r, s = (r - r_mean) * mask, s - s_mean
        n_real, n_synthetic = mask.sum((1, 2)), s.shape[1]
        loss: Tensor = (s_mean - r_mean).square().sum((1, 2)) * (n_real > 0)
        if n_synthetic > 1:
            free_real, free_synthetic = (n_real - 1).clamp(min=1), n_synthetic - 1
            distance = (
                gram(s, s).square().sum((1, 2)) / free_synthetic**2
                - 2 * gram(s, r).square().sum((1, 2)) / (free_synthetic * free_real)
                + gram(r, r).square().sum((1, 2)) / free_real**2
            )
            loss = loss + WEIGHT / s.shape[2] * distance * (n_real > 1)
        return loss.sum()

    def bytes(self, real: int, synthetic: int, dimension: int) -> int:
        """Copies of the embeddings that are centred and, where classes differ in size, padded; Gram matrices."""
        pairs = 2 * real**2 + 2 * real * synthetic + 4 * synthetic**2
        return 4 * (pairs + (5 * real + 5 * synthetic) * dimension)
