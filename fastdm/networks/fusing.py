"""Blocks of a network of the user's as single ops."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from fastdm.kernels import conv_norm_relu_pool, stores_only_pooled


def fuse(network: nn.Module) -> list[nn.Sequential]:
    """Let 3×3 convolution, InstanceNorm, ReLU and 2×2 average pooling, one after the other in a Sequential of the
    network, be `conv_norm_relu_pool` from now on, where that is one pass which keeps an image in the cache.

    The modules stay as they are, and whatever is not exactly these layers computes as before: other classes, layers
    with hooks or parametrisations, copies that a wrapper makes, compiled modules. The values are the same to rounding.
    The bias of such a convolution, which the norm subtracts again, is not added, and its gradient is 0.

    Returns the Sequentials, whose forward pass is another now.
    """
    fused = [] if _is_wrapped(network) else _sequences(network)
    for sequence, steps in fused:
        sequence.forward = _Forward(steps)  # type: ignore[method-assign]  # of the instance, whose hooks are called still
    return [sequence for sequence, _ in fused]


@contextmanager
def fused_blocks(network: nn.Module | None) -> Iterator[None]:
    """`fuse` while the context lasts."""
    fused = [] if network is None else fuse(network)
    try:
        yield
    finally:
        for sequence in fused:
            del sequence.forward


def has_fused_blocks(network: nn.Module) -> bool:
    """Whether it has some now."""
    return any(isinstance(vars(module).get("forward"), _Forward) for module in network.modules())


def _is_wrapped(network: nn.Module) -> bool:
    """Whether something in it runs copies of modules, or a program that was made of them."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel, torch.jit.ScriptModule)
    return any(
        isinstance(module, wrappers) or hasattr(module, "_orig_mod") or module._compiled_call_impl is not None
        for module in network.modules()
    )


def _sequences(network: nn.Module) -> list[tuple[nn.Sequential, list[Any]]]:
    """The Sequentials that have blocks, and their steps; not those whose forward pass somebody has replaced."""
    found = []
    for module in network.modules():
        if type(module) is nn.Sequential and "forward" not in vars(module):
            steps = _steps(list(module))
            if any(isinstance(step, _Block) for step in steps):
                found.append((module, steps))
    return found


class _Forward:
    """The forward pass of a Sequential."""

    def __init__(self, steps: list[Any]) -> None:
        self._steps = steps

    def __call__(self, x: Tensor) -> Tensor:
        out: Tensor = reduce(lambda value, step: step(value), self._steps, x)
        return out


class _Block:
    def __init__(self, conv: nn.Conv2d, norm: nn.GroupNorm | nn.InstanceNorm2d, *others: nn.Module) -> None:
        self._layers = (conv, norm, *others)
        self._conv, self._norm = conv, norm

    def __call__(self, x: Tensor) -> Tensor:
        conv, norm = self._conv, self._norm
        is_plain = type(x) is Tensor and x.ndim == 4 and x.dtype == conv.weight.dtype and x.device == conv.weight.device
        if not is_plain or torch.is_autocast_enabled(x.device.type):
            out: Tensor = reduce(lambda value, layer: layer(value), self._layers, x)
            return out
        weight = conv.weight if conv.bias is None else _WithBias.apply(conv.weight, conv.bias)
        return conv_norm_relu_pool(x, weight, norm.weight, norm.bias, padding=int(conv.padding[0]), eps=norm.eps)


def _steps(layers: list[nn.Module]) -> list[nn.Module | _Block]:
    """The layers, those of a block as one."""
    steps: list[nn.Module | _Block] = []
    while layers:
        size = 4 if _is_block(layers[:4]) else 1
        steps.append(_Block(*layers[:4]) if size == 4 else layers[0])  # type: ignore[arg-type]
        layers = layers[size:]
    return steps


def _is_block(layers: list[nn.Module]) -> bool:
    if [type(layer) for layer in layers] not in _BLOCKS or any(_has_hooks(layer) for layer in layers):
        return False
    conv, norm, _, pool = layers
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.GroupNorm | nn.InstanceNorm2d)
    assert isinstance(pool, nn.AvgPool2d)
    shape = (conv.kernel_size, conv.stride, conv.dilation, conv.groups, conv.padding_mode)
    return (
        stores_only_pooled(conv.weight, conv.weight)
        and shape == ((3, 3), (1, 1), (1, 1), 1, "zeros")
        and not isinstance(conv.padding, str)
        and conv.padding[0] == conv.padding[1]
        and _normalises_images(norm, conv.out_channels)
        and pool.kernel_size in (2, (2, 2))
        and pool.stride in (2, (2, 2))
        and pool.padding in (0, (0, 0))
        and not pool.ceil_mode
        and pool.divisor_override is None
    )


_BLOCKS = [[nn.Conv2d, norm, nn.ReLU, nn.AvgPool2d] for norm in (nn.GroupNorm, nn.InstanceNorm2d)]


def _normalises_images(norm: nn.GroupNorm | nn.InstanceNorm2d, channels: int) -> bool:
    """Whether the norm is over every channel of every image."""
    if isinstance(norm, nn.GroupNorm):
        return norm.num_groups == norm.num_channels == channels
    return norm.num_features == channels and not norm.track_running_stats


def _has_hooks(module: nn.Module) -> bool:
    return any(name.endswith("hooks") and bool(value) for name, value in vars(module).items())


class _WithBias(torch.autograd.Function):
    """The weight, with a gradient of 0 for a bias without effect: an optimizer leaves out what has none."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(bias)
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        (bias,) = ctx.saved_tensors
        return grad, torch.zeros_like(bias)
