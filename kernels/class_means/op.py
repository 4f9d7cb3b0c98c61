"""`class_means` and `class_mean_difference`: checks, schemas, gradient."""

from typing import Any

import torch
from torch import Tensor

from ..checks import (
    check_floating_point,
    check_no_second_derivative,
    check_no_tangent,
    check_offset_values,
    check_offsets,
    check_tensor,
)
from ..dispatch import define, remember_backend, with_its_backend
from ..numerics import working_dtype


def class_means(features: Tensor, offsets: Tensor) -> Tensor:
    """Return the mean of each class's rows, 0 for a class without rows.

    features: floating point [N, D], sorted by class; it takes no gradient.
    offsets: int64 [classes + 1], rising from 0 to N.

    Returns float32 (float64 for float64) [classes, D], summed in a fixed order. Raises TypeError for a wrong dtype,
    ValueError for wrong shapes, devices and (on the CPU) offsets.

    >>> import torch
    >>> from fastdm.kernels import class_means
    >>> class_means(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 2, 3]))
    tensor([[2.],
            [5.]])
    """
    check_tensor("features", features, 2)
    check_floating_point("features", features)
    check_offsets("offsets", offsets, features.device)
    means: Tensor = torch.ops.fastdm.class_means(features.detach(), offsets)
    return means


def class_mean_difference(
    real: Tensor, synthetic: Tensor, real_offsets: Tensor | None, synthetic_offsets: Tensor, *, empty: str = "zero"
) -> Tensor:
    """Return Σ_c ‖mean_i real[c, i] − mean_j synthetic[c, j]‖², the loss of distribution matching.

    real, synthetic: floating point [N, D] and [M, D], their rows sorted by class.
    real_offsets, synthetic_offsets: int64 [classes + 1], rising from 0 to N and M. Without real_offsets real holds one
        row for each class, such as its mean.
    empty: "zero": a class that has no rows on one side adds nothing. "error": ValueError (known on the CPU only).

    Returns a float32 scalar (float64 where a side is float64), summed in a fixed order. The gradient flows to synthetic
    only. Raises TypeError for a wrong dtype, ValueError for wrong shapes, devices and (on the CPU) offsets.

    >>> import torch
    >>> from fastdm.kernels import class_mean_difference
    >>> real, synthetic = torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0]])
    >>> class_mean_difference(real, synthetic, torch.tensor([0, 2]), torch.tensor([0, 1]))
    tensor(9.)
    """
    for name, features in (("real", real), ("synthetic", synthetic)):
        check_tensor(name, features, 2, None, real.device)
        check_floating_point(name, features)
    if real.shape[1] != synthetic.shape[1]:
        raise ValueError(f"real has {real.shape[1]} features and synthetic {synthetic.shape[1]}; they must agree")
    check_offsets("synthetic_offsets", synthetic_offsets, real.device)
    if real_offsets is None:
        if len(real) != len(synthetic_offsets) - 1:
            raise ValueError(f"real has {len(real)} rows for {len(synthetic_offsets) - 1} classes; give real_offsets")
    else:
        check_offsets("real_offsets", real_offsets, real.device)
        if real_offsets.shape != synthetic_offsets.shape:
            raise ValueError(
                f"there are {len(real_offsets)} real_offsets and {len(synthetic_offsets)} synthetic_offsets"
            )
    if empty not in ("zero", "error"):
        raise ValueError(f"empty is {empty!r}; it must be 'zero' or 'error'")
    check_no_tangent("class_mean_difference", synthetic)
    loss: Tensor
    args = (real, synthetic, real_offsets, synthetic_offsets, empty)
    if synthetic.requires_grad and torch.is_grad_enabled():
        # Dynamo cannot trace an autograd function that gets one tensor twice: the sides may share theirs.
        own_offsets = None if real_offsets is None else real_offsets.detach()
        args = (real.detach(), synthetic, own_offsets, synthetic_offsets, empty)
        loss = _ClassMeanDifference.apply(*args)
    else:
        with torch.no_grad():
            loss, _ = torch.ops.fastdm.class_mean_difference(*args)
    return loss


class _ClassMeanDifference(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, real: Tensor, synthetic: Tensor, real_offsets: Tensor | None, synthetic_offsets: Tensor, empty: str
    ) -> Tensor:
        loss: Tensor
        loss, difference = torch.ops.fastdm.class_mean_difference(
            real, synthetic, real_offsets, synthetic_offsets, empty
        )
        remember_backend(ctx)
        ctx.save_for_backward(difference, synthetic_offsets)
        ctx.rows, ctx.dtype = synthetic.shape[0], synthetic.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        check_no_second_derivative("class_mean_difference")
        difference, offsets = ctx.saved_tensors
        backward = torch.ops.fastdm.class_mean_difference_backward
        grad_synthetic = with_its_backend(ctx, backward, grad, difference, offsets, ctx.rows, ctx.dtype)
        return None, grad_synthetic, None, None, None


def _check_values(
    real: Tensor, synthetic: Tensor, real_offsets: Tensor | None, synthetic_offsets: Tensor, empty: str
) -> None:
    if real_offsets is not None:
        check_offset_values("real_offsets", real_offsets, len(real))
    check_offset_values("synthetic_offsets", synthetic_offsets, len(synthetic))
    if empty == "error":
        absent = synthetic_offsets.diff() == 0
        if real_offsets is not None:
            absent |= real_offsets.diff() == 0
        if absent.any():
            raise ValueError(f"class {int(absent.nonzero()[0])} is empty; give it images, or choose empty='zero'")


@define(
    "class_means",
    "(Tensor features, Tensor offsets) -> Tensor",
    lambda features, offsets: check_offset_values("offsets", offsets, len(features)),
)
def _(features: Tensor, offsets: Tensor) -> Tensor:
    return features.new_empty((offsets.shape[0] - 1, features.shape[1]), dtype=working_dtype(features.dtype))


@define(
    "class_mean_difference",
    "(Tensor real, Tensor synthetic, Tensor? real_offsets, Tensor synthetic_offsets, str empty) -> (Tensor, Tensor)",
    _check_values,
)
def _(
    real: Tensor, synthetic: Tensor, real_offsets: Tensor | None, synthetic_offsets: Tensor, empty: str
) -> tuple[Tensor, Tensor]:
    work = working_dtype(real.dtype, synthetic.dtype)
    shape = (synthetic_offsets.shape[0] - 1, real.shape[1])
    return real.new_empty((), dtype=work), real.new_empty(shape, dtype=work)


@define(
    "class_mean_difference_backward",
    "(Tensor grad, Tensor difference, Tensor synthetic_offsets, SymInt rows, ScalarType dtype) -> Tensor",
)
def _(grad: Tensor, difference: Tensor, synthetic_offsets: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    return difference.new_empty((rows, difference.shape[1]), dtype=dtype)
