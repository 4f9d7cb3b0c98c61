"""`dsa`: checks, schema, gradient."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import table as columns
from ..checks import check_index_values, check_no_tangent, check_tensor
from ..dispatch import define, remember_backend, run_unchecked, with_its_backend
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

    >>> import torch
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
    if index is None and images.is_floating_point():
        return _affine(images, table, group, dtype, channels_last, False)
    out: Tensor = torch.ops.fastdm.dsa(images, table, group, index, mean, std, dtype, channels_last)
    return out


def apply_rows(images: Tensor, table: Tensor) -> Tensor:
    """`dsa` of images and a table that its maker knows to be right: only the values are not looked at again.

    images: float16, bfloat16 or float32 [N, 1 or 3, H, W]; table: float32 [1 or N, 16], contiguous, like those of
    `Strategy.tables`. What a wrong value does is undefined, but it never reaches memory outside the images.
    """
    return _affine(images, table, None, images.dtype, False, True)


# --- derivatives: for fixed parameters the result is an affine function of the images --------------------------------


def _affine(
    images: Tensor, table: Tensor, group: Tensor | None, dtype: torch.dtype, channels_last: bool, is_sound: bool
) -> Tensor:
    """`dsa` of float images. is_sound: whether the values of table and group are known to be right."""
    args = images, table, group, dtype, channels_last, is_sound
    out: Tensor
    if not torch.compiler.is_compiling() and _is_transformed():
        out = _TransformableDsa.apply(*args)
    elif images.requires_grad and torch.is_grad_enabled():
        out = _Dsa.apply(*args)
    else:
        out = _run(*args)
    return out


def _is_transformed() -> bool:
    """Whether `torch.func` or forward mode is at work."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _run(
    images: Tensor, table: Tensor, group: Tensor | None, dtype: torch.dtype, channels_last: bool, is_sound: bool
) -> Tensor:
    args = images, table, group, None, None, None, dtype, channels_last
    out: Tensor = run_unchecked("dsa", *args) if is_sound else torch.ops.fastdm.dsa(*args)
    return out


def _transposed(grad: Tensor, table: Tensor, group: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return the gradient of `dsa` with respect to images of a dtype, a linear function of the gradient that comes in.

    The table has passed through `dsa` and is sound.
    """
    if not torch.compiler.is_compiling() and (torch.is_grad_enabled() or _is_transformed()):
        out: Tensor = _Transposed.apply(grad, table, group, dtype)
        return out
    out = run_unchecked("dsa_backward", grad, table, group, dtype)
    return out


class _Dsa(torch.autograd.Function):
    """What most calls need: PyTorch takes three times as long to call a function with rules for `torch.func`, and
    torch.compile takes none with rules for forward mode."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        images, table, group, *_ = inputs
        ctx.dtype = images.dtype
        remember_backend(ctx)
        ctx.save_for_backward(table, group)
        return _run(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_images = with_its_backend(ctx, _transposed, grad, *ctx.saved_tensors, ctx.dtype)
        return grad_images, None, None, None, None, None


class _TransformableDsa(torch.autograd.Function):
    """The same with forward mode and `torch.func`."""

    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        return _run(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        images, table, group, ctx.out_dtype, ctx.channels_last, _ = inputs
        ctx.dtype = images.dtype
        remember_backend(ctx)
        ctx.set_materialize_grads(False)  # So that `jvp` sees which input is differentiated.
        ctx.save_for_backward(table, group)
        ctx.save_for_forward(table, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is not None:
            grad = with_its_backend(ctx, _transposed, grad, *ctx.saved_tensors, ctx.dtype)
        return grad, None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, images: Tensor | None, table: Tensor | None, *_: None) -> Tensor:
        if images is None or table is not None:
            raise NotImplementedError("dsa is differentiable with respect to its images only; detach the table")
        rows, group = ctx.saved_tensors
        return _affine(images, _linear(rows), group, ctx.out_dtype, ctx.channels_last, True)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], images: Tensor, table: Tensor, group: Tensor | None, *others: Any
    ) -> tuple[Tensor, int]:
        out: Tensor = _TransformableDsa.apply(*_one_batch(info.batch_size, in_dims, images, table, group), *others)
        return out.unflatten(0, (info.batch_size, -1)), 0


class _Transposed(torch.autograd.Function):
    """`_transposed` where it is differentiated in turn."""

    @staticmethod
    def forward(grad: Tensor, table: Tensor, group: Tensor | None, dtype: torch.dtype) -> Tensor:
        out: Tensor = run_unchecked("dsa_backward", grad, table, group, dtype)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        grad, table, group, ctx.dtype = inputs
        ctx.grad_dtype = grad.dtype
        ctx.save_for_backward(table, group)
        ctx.save_for_forward(table, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        table, group = ctx.saved_tensors
        return _affine(grad, _linear(table), group, ctx.grad_dtype, False, True), None, None, None

    @staticmethod
    def jvp(ctx: Any, grad: Tensor, *_: None) -> Tensor:
        out: Tensor = _Transposed.apply(grad, *ctx.saved_tensors, ctx.dtype)
        return out

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        grad: Tensor,
        table: Tensor,
        group: Tensor | None,
        dtype: torch.dtype,
    ) -> tuple[Tensor, int]:
        out: Tensor = _Transposed.apply(*_one_batch(info.batch_size, in_dims, grad, table, group), dtype)
        return out.unflatten(0, (info.batch_size, -1)), 0


def _linear(table: Tensor) -> Tensor:
    """Return the table of the linear part: brightness alone adds a constant."""
    table = table.clone()
    table[:, columns.BRIGHTNESS] = 0
    return table


def _one_batch(
    size: int, in_dims: tuple[int | None, ...], images: Tensor, table: Tensor, group: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return `size` batches, of which each argument has its own along its dimension of `in_dims` or all share one,
    as a single batch."""

    def stacked(tensor: Tensor, dim: int | None) -> Tensor:
        return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)

    images = stacked(images, in_dims[0])
    tables = stacked(table, in_dims[1])
    rows, n = tables.shape[1], images.shape[1]
    if in_dims[1] is None and group is None and rows == 1:
        return images.flatten(0, 1), table, None
    if group is None:
        row_of = torch.arange(n, device=table.device).clamp(max=rows - 1).expand(size, n)
    else:
        row_of = stacked(group, in_dims[2])
    if in_dims[1] is not None:
        shift = rows * torch.arange(size, device=table.device)[:, None]
        # A row that does not exist must not become one of the next batch.
        row_of = torch.where((row_of >= 0) & (row_of < rows), row_of + shift, -1)
        table = tables.flatten(0, 1)
    return images.flatten(0, 1), table, row_of.flatten()


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
        check_no_tangent("dsa with an index", images)
    n = images.shape[0] if index is None else index.shape[0]
    if group is not None:
        check_tensor("group", group, 1, torch.int64, images.device)
        if group.shape[0] != n:
            raise ValueError(f"group has {group.shape[0]} entries for {n} images; it must have one for each")
    elif table.shape[0] not in (1, n):
        raise ValueError(f"table has {table.shape[0]} rows for {n} images; without group it must have 1 or {n}")


def _check_values(
    images: Tensor,
    table: Tensor,
    group: Tensor | None,
    index: Tensor | None,
    mean: Tensor | None,
    std: Tensor | None,
    *_: Any,
) -> None:
    check_index_values("index", index, len(images))
    if std is not None and bool((std == 0).any()):
        raise ValueError(f"std holds {std.tolist()}; no channel can be divided by 0")
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
