"""The ops that the C++ extension implements on the CPU, with the signatures of ``reference.py``.

A function of ``fastdm._native`` fills the buffers that it is handed; every buffer is a contiguous CPU tensor. What the
extension does not have (or an installation without it) stays with the reference.
"""

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from . import reference


@cache
def _native() -> Any:
    """Return the extension, or None in an installation without it."""
    try:
        return importlib.import_module("fastdm._native")
    except ModuleNotFoundError:
        return None


def find(name: str) -> Callable[..., Any] | None:
    """Return this module's form of an op if the extension has it."""
    return globals().get(name) if hasattr(_native(), name) else None


def uniform(key: Tensor, rows: Tensor, n: int, stream: int) -> Tensor:
    out = torch.empty(len(rows), n)
    seed, step = key.tolist()
    _native().uniform(seed, step, rows.contiguous(), stream, out)
    return out


def draw(key: Tensor, class_offsets: Tensor, n: int, classes: Tensor, replace: bool = False) -> Tensor:
    out = torch.empty(len(classes), n, dtype=torch.int64)
    seed, step = key.tolist()
    _native().draw(seed, step, class_offsets.contiguous(), classes.contiguous(), out, replace)
    return out


def dsa(
    images: Tensor,
    table: Tensor,
    group: Tensor | None,
    index: Tensor | None,
    mean: Tensor | None,
    std: Tensor | None,
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    if images.dtype not in (torch.uint8, torch.float32) or dtype not in (torch.float32, torch.bfloat16):
        return reference.dsa(images, table, group, index, mean, std, dtype, channels_last)
    _, channels, height, width = images.shape
    n = len(images if index is None else index)
    shape = (n, height, width, channels) if channels_last else (n, channels, height, width)
    out = images.new_empty(shape, dtype=dtype)
    scale, shift = [1.0] * channels, [0.0] * channels
    if mean is not None and std is not None:
        scale = [1 / (255 * s) for s in std.tolist()]
        shift = [-m / s for m, s in zip(mean.tolist(), std.tolist(), strict=True)]
    images, table = images.detach().contiguous(), table.contiguous()
    group, index = (None if t is None else t.contiguous() for t in (group, index))
    _native().dsa(images, table, group, index, scale, shift, channels_last, out)
    return _as_nchw(out, channels_last)


def dsa_backward(grad: Tensor, table: Tensor, group: Tensor | None, dtype: torch.dtype) -> Tensor:
    if grad.dtype not in (torch.float32, torch.bfloat16) or dtype != torch.float32:
        return reference.dsa_backward(grad, table, group, dtype)
    out = grad.new_empty(grad.shape, dtype=dtype)
    grad, channels_last = _in_memory_order(grad)
    _native().dsa_backward(grad, table.contiguous(), None if group is None else group.contiguous(), channels_last, out)
    return out


def norm_relu_pool(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, activation: str, pool: str
) -> tuple[Tensor, Tensor, Tensor]:
    if not _suits(x, activation, pool):
        return reference.norm_relu_pool(x, weight, bias, eps, activation, pool)
    x, channels_last = _in_memory_order(x)
    out = _pooled_like(x, channels_last)
    mean = x.new_empty(len(x), x.shape[3 if channels_last else 1], dtype=torch.float32)
    rstd = torch.empty_like(mean)
    _native().norm_relu_pool(x, _floats(weight), _floats(bias), eps, channels_last, out, mean, rstd)
    return _as_nchw(out, channels_last), mean, rstd


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
    if not _suits(x, activation, pool):
        return reference.norm_relu_pool_backward(grad, x, mean, rstd, weight, bias, activation, pool)
    channels = x.shape[1]
    x, channels_last = _in_memory_order(x)
    grad = (grad.permute(0, 2, 3, 1) if channels_last else grad).to(x.dtype).contiguous()
    grad_x = torch.empty_like(x)
    grad_weight = x.new_empty(channels, dtype=torch.float32)
    grad_bias = torch.empty_like(grad_weight)
    _native().norm_relu_pool_backward(
        grad.detach(), x, mean, rstd, _floats(weight), _floats(bias), channels_last, grad_x, grad_weight, grad_bias
    )
    return _as_nchw(grad_x, channels_last), grad_weight, grad_bias


def norm_relu_pool_mean(
    x: Tensor,
    offsets: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str,
    pool: str,
) -> Tensor:
    if not _suits(x, activation, pool):
        return reference.norm_relu_pool_mean(x, offsets, weight, bias, eps, activation, pool)
    features = x.shape[1] * (x.shape[2] // 2) * (x.shape[3] // 2)
    x, channels_last = _in_memory_order(x)
    out = x.new_empty(len(offsets) - 1, features, dtype=torch.float32)
    offsets = offsets.contiguous()
    _native().norm_relu_pool_mean(x, offsets, _floats(weight), _floats(bias), eps, channels_last, out)
    return out


def can_convolve(x: Tensor, weight: Tensor) -> bool:
    """Whether the extension computes this block."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or find("conv_norm_relu_pool") is None:
        return False
    return weight.shape[2:] == (3, 3) and bool(_native().can_convolve(weight.shape[1], weight.shape[0]))


def conv_norm_relu_pool(
    x: Tensor, weight: Tensor, padding: int, eps: float, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x = x.detach().permute(0, 2, 3, 1).contiguous()
    n, channels = len(x), len(weight)
    height, width = (size + 2 * padding - 2 for size in x.shape[1:3])
    out = x.new_empty(n, height // 2, width // 2, channels)
    conv = x.new_empty(n if keep else 0, height, width, channels)
    mean = x.new_empty(n, channels)
    rstd = torch.empty_like(mean)
    _native().conv_norm_relu_pool(x, weight.detach(), padding, eps, out, conv if keep else None, mean, rstd)
    return _as_nchw(out, True), _as_nchw(conv, True), mean, rstd


def conv_norm_relu_pool_backward(
    grad: Tensor, conv: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, padding: int
) -> Tensor:
    grad, conv = (t.detach().permute(0, 2, 3, 1).contiguous() for t in (grad, conv))
    height, width = (size + 2 - 2 * padding for size in conv.shape[1:3])
    grad_x = conv.new_empty(len(conv), height, width, weight.shape[1])
    _native().conv_norm_relu_pool_backward(grad, conv, mean, rstd, weight.detach(), padding, grad_x)
    return _as_nchw(grad_x, True)


def _suits(x: Tensor, activation: str, pool: str) -> bool:
    return x.dtype in (torch.float32, torch.bfloat16) and (activation, pool) == ("relu", "avg")


def _in_memory_order(x: Tensor) -> tuple[Tensor, bool]:
    """Return x as a contiguous tensor, [N, H, W, C] (and True) if it is channels-last."""
    if reference.memory_format(x) == torch.channels_last:
        return x.detach().permute(0, 2, 3, 1), True
    return x.detach().contiguous(), False


def _as_nchw(x: Tensor, channels_last: bool) -> Tensor:
    return x.permute(0, 3, 1, 2) if channels_last else x


def _pooled_like(x: Tensor, channels_last: bool) -> Tensor:
    rows = 1 if channels_last else 2
    shape = list(x.shape)
    shape[rows] //= 2
    shape[rows + 1] //= 2
    return x.new_empty(shape)


def _floats(parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else parameter.detach().float().contiguous()
