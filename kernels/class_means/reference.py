"""Class means and the loss of distribution matching in plain PyTorch: the definition of correct."""

import torch
from torch import Tensor

from .. import numerics
from ..numerics import working_dtype


def class_means(features: Tensor, offsets: Tensor) -> Tensor:
    """Return the means [classes, D] of the rows of each class; 0 for a class without rows."""
    return numerics.class_means(features.to(working_dtype(features.dtype)), offsets)


def class_mean_difference(
    real: Tensor, synthetic: Tensor, real_offsets: Tensor | None, synthetic_offsets: Tensor, empty: str
) -> tuple[Tensor, Tensor]:
    """Return Σ_c ‖mean of real[c] − mean of synthetic[c]‖² and the differences [classes, D]."""
    work = working_dtype(real.dtype, synthetic.dtype)
    full = synthetic_offsets.diff() > 0
    real = real.to(work)
    if real_offsets is not None:
        full &= real_offsets.diff() > 0
        real = numerics.class_means(real, real_offsets)
    difference = real - numerics.class_means(synthetic.to(work), synthetic_offsets)
    difference = torch.where(full[:, None], difference, 0)
    return difference.square().sum(), difference


def class_mean_difference_backward(
    grad: Tensor, difference: Tensor, synthetic_offsets: Tensor, rows: int, dtype: torch.dtype
) -> Tensor:
    """Return the gradient [rows, D] to the synthetic features: −2 · grad · difference / class size, for every row."""
    sizes = synthetic_offsets.diff()
    owner = torch.repeat_interleave(sizes, output_size=rows)
    return (difference * (-2 * grad / sizes.clamp(min=1))[:, None])[owner].to(dtype)
