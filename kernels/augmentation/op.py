"""`dsa`: checks, schema, gradient."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import table as columns
from ..checks import check_index_values, check_tensor
from ..dispatch import define, remember_backend, with_its_backend
from ..numerics import memory_format


def dsa(
    images: Tensor,
    table: Tensor,
    group: Tensor | None = None,
    *,
    index: Tensor | None = None,
    mean: Tensor | Sequence[float] | None = None,
    std: Tensor | Sequence[float] | None = None,
    dtype: torch.dtype | None = None,
    channels_last: bool = False,
) -> Tensor:
    """Read, normalise and augment images in one pass (differentiable Siamese augmentation, Zhao & Bilen, 2021).

    The families act in the order color, crop, cutout, flip, scale, rotate, each with the parameters of its row of the
    table (`fastdm.kernels.table`), where a family that is not applied has its identity value. Pixels outside the
    image are 0 after normalisation. Scale and rotation sample bilinearly on the grid of `affine_grid` with
    `align_corners=False`.

    images: floating point [M, C, H, W], already normalised, or uint8 [M, C, H, W] with `mean` and `std`, of which
        a normalised pixel is (x / 255 − mean) / std. C is 1 or 3.
    table: float32 [G, 16]. A row may enlarge the picture at most 1.5 times, and rotate it by any angle.
    group: int64 [N], the row of the table for each output image; None if G is N, or 1 for all images.
    index: int64 [N], the image to read for each output image; None reads all, in order, and N = M.
    mean, std: [C], for uint8 images only. Sequences are copied to the device at every call; tensors are not.
    dtype: of the result; None means float32 for uint8 images, otherwise their own. The arithmetic is float32 (float64
        for float64 images).
    channels_last: whether the result has that memory format.

    Returns [N, C, H, W]. Gradients flow to floating-point images, without index. Raises TypeError for a wrong dtype,
    ValueError for wrong shapes, devices and values.

    >>> from fastdm.kernels import dsa, table
    >>> rows = table.identity(1)
    >>> rows[0, table.FLIP] = 1
    >>> dsa(torch.tensor([[[[1.0, 2.0, 3.0]]]]), rows)
    tensor([[[[3., 2., 1.]]]])
    """
    _check_images(images, mean, std)
    if images.dtype == torch.uint8:
        mean, std = (_per_channel(name, v, images) for name, v in (("mean", mean), ("std", std)))
    _check_rows(images, table, group, index)
    if dtype is None:
        dtype = torch.float32 if images.dtype == torch.uint8 else images.dtype
    if not dtype.is_floating_point:
        raise TypeError(f"dtype is {dtype}; it must be floating point")
    out: Tensor
    if images.requires_grad and torch.is_grad_enabled():
        out = _Dsa.apply(images, table, group, dtype, channels_last)
    else:
        out = torch.ops.fastdm.dsa(images, table, group, index, mean, std, dtype, channels_last)
    return out


class _Dsa(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, images: Tensor, table: Tensor, group: Tensor | None, dtype: torch.dtype, channels_last: bool
    ) -> Tensor:
        remember_backend(ctx)
        ctx.save_for_backward(table, group)
        ctx.dtype = images.dtype
        out: Tensor = torch.ops.fastdm.dsa(images, table, group, None, None, None, dtype, channels_last)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        table, group = ctx.saved_tensors
        grad_images = with_its_backend(ctx, torch.ops.fastdm.dsa_backward, grad, table, group, ctx.dtype)
        return grad_images, None, None, None, None


# --- checks ----------------------------------------------------------------------------------------------------------


def _check_images(images: Tensor, mean: Tensor | Sequence[float] | None, std: Tensor | Sequence[float] | None) -> None:
    check_tensor("images", images, 4)
    if images.shape[1] not in (1, 3) or 0 in images.shape[2:]:
        raise ValueError(f"images have the shape {tuple(images.shape)}; it must be [M, 1 or 3, H, W]")
    if images.dtype == torch.uint8:
        if mean is None or std is None:
            raise ValueError("uint8 images need mean and std, one value per channel")
    elif not images.dtype.is_floating_point:
        raise TypeError(f"images are {images.dtype}; they must be uint8 or floating point")
    elif mean is not None or std is not None:
        raise ValueError("mean and std belong to uint8 images; floating-point images must be normalised already")


def _per_channel(name: str, values: Tensor | Sequence[float] | None, images: Tensor) -> Tensor:
    tensor = torch.as_tensor(values, dtype=torch.float32, device=images.device)
    if tensor.shape != images.shape[1:2]:
        raise ValueError(f"{name} has the shape {tuple(tensor.shape)}; it must hold {images.shape[1]} values")
    return tensor


def _check_rows(images: Tensor, table: Tensor, group: Tensor | None, index: Tensor | None) -> None:
    check_tensor("table", table, 2, torch.float32, images.device)
    if table.shape[1] != columns.COLUMNS:
        raise ValueError(f"table has {table.shape[1]} columns; it must have {columns.COLUMNS}")
    if index is not None:
        check_tensor("index", index, 1, torch.int64, images.device)
        if images.requires_grad and torch.is_grad_enabled():
            raise ValueError("images that need a gradient cannot be read through index; index them before")
    n = images.shape[0] if index is None else index.shape[0]
    if group is not None:
        check_tensor("group", group, 1, torch.int64, images.device)
        if group.shape[0] != n:
            raise ValueError(f"group has {group.shape[0]} entries for {n} images; it must have one for each")
    elif table.shape[0] not in (1, n):
        raise ValueError(f"table has {table.shape[0]} rows for {n} images; without group it must have 1 or {n}")


def _check_values(images: Tensor, table: Tensor, group: Tensor | None, index: Tensor | None, *_: Any) -> None:
    check_index_values("index", index, len(images))
    _check_table_values(table, group)


def _check_table_values(table: Tensor, group: Tensor | None) -> None:
    check_index_values("group", group, len(table))
    if not table.isfinite().all():
        raise ValueError("table holds a value that is not finite")
    x, y = table[:, columns.SCALE_X], table[:, columns.SCALE_Y]
    cos, sin = table[:, columns.ROTATE_COS], table[:, columns.ROTATE_SIN]
    if not ((x > 0) & (y > 0)).all():
        raise ValueError("table holds a scale that is not positive")
    if not ((cos * cos + sin * sin - 1).abs() <= columns.ROUNDING).all():
        raise ValueError("table holds a rotation whose ROTATE_COS and ROTATE_SIN are not those of an angle")
    enlargement = 1 / torch.minimum(x, y)
    row = int(enlargement.argmax()) if len(table) else 0
    if len(table) and float(enlargement[row]) > columns.MAX_ENLARGEMENT + columns.ROUNDING:
        raise ValueError(
            f"row {row} of table enlarges the picture {float(enlargement[row]):.3g} times, but the backward pass can "
            f"follow at most {columns.MAX_ENLARGEMENT}: use a ratio_scale of at most 1.5"
        )


# --- schemas and fakes -----------------------------------------------------------------------------------------------


@define(
    "dsa",
    "(Tensor images, Tensor table, Tensor? group, Tensor? index, Tensor? mean, Tensor? std, ScalarType dtype,"
    " bool channels_last) -> Tensor",
    _check_values,
)
def _(
    images: Tensor,
    table: Tensor,
    group: Tensor | None,
    index: Tensor | None,
    mean: Tensor | None,
    std: Tensor | None,
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    n = images.shape[0] if index is None else index.shape[0]
    shape = (n, *images.shape[1:])
    return torch.empty(shape, dtype=dtype, device=images.device, memory_format=memory_format(channels_last))


@define(
    "dsa_backward",
    "(Tensor grad, Tensor table, Tensor? group, ScalarType dtype) -> Tensor",
    lambda grad, table, group, dtype: _check_table_values(table, group),
)
def _(grad: Tensor, table: Tensor, group: Tensor | None, dtype: torch.dtype) -> Tensor:
    return torch.empty(grad.shape, dtype=dtype, device=grad.device)
