"""Norm, activation and pooling, and the whole block with its convolution, through the C++ extension."""

from typing import Any

import torch
from torch import Tensor

from ..extension import as_nchw, call, floats, in_memory_order, load


def takes_norm_relu_pool(x: Tensor, *others: Any) -> bool:
    return x.dtype in (torch.float32, torch.bfloat16) and others[-2:] == ("relu", "avg")


def takes_norm_relu_pool_backward(grad: Tensor, *others: Any) -> bool:
    return takes_norm_relu_pool(*others)


takes_norm_relu_pool_mean = takes_norm_relu_pool


def norm_relu_pool(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, activation: str, pool: str
) -> tuple[Tensor, Tensor, Tensor]:
    x, channels_last = in_memory_order(x)
    out = _pooled_like(x, channels_last)
    mean = x.new_empty(len(x), x.shape[3 if channels_last else 1], dtype=torch.float32)
    rstd = torch.empty_like(mean)
    call("norm_relu_pool", x, floats(weight), floats(bias), eps, channels_last, out, mean, rstd)
    return as_nchw(out, channels_last), mean, rstd


def norm_relu_pool_backward(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    activation: str,
    pool: str,
) -> tuple[Tensor, Tensor, Tensor]:
    channels = x.shape[1]
    x, channels_last = in_memory_order(x)
    grad = (grad.permute(0, 2, 3, 1) if channels_last else grad).to(x.dtype).contiguous()
    grad_x = torch.empty_like(x)
    grad_weight = x.new_empty(channels, dtype=torch.float32)
    grad_bias = torch.empty_like(grad_weight)
    call(
        "norm_relu_pool_backward",
        grad.detach(),
        x,
        mean,
        rstd,
        floats(weight),
        floats(bias),
        channels_last,
        grad_x,
        grad_weight,
        grad_bias,
    )
    if weight is None:
        grad_weight = x.new_empty(0, dtype=torch.float32)
    if bias is None:
        grad_bias = x.new_empty(0, dtype=torch.float32)
    return as_nchw(grad_x, channels_last), grad_weight, grad_bias


def norm_relu_pool_mean(
    x: Tensor,
    offsets: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str,
    pool: str,
) -> Tensor:
    features = x.shape[1] * (x.shape[2] // 2) * (x.shape[3] // 2)
    x, channels_last = in_memory_order(x)
    out = x.new_empty(len(offsets) - 1, features, dtype=torch.float32)
    offsets = offsets.contiguous()
    call("norm_relu_pool_mean", x, offsets, floats(weight), floats(bias), eps, channels_last, out)
    return out


def takes_conv_norm_relu_pool(x: Tensor, weight: Tensor, *_: Any) -> bool:
    return _can_convolve(x.dtype, weight)


def conv_norm_relu_pool(
    x: Tensor, weight: Tensor, scale: Tensor | None, shift: Tensor | None, padding: int, eps: float, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x = x.detach().permute(0, 2, 3, 1).contiguous()
    n, channels = len(x), len(weight)
    height, width = (size + 2 * padding - 2 for size in x.shape[1:3])
    out = x.new_empty(n, height // 2, width // 2, channels)
    conv = x.new_empty(n if keep else 0, height, width, channels)
    mean = x.new_empty(n, channels, dtype=torch.float32)
    rstd = torch.empty_like(mean)
    call(
        "conv_norm_relu_pool",
        x,
        weight.detach(),
        floats(scale),
        floats(shift),
        padding,
        eps,
        out,
        conv if keep else None,
        mean,
        rstd,
    )
    return as_nchw(out, True), as_nchw(conv, True), mean, rstd


def takes_conv_norm_relu_pool_backward(
    grad: Tensor, x: Tensor | None, conv: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, *_: Any
) -> bool:
    return _can_convolve(conv.dtype, weight)


def conv_norm_relu_pool_backward(
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
    grad, conv = (t.detach().permute(0, 2, 3, 1).contiguous() for t in (grad, conv))
    if x is not None:
        x = x.detach().permute(0, 2, 3, 1).contiguous()
    filters, channels = weight.shape[:2]
    height, width = (size + 2 - 2 * padding for size in conv.shape[1:3])
    grad_x = conv.new_empty(len(conv) if to_x else 0, height, width, channels)
    transposed = None if x is None else mean.new_empty(3, 3, channels, filters)
    grad_scale, grad_shift = (mean.new_empty(0 if each is None else filters) for each in (scale, shift))
    call(
        "conv_norm_relu_pool_backward",
        grad,
        x,
        conv,
        mean,
        rstd,
        weight.detach(),
        floats(scale),
        floats(shift),
        padding,
        grad_x if to_x else None,
        transposed,
        None if scale is None else grad_scale,
        None if shift is None else grad_shift,
    )
    grad_weight = conv.new_empty(0)
    if transposed is not None:
        # Rounded once, to the dtype of the weight, as autograd demands: for a bfloat16 weight, by as little as the
        # gradient of the convolution's result, thousands of which are in the sum, was rounded before.
        grad_weight = torch.empty_like(weight).copy_(transposed.permute(3, 2, 0, 1))
    return as_nchw(grad_x, True), grad_weight, grad_scale, grad_shift


def _can_convolve(dtype: torch.dtype, weight: Tensor) -> bool:
    """Whether the extension has a fast convolution: of float32, and of bfloat16 where the processor has AMX's tiles."""
    known = dtype == torch.float32 or (dtype == torch.bfloat16 and load().tiles() != "none")
    return known and weight.shape[2:] == (3, 3) and bool(load().can_convolve(weight.shape[1], weight.shape[0]))


def _pooled_like(x: Tensor, channels_last: bool) -> Tensor:
    rows = 1 if channels_last else 2
    shape = list(x.shape)
    shape[rows] //= 2
    shape[rows + 1] //= 2
    return x.new_empty(shape)
