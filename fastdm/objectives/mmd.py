"""The maximum mean discrepancy under a Gaussian kernel, which compares all moments (M3D, Zhang et al., AAAI 2024)."""

import math

import torch
from torch import Tensor

from fastdm.objectives.gram import class_mean, embed_real, gram, wide
from fastdm.objectives.objective import Segments

BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)

SLOPE = 2 * sum(math.exp(-1 / b) / b for b in BANDWIDTHS)
"""With all distances at their mean m, the loss moves SLOPE / m times as fast as that of the class means."""


class GaussianMMD:
    """Σ_c m_c / SLOPE · (mean k(s, s') − 2 mean k(s, r) + mean k(r, r')), k(x, y) = Σ_b exp(−‖x − y‖² / (b · m_c)).

    s, r: synthetic and real images' embeddings of class c, each pair counted both ways and each image with itself too;
    m_c: the mean squared distance of all distinct ones of them together, not differentiated; b ∈ {¼, ½, 1, 2, 4}.
    Scaled so that one learning rate suits it and the class means. A class without real images adds nothing.
    """

    real = staticmethod(embed_real)

    def loss(self, target: Tensor, features: Tensor, real: Segments, synthetic: Segments) -> Tensor:
        """float32 (float64 of float64) scalar; target: float32 [rows, D], as `real` gives it."""
        r, mask = real.padded(target)
        s, _ = synthetic.padded(wide(features))
        centre = class_mean(r, mask)  # Distances do not change, and are rounded less.
        r, s = (r - centre) * mask, s - centre
        n_real, n_synthetic = mask.sum((1, 2)), s.shape[1]
        r_squares, s_squares = r.square().sum(2), s.square().sum(2)
        bandwidth = _mean_distance(r.sum(1) + s.sum(1), r_squares.sum(1) + s_squares.sum(1), n_real + n_synthetic)

        def kernel(x: Tensor, y: Tensor, x_squares: Tensor, y_squares: Tensor) -> Tensor:
            distance = (x_squares[:, :, None] + y_squares[:, None] - 2 * gram(x, y)).clamp(min=0)
            scaled = distance / bandwidth[:, None, None]
            return torch.stack([torch.exp(-scaled / b) for b in BANDWIDTHS]).sum(0)

        pairs = mask.transpose(1, 2)
        of_synthetic = kernel(s, s, s_squares, s_squares).mean((1, 2))
        between = (kernel(s, r, s_squares, r_squares) * pairs).sum((1, 2)) / (n_synthetic * n_real.clamp(min=1))
        with torch.no_grad():
            of_real = (kernel(r, r, r_squares, r_squares) * pairs * mask).sum((1, 2)) / n_real.square().clamp(min=1)
        loss: Tensor = (of_synthetic - 2 * between + of_real) * bandwidth / SLOPE * (n_real > 0)
        return loss.sum()

    def bytes(self, real: int, synthetic: int, dimension: int) -> int:
        """Copies of the embeddings that are centred and, where classes differ in size, padded; of every pair the
        distance and, for each bandwidth, what is exponentiated and the result."""
        pairs = 12 * real**2 + 14 * synthetic * (real + synthetic)
        return 4 * (pairs + (5 * real + 6 * synthetic) * dimension)


def _mean_distance(total: Tensor, squares: Tensor, n: Tensor) -> Tensor:
    """Σ_{i≠j} ‖z_i − z_j‖² / (n² − n) from Σ z and Σ ‖z‖², [classes], kept above 0 where all are the same."""
    with torch.no_grad():
        distances = 2 * n * squares - 2 * total.square().sum(1)
        lowest = 1e-6 * squares / n + torch.finfo(squares.dtype).tiny
        return torch.maximum(distances / (n * n - n).clamp(min=1), lowest)
