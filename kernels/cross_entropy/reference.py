"""The cross-entropy in plain PyTorch: the definition of correct."""

import torch
from torch import Tensor
from torch.nn import functional

from ..numerics import working_dtype


def cross_entropy(logits: Tensor, labels: Tensor, scale: float) -> Tensor:
    """Return the scaled sum over the rows; see the public function."""
    wide = logits.to(working_dtype(logits.dtype))
    return functional.cross_entropy(wide, labels, reduction="sum") * scale


def cross_entropy_backward(grad: Tensor, logits: Tensor, labels: Tensor, scale: float) -> Tensor:
    """Return grad · scale · (softmax − 1 where the label is), with the bits of PyTorch's own gradient."""
    log_p = logits.to(working_dtype(logits.dtype)).log_softmax(1)
    towards = torch.zeros_like(log_p).scatter_(1, labels[:, None], (-(grad * scale)).expand(len(labels), 1))
    gradient: Tensor = torch.ops.aten._log_softmax_backward_data(towards, log_p, 1, log_p.dtype)
    return gradient.to(logits.dtype)
