"""The cross-entropy of synthetic images in a trained network."""

from torch import Tensor
from torch.nn import functional

from fastdm.objectives.objective import Segments


def cross_entropy(logits: Tensor, labels: Tensor, segments: Segments) -> Tensor:
    """Σ_c mean_j CE(logits of image j of class c, c): float32 (float64 of float64) scalar.

    logits: [N, classes]; labels: int64 [N]; segments: of these images, of which every class has as many.
    """
    wide = logits if logits.dtype.itemsize >= 4 else logits.float()
    classes = len(segments.offsets) - 1
    return functional.cross_entropy(wide, labels, reduction="sum") * (classes / len(labels))
