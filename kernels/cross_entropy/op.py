"""`cross_entropy`: checks, schema, gradient."""

from typing import Any

import torch
from torch import Tensor

from ..checks import (
    check_floating_point,
    check_index_values,
    check_no_second_derivative,
    check_no_tangent,
    check_tensor,
)
from ..dispatch import define, remember_backend, with_its_backend
from ..numerics import working_dtype


def cross_entropy(logits: Tensor, labels: Tensor, scale: float = 1.0) -> Tensor:
    """Return scale · Σ_i (log Σ_k exp logits[i, k] − logits[i, labels[i]]), summed in a fixed order.

    logits: floating point [N, classes]; labels: int64 [N]. A label that is no class is a ValueError on the CPU; on a
    GPU the loss and the gradient of its row are NaN.

    Returns a float32 scalar (float64 of float64), computed in this dtype. The gradient flows to logits, rounded once to
    their dtype; a gradient of it is a NotImplementedError. Raises TypeError for a wrong dtype, ValueError for wrong
    shapes and devices.

    >>> import torch
    >>> from fastdm.kernels import cross_entropy
    >>> cross_entropy(torch.zeros(2, 4), torch.tensor([0, 3]), 0.5)  # log 4
    tensor(1.3863)
    """
    check_tensor("logits", logits, 2)
    check_floating_point("logits", logits)
    check_tensor("labels", labels, 1, torch.int64, logits.device)
    if labels.shape[0] != logits.shape[0]:
        raise ValueError(f"there are {logits.shape[0]} rows of logits and {labels.shape[0]} labels")
    check_no_tangent("cross_entropy", logits)
    loss: Tensor
    if logits.requires_grad and torch.is_grad_enabled():
        loss = _CrossEntropy.apply(logits, labels, scale)
    else:
        loss = torch.ops.fastdm.cross_entropy(logits, labels, scale)
    return loss


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, scale: float) -> Tensor:
        remember_backend(ctx)
        ctx.save_for_backward(logits, labels)
        ctx.scale = scale
        loss: Tensor = torch.ops.fastdm.cross_entropy(logits, labels, scale)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        check_no_second_derivative("cross_entropy")
        backward = torch.ops.fastdm.cross_entropy_backward
        return with_its_backend(ctx, backward, grad, *ctx.saved_tensors, ctx.scale), None, None


def _check_labels(logits: Tensor, labels: Tensor, scale: float) -> None:
    check_index_values("labels", labels, logits.shape[1])


@define("cross_entropy", "(Tensor logits, Tensor labels, float scale) -> Tensor", _check_labels)
def _(logits: Tensor, labels: Tensor, scale: float) -> Tensor:
    return logits.new_empty((), dtype=working_dtype(logits.dtype))


@define("cross_entropy_backward", "(Tensor grad, Tensor logits, Tensor labels, float scale) -> Tensor")
def _(grad: Tensor, logits: Tensor, labels: Tensor, scale: float) -> Tensor:
    return logits.new_empty(logits.shape)
