"""`norm_relu_pool`, `norm_relu_pool_mean` and `conv_norm_relu_pool`: checks, schemas, gradients."""

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
from ..dispatch import define, remember_backend, runs_native, with_its_backend
from ..numerics import memory_format_of, pooled_shape, working_dtype
from .choice import computes_twice

ACTIVATIONS = ("relu", "leakyrelu", "swish", "sigmoid")
POOLS = ("avg", "max", "none")


def norm_relu_pool(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    activation: str = "relu",
    pool: str = "avg",
) -> Tensor:
    """Normalise every channel of every image, activate, and pool 2×2, in one pass.

    pool(activation((x − mean) / sqrt(variance + eps) · weight + bias)), with the mean and the biased variance of each
    (image, channel), the variance about the mean (two passes). An odd last row or column is not pooled.

    x: floating point [N, C, H, W], contiguous or channels-last.
    weight, bias: floating point [C], or None for 1 and 0.
    activation: "relu", "leakyrelu" (slope 0.01), "swish" or "sigmoid".
    pool: "avg", "max" or "none".

    Returns [N, C, H // 2, W // 2] ([N, C, H, W] without pooling), of the dtype and memory format of x; the arithmetic
    is float32 (float64 for float64). Gradients flow to x, weight and bias. Raises TypeError for a wrong dtype,
    ValueError for wrong shapes, devices and names.

    >>> import torch
    >>> from fastdm.kernels import norm_relu_pool
    >>> x = torch.tensor([[[[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 2.0]]]])
    >>> norm_relu_pool(x).round(decimals=3)
    tensor([[[[0., 1.]]]])
    """
    _check_arguments(x, weight, bias, activation, pool)
    check_no_tangent("norm_relu_pool", x, weight, bias)
    out: Tensor
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        out = _NormReluPool.apply(x, weight, bias, eps, activation, pool)
    else:
        out, _, _ = torch.ops.fastdm.norm_relu_pool(x, weight, bias, eps, activation, pool)
    return out


def norm_relu_pool_mean(
    x: Tensor,
    offsets: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    activation: str = "relu",
    pool: str = "avg",
) -> Tensor:
    """Return the class means of `norm_relu_pool`'s output without writing that output.

    x: floating point [N, C, H, W], its rows sorted by class.
    offsets: int64 [classes + 1], rising from 0 to N; the rows of class c are `offsets[c]` to `offsets[c + 1]`.
    Others: as for `norm_relu_pool`.

    Returns float32 (float64 for float64) [classes, C · (H // 2) · (W // 2)], flattened in NCHW order; 0 for a class
    without rows. No gradient. Raises as `norm_relu_pool` does, and ValueError for offsets that do not rise from 0 to N
    (on the CPU only).

    >>> import torch
    >>> from fastdm.kernels import norm_relu_pool_mean
    >>> x = torch.tensor([[0.0, 0.0, 2.0, 2.0], [2.0, 2.0, 0.0, 0.0]]).view(2, 1, 1, 4).repeat(1, 1, 2, 1)
    >>> norm_relu_pool_mean(x, torch.tensor([0, 1, 2])).round(decimals=3)
    tensor([[0., 1.],
            [1., 0.]])
    """
    _check_arguments(x, weight, bias, activation, pool)
    check_offsets("offsets", offsets, x.device)
    with torch.no_grad():
        means: Tensor = torch.ops.fastdm.norm_relu_pool_mean(x, offsets, weight, bias, eps, activation, pool)
    return means


def conv_norm_relu_pool(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    padding: int = 1,
    eps: float = 1e-5,
) -> Tensor:
    """One block of a network: 3×3 convolution without bias, then `norm_relu_pool`.

    On a CPU with the C++ extension, float32 images go through the block one after the other without leaving the cache,
    forward and backward, through Winograd's F(4×4, 3×3) where there are many input channels; its rounding error is a
    few times that of the plain sum. bfloat16 images do so where the processor has AMX's tiles (unless `FASTDM_TILES` is
    "none"): sums are float32; what is kept of the convolution, its gradient and those that come out are rounded to
    bfloat16. Elsewhere this is `conv2d` and `norm_relu_pool`, unless a GPU is faster at computing a first convolution
    again wherever it is needed than at storing it, which is measured (`choice.py`): where nothing, or x alone, needs a
    gradient.

    x: floating point [N, C, H, W]; weight: [K, C, 3, 3], of the same dtype; scale, shift: floating point [K], those of
    the norm, or None for 1 and 0; padding: zeros round the image.

    Returns [N, K, H' // 2, W' // 2] with H' = H + 2 · padding − 2. Gradients flow to x, weight, scale and shift.
    Raises TypeError for a wrong dtype, ValueError for wrong shapes and devices.

    >>> import torch
    >>> from fastdm.kernels import conv_norm_relu_pool
    >>> conv_norm_relu_pool(torch.zeros(2, 3, 32, 32), torch.zeros(128, 3, 3, 3)).shape
    torch.Size([2, 128, 16, 16])
    """
    check_tensor("x", x, 4)
    check_tensor("weight", weight, 4, x.dtype, x.device)
    if weight.shape[1:] != (x.shape[1], 3, 3):
        raise ValueError(f"weight has the shape {tuple(weight.shape)}; it must be [K, {x.shape[1]}, 3, 3]")
    if padding < 0 or min(x.shape[2:]) + 2 * padding < 4:
        raise ValueError(f"images of {x.shape[2]} by {x.shape[3]} pixels are too small with a padding of {padding}")
    _check_affine({"scale": scale, "shift": shift}, len(weight), x.device)
    check_no_tangent("conv_norm_relu_pool", x, weight, scale, shift)
    out: Tensor

    def stored(x: Tensor) -> Tensor:
        return norm_relu_pool(torch.conv2d(x, weight, padding=padding), scale, shift, eps=eps)

    def fused(x: Tensor) -> Tensor:
        pooled: Tensor
        if torch.is_grad_enabled() and x.requires_grad:
            pooled = _RecomputedBlock.apply(x, weight, padding, eps)
        else:
            pooled = torch.ops.fastdm.conv_norm_relu_pool(x, weight, scale, shift, padding, eps, False)[0]
        return pooled

    needs = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, scale, shift))
    plain = scale is None and shift is None and not (needs and weight.requires_grad)
    if stores_only_pooled(x, weight):
        out = _ConvNormReluPool.apply(x, weight, scale, shift, padding, eps) if needs else fused(x)
    elif plain and computes_twice(x, weight, padding, (stored, fused)):
        out = fused(x)
    else:
        out = stored(x)
    return out


def stores_only_pooled(x: Tensor, weight: Tensor) -> bool:
    """Whether `conv_norm_relu_pool` is one pass here, which stores nothing but its pooled result without gradient.

    x, weight: as for `conv_norm_relu_pool`; of x only dtype and device matter, of weight only the shape.

    >>> import torch
    >>> from fastdm.kernels import stores_only_pooled
    >>> stores_only_pooled(torch.empty(0, dtype=torch.float64), torch.empty(128, 3, 3, 3))
    False
    """
    if torch.compiler.is_compiling():
        return _is_one_pass_compiled(x.device, x.dtype, tuple(weight.shape))
    return runs_native("conv_norm_relu_pool", x, weight)


def _is_one_pass_compiled(device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> bool:
    x, weight = torch.empty(0, dtype=dtype, device=device), torch.empty(shape, device="meta")
    return runs_native("conv_norm_relu_pool", x, weight)


# All that `torch.compiler.assume_constant_result` does, which would import the whole of Dynamo, and Triton.
_is_one_pass_compiled._dynamo_marked_constant = True  # type: ignore[attr-defined]


# --- checks ----------------------------------------------------------------------------------------------------------


def _check_arguments(x: Tensor, weight: Tensor | None, bias: Tensor | None, activation: str, pool: str) -> None:
    check_tensor("x", x, 4)
    check_floating_point("x", x)
    _check_affine({"weight": weight, "bias": bias}, x.shape[1], x.device)
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}; it must be one of {', '.join(ACTIVATIONS)}")
    if pool not in POOLS:
        raise ValueError(f"pool is {pool!r}; it must be one of {', '.join(POOLS)}")
    if min(x.shape[2:]) < (1 if pool == "none" else 2):
        raise ValueError(f"x has images of {x.shape[2]} by {x.shape[3]} pixels; they are too small to pool")


def _check_affine(parameters: dict[str, Tensor | None], channels: int, device: torch.device) -> None:
    for name, parameter in parameters.items():
        if parameter is not None:
            check_tensor(name, parameter, 1, None, device)
            if parameter.shape[0] != channels or not parameter.dtype.is_floating_point:
                raise ValueError(f"{name} is {parameter.dtype} {tuple(parameter.shape)}; it must be [{channels}]")


# --- gradients -------------------------------------------------------------------------------------------------------


class _NormReluPool(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, activation: str, pool: str
    ) -> Tensor:
        out: Tensor
        out, mean, rstd = torch.ops.fastdm.norm_relu_pool(x, weight, bias, eps, activation, pool)
        remember_backend(ctx)
        ctx.save_for_backward(x, mean, rstd, weight, bias)
        ctx.activation, ctx.pool = activation, pool
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        check_no_second_derivative("norm_relu_pool")
        x, mean, rstd, weight, bias = ctx.saved_tensors
        backward = torch.ops.fastdm.norm_relu_pool_backward
        grad_x, grad_weight, grad_bias = with_its_backend(
            ctx, backward, grad, x, mean, rstd, weight, bias, ctx.activation, ctx.pool
        )
        return (
            grad_x,
            None if weight is None else grad_weight.to(weight.dtype),
            None if bias is None else grad_bias.to(bias.dtype),
            None,
            None,
            None,
        )


class _ConvNormReluPool(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, scale: Tensor | None, shift: Tensor | None, padding: int, eps: float
    ) -> Tensor:
        out: Tensor
        out, conv, mean, rstd = torch.ops.fastdm.conv_norm_relu_pool(x, weight, scale, shift, padding, eps, True)
        remember_backend(ctx)
        images = x if ctx.needs_input_grad[1] else None
        ctx.save_for_backward(images, conv, mean, rstd, weight, scale, shift)
        ctx.padding = padding
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        check_no_second_derivative("conv_norm_relu_pool")
        *_, scale, shift = ctx.saved_tensors
        backward = torch.ops.fastdm.conv_norm_relu_pool_backward
        grad_x, grad_weight, grad_scale, grad_shift = with_its_backend(
            ctx, backward, grad, *ctx.saved_tensors, ctx.padding, ctx.needs_input_grad[0]
        )
        return (
            grad_x if ctx.needs_input_grad[0] else None,
            grad_weight if ctx.needs_input_grad[1] else None,
            None if scale is None else grad_scale.to(scale.dtype),
            None if shift is None else grad_shift.to(shift.dtype),
            None,
            None,
        )


class _RecomputedBlock(torch.autograd.Function):
    """The block whose convolution is not kept: its gradient to the images computes it again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, padding: int, eps: float) -> Tensor:
        out: Tensor
        out, _, mean, rstd = torch.ops.fastdm.conv_norm_relu_pool(x, weight, None, None, padding, eps, False)
        remember_backend(ctx)
        ctx.save_for_backward(x, mean, rstd, weight)
        ctx.padding = padding
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        check_no_second_derivative("conv_norm_relu_pool")
        backward = torch.ops.fastdm.conv_norm_relu_pool_backward_x
        return with_its_backend(ctx, backward, grad, *ctx.saved_tensors, ctx.padding), None, None, None


# --- schemas and fakes -----------------------------------------------------------------------------------------------


@define(
    "norm_relu_pool",
    "(Tensor x, Tensor? weight, Tensor? bias, float eps, str activation, str pool) -> (Tensor, Tensor, Tensor)",
)
def _(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, activation: str, pool: str
) -> tuple[Tensor, Tensor, Tensor]:
    out = torch.empty(pooled_shape(x.shape, pool), dtype=x.dtype, device=x.device, memory_format=memory_format_of(x))
    statistics = x.new_empty(x.shape[:2], dtype=working_dtype(x.dtype))
    return out, statistics, torch.empty_like(statistics)


@define(
    "norm_relu_pool_backward",
    "(Tensor grad, Tensor x, Tensor mean, Tensor rstd, Tensor? weight, Tensor? bias, str activation, str pool)"
    " -> (Tensor, Tensor, Tensor)",
)
def _(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, bias: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=memory_format_of(x))
    grad_weight, grad_bias = (mean.new_empty(0 if each is None else len(each)) for each in (weight, bias))
    return grad_x, grad_weight, grad_bias


@define(
    "norm_relu_pool_mean",
    "(Tensor x, Tensor offsets, Tensor? weight, Tensor? bias, float eps, str activation, str pool) -> Tensor",
    lambda x, offsets, *_: check_offset_values("offsets", offsets, len(x)),
)
def _(
    x: Tensor, offsets: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, activation: str, pool: str
) -> Tensor:
    _, c, h, w = pooled_shape(x.shape, pool)
    return x.new_empty((offsets.shape[0] - 1, c * h * w), dtype=working_dtype(x.dtype))


@define(
    "conv_norm_relu_pool",
    "(Tensor x, Tensor weight, Tensor? scale, Tensor? shift, int padding, float eps, bool keep)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
def _(
    x: Tensor, weight: Tensor, scale: Tensor | None, shift: Tensor | None, padding: int, eps: float, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n, channels = len(x), len(weight)
    height, width = (size + 2 * padding - 2 for size in x.shape[2:])
    out, conv = (
        torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        for shape in ((n, channels, height // 2, width // 2), (n if keep else 0, channels, height, width))
    )
    statistics = x.new_empty((n, channels), dtype=working_dtype(x.dtype))
    return out, conv, statistics, torch.empty_like(statistics)


@define(
    "conv_norm_relu_pool_backward",
    "(Tensor grad, Tensor? x, Tensor conv, Tensor mean, Tensor rstd, Tensor weight, Tensor? scale, Tensor? shift,"
    " int padding, bool to_x) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _(
    grad: Tensor,
    x: Tensor | None,
    conv: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    padding: int,
    to_x: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    height, width = (size + 2 - 2 * padding for size in conv.shape[2:])
    shape = (len(conv) if to_x else 0, weight.shape[1], height, width)
    grad_x = torch.empty(shape, dtype=conv.dtype, device=conv.device, memory_format=torch.channels_last)
    grad_weight = conv.new_empty(0) if x is None else torch.empty_like(weight)
    grad_scale, grad_shift = (mean.new_empty(0 if each is None else len(each)) for each in (scale, shift))
    return grad_x, grad_weight, grad_scale, grad_shift


@define(
    "conv_norm_relu_pool_backward_x",
    "(Tensor grad, Tensor x, Tensor mean, Tensor rstd, Tensor weight, int padding) -> Tensor",
)
def _(grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, padding: int) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
