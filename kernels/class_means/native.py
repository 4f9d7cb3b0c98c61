"""Class means and the loss of matching them through the C++ extension: the bits of the reference, for any number of
threads."""

import torch
from torch import Tensor

from ..extension import call, contiguous

_SUMMED = (1 << 15) - 1
"""Squares that PyTorch adds up at a time: it shares longer sums among threads, in an order that depends on them."""
_TAKEN = (torch.float32, torch.bfloat16)


def takes_class_means(features: Tensor, offsets: Tensor) -> bool:
    return features.dtype in _TAKEN


def class_means(features: Tensor, offsets: Tensor) -> Tensor:
    means = torch.empty(len(offsets) - 1, features.shape[1], dtype=torch.float32)
    call("class_means", features.contiguous(), offsets.contiguous(), means)
    return means


def takes_class_mean_difference(
    real: Tensor, synthetic: Tensor, real_offsets: Tensor | None, synthetic_offsets: Tensor, empty: str
) -> bool:
    return real.dtype in _TAKEN and synthetic.dtype in _TAKEN


def class_mean_difference(
    real: Tensor, synthetic: Tensor, real_offsets: Tensor | None, synthetic_offsets: Tensor, empty: str
) -> tuple[Tensor, Tensor]:
    difference = torch.empty(len(synthetic_offsets) - 1, real.shape[1], dtype=torch.float32)
    real, synthetic = real.detach().contiguous(), synthetic.detach().contiguous()
    call("class_mean_difference", real, synthetic, contiguous(real_offsets), synthetic_offsets.contiguous(), difference)
    squares = difference.square().flatten()
    return torch.stack([part.sum() for part in squares.split(_SUMMED)]).sum(), difference


def takes_class_mean_difference_backward(
    grad: Tensor, difference: Tensor, synthetic_offsets: Tensor, rows: int, dtype: torch.dtype
) -> bool:
    return difference.dtype == torch.float32 and dtype in _TAKEN


def class_mean_difference_backward(
    grad: Tensor, difference: Tensor, synthetic_offsets: Tensor, rows: int, dtype: torch.dtype
) -> Tensor:
    out = torch.empty(rows, difference.shape[1], dtype=dtype)
    call(
        "class_mean_difference_backward",
        grad.item(),
        difference.detach().contiguous(),
        synthetic_offsets.contiguous(),
        out,
    )
    return out
