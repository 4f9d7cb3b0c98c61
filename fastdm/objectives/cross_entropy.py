"""The cross-entropy of synthetic images in a trained network."""

from torch import Tensor

from fastdm.kernels import cross_entropy as summed_cross_entropy
from fastdm.objectives.objective import Segments


def cross_entropy(logits: Tensor, labels: Tensor, segments: Segments) -> Tensor:
    """Σ_c mean_j CE(logits of image j of class c, c): float32 (float64 of float64) scalar.

    logits: [N, classes]; labels: int64 [N]; segments: of these images, of which every class has as many.
    """
    classes = len(segments.offsets) - 1
    return summed_cross_entropy(logits, labels, classes / len(labels))
