"""Norm, activation and pooling in plain PyTorch: the definition of correct."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from ..numerics import LEAKY_SLOPE, class_means, memory_format_of, working_dtype

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leakyrelu": lambda x: F.leaky_relu(x, LEAKY_SLOPE),
    "swish": F.silu,
    "sigmoid": torch.sigmoid,
}
_POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "avg": lambda x: F.avg_pool2d(x, 2),
    "max": lambda x: F.max_pool2d(x, 2),
    "none": lambda x: x,
}


def norm_relu_pool(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, activation: str, pool: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the pooled output and the mean and 1 / deviation [N, C] of every channel; see the public function."""
    # Contiguous, because PyTorch computes E[x²] − mean² of channels-last images, which loses digits.
    wide = x.to(working_dtype(x.dtype)).contiguous()
    n, c, h, w = x.shape
    scale, shift = (None if t is None else t.to(wide.dtype) for t in (weight, bias))
    normed, mean, rstd = torch.native_group_norm(wide, scale, shift, n, c, h * w, c, eps)
    out = _POOLS[pool](_ACTIVATIONS[activation](normed))
    return out.to(x.dtype).contiguous(memory_format=memory_format_of(x)), mean, rstd


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
    """Return the gradients to x, weight and bias, [0] where there is none."""
    work = working_dtype(x.dtype)
    normed = (x.to(work) - mean[:, :, None, None]) * rstd[:, :, None, None]
    scaled = _affine(normed, weight, bias)
    grad_scaled = _pool_backward(grad.to(work), _ACTIVATIONS[activation](scaled), pool)
    grad_scaled = grad_scaled * _slope(scaled, activation)
    absent = mean.new_empty(0)
    grad_weight = absent if weight is None else (grad_scaled * normed).sum((0, 2, 3))
    grad_bias = absent.clone() if bias is None else grad_scaled.sum((0, 2, 3))
    g = grad_scaled if weight is None else grad_scaled * weight.to(work)[:, None, None]
    centred = g - g.mean((2, 3), keepdim=True) - normed * (g * normed).mean((2, 3), keepdim=True)
    grad_x = (centred * rstd[:, :, None, None]).to(x.dtype).contiguous(memory_format=memory_format_of(x))
    return grad_x, grad_weight, grad_bias


def norm_relu_pool_mean(
    x: Tensor,
    offsets: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str,
    pool: str,
) -> Tensor:
    """Return the class means of the pooled output, flattened in NCHW order; see the public function."""
    out = norm_relu_pool(x.to(working_dtype(x.dtype)), weight, bias, eps, activation, pool)[0]
    return class_means(out.flatten(1), offsets)


def conv_norm_relu_pool(
    x: Tensor, weight: Tensor, scale: Tensor | None, shift: Tensor | None, padding: int, eps: float, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the block's output, the convolution's (empty unless it is to be kept), and the norm's mean and rstd."""
    conv = F.conv2d(x, weight, padding=padding).contiguous(memory_format=torch.channels_last)
    out, mean, rstd = norm_relu_pool(conv, scale, shift, eps, "relu", "avg")
    return out, conv if keep else conv[:0].clone(memory_format=torch.channels_last), mean, rstd


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
    """Return the gradients to x (none unless `to_x`), weight (none without x), scale and shift, [0] where none is."""
    grad_conv, grad_scale, grad_shift = norm_relu_pool_backward(grad, conv, mean, rstd, scale, shift, "relu", "avg")
    back = grad_conv if to_x else grad_conv[:0]
    grad_x = F.conv_transpose2d(back, weight, padding=padding).contiguous(memory_format=torch.channels_last)
    grad_weight = conv.new_empty(0)
    if x is not None:
        grad_weight = torch.empty_like(weight)
        grad_weight.copy_(conv2d_weight(x, list(weight.shape), grad_conv, padding=padding))
    return grad_x, grad_weight, grad_scale, grad_shift


def conv_norm_relu_pool_backward_x(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, padding: int
) -> Tensor:
    """Return the gradient to x alone, of a convolution that was not kept, without scale and shift."""
    conv = F.conv2d(x, weight, padding=padding)
    return conv_norm_relu_pool_backward(grad, None, conv, mean, rstd, weight, None, None, padding, True)[0]


def _affine(normed: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    scaled = normed if weight is None else normed * weight.to(normed.dtype)[:, None, None]
    return scaled if bias is None else scaled + bias.to(normed.dtype)[:, None, None]


def _slope(scaled: Tensor, activation: str) -> Tensor:
    """Return the derivative of the activation."""
    if activation == "relu":
        return (scaled > 0).to(scaled.dtype)
    if activation == "leakyrelu":
        return torch.where(scaled > 0, 1.0, LEAKY_SLOPE).to(scaled.dtype)
    s = scaled.sigmoid()
    return s * (1 - s) if activation == "sigmoid" else s * (1 + scaled * (1 - s))


def _pool_backward(grad: Tensor, activated: Tensor, pool: str) -> Tensor:
    """Spread the gradient of the pooled output over the activations; an odd last row or column gets none."""
    if pool == "none":
        return grad
    height, width = activated.shape[2:]
    spread = grad.repeat_interleave(2, 2).repeat_interleave(2, 3)
    if pool == "avg":
        spread = spread / 4
    else:
        _, winner = F.max_pool2d(activated, 2, return_indices=True)
        spread = torch.zeros_like(activated).flatten(2).scatter_(2, winner.flatten(2), grad.flatten(2))
        return spread.view(activated.shape)
    return F.pad(spread, (0, width - spread.shape[3], 0, height - spread.shape[2]))
