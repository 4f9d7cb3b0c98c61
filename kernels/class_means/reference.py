"""The loss of distribution matching in plain PyTorch: the definition of correct."""

import torch
from torch import Tensor

from ..numerics import class_means, working_dtype


def class_mean_difference(
    real: Tensor, synthetic: Tensor, real_offsets: Tensor | None, synthetic_offsets: Tensor, empty: str
) -> tuple[Tensor, Tensor]:
    """Return Σ_c ‖mean of real[c] − mean of synthetic[c]‖² and the differences [classes, D]."""
    work = working_dtype(real.dtype)
    full = synthetic_offsets.diff() > 0
    real = real.to(work)
    if real_offsets is not None:
        full &= real_offsets.diff() > 0
        real = class_means(real, real_offsets)
    difference = real - class_means(synthetic.to(work), synthetic_offsets)
    difference = torch.where(full[:, None], difference, 0)
    return difference.square().sum(), difference


def class_mean_difference_backward(
    grad: Tensor, difference: Tensor, synthetic_offsets: Tensor, rows: int, dtype: torch.dtype
) -> Tensor:
    """Return the gradient [rows, D] to the synthetic features: −2 · grad · difference / class size, for every row."""
    sizes = synthetic_offsets.diff()
    owner = torch.repeat_interleave(sizes, output_size=rows)
    return (difference * (-2 * grad / sizes.clamp(min=1))[:, None])[owner].to(dtype)
