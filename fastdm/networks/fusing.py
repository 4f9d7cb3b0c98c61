"""Blocks of a network of the user's as single ops."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import reduce
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from fastdm.kernels import conv_norm_relu_pool, stores_only_pooled
from fastdm.kernels.numerics import is_channels_last, memory_format


def fuse(network: nn.Module) -> list[nn.Module]:
    """Let 3×3 convolution, InstanceNorm, ReLU and 2×2 average pooling, one after the other in a Sequential of the
    network, be `conv_norm_relu_pool` from now on, where that is one pass which keeps an image in the cache.

    Such a Sequential is of a subclass from then on. Its layers stay as they are, and whatever is not exactly these
    computes as before: other classes, layers with hooks, parametrisations or a forward pass of their own, copies that a
    wrapper makes, compiled modules. So does a call that has to see the layers: under autocast, `torch.compile`,
    `torch.func`, forward-mode differentiation, or hooks of saved tensors (activation checkpointing) or of all modules.
    The values are the same to rounding, in the same memory format. The bias of such a convolution, which the norm
    subtracts again, is not added, and its gradient is 0. A gradient cannot be differentiated again.

    Returns the Sequentials, whose forward pass is another now.
    """
    fused = [] if _is_wrapped(network) else [module for module in network.modules() if _has_blocks(module)]
    for sequence in fused:
        sequence.__class__ = _FusedSequential
    return fused


@contextmanager
def fused_blocks(network: nn.Module | None) -> Iterator[None]:
    """`fuse` while the context lasts."""
    fused = [] if network is None else fuse(network)
    try:
        yield
    finally:
        for sequence in fused:
            sequence.__class__ = nn.Sequential


def has_fused_blocks(network: nn.Module) -> bool:
    """Whether it has some now."""
    return any(isinstance(module, _FusedSequential) for module in network.modules())


def _is_wrapped(network: nn.Module) -> bool:
    """Whether something in it runs copies of modules, or a program that was made of them."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel, torch.jit.ScriptModule)
    return any(
        isinstance(module, wrappers) or hasattr(module, "_orig_mod") or module._compiled_call_impl is not None
        for module in network.modules()
    )


def _has_blocks(module: nn.Module) -> bool:
    """Whether it is a Sequential, with the forward pass of its class, that has blocks."""
    if type(module) is not nn.Sequential or "forward" in vars(module):
        return False
    return any(isinstance(step, _Blocks) for step in _steps(module))


class _FusedSequential(nn.Sequential):
    """A Sequential whose blocks, looked for in every call, are single ops."""

    def forward(self, input: Tensor) -> Tensor:  # the name that Sequential has for it
        return _through(self if _are_layers_seen(input) else _steps(self), input)

    def _get_name(self) -> str:
        return "Sequential"


class _Blocks:
    """Blocks that follow each other, the layers of each."""

    def __init__(self) -> None:
        self.layers: list[list[Any]] = []

    def __call__(self, x: Tensor) -> Tensor:
        weights = [conv.weight for conv, *_ in self.layers]
        if not all(_is_alike(x, weight) for weight in weights):
            return _through(chain(*self.layers), x)
        # A convolution's result is channels-last where its images or its weight are; the other layers keep that.
        channels_last = any(map(is_channels_last, (x, *weights)))
        for conv, norm, *_ in self.layers:
            weight = conv.weight if conv.bias is None else _WithBias.apply(conv.weight, conv.bias)
            x = conv_norm_relu_pool(x, weight, norm.weight, norm.bias, padding=int(conv.padding[0]), eps=norm.eps)
        return x.contiguous(memory_format=memory_format(channels_last))


def _through(steps: Iterable[Any], x: Tensor) -> Tensor:
    return reduce(lambda value, step: step(value), steps, x)


def _is_alike(x: Tensor, weight: Tensor) -> bool:
    """Whether x is images that such a weight convolves, both plain tensors."""
    is_plain = all(type(each) in (Tensor, nn.Parameter) for each in (x, weight))
    return is_plain and x.ndim == 4 and x.dtype == weight.dtype and x.device == weight.device


def _are_layers_seen(x: Tensor) -> bool:
    """Whether the images, or something that is in force now, must see the layers, or what they call."""
    return bool(
        torch.compiler.is_compiling()
        or not isinstance(x, Tensor)
        or x.device.type != "cpu"
        or torch.is_autocast_enabled("cpu")
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
        or nn.modules.module._has_any_global_hook()
    )


def _steps(sequence: nn.Sequential) -> list[Any]:
    """Its layers, and those of blocks that follow each other as one `_Blocks`."""
    steps: list[Any] = []
    layers = list(sequence)
    while layers:
        if not _is_block(layers[:4]):
            steps.append(layers.pop(0))
            continue
        if not (steps and isinstance(steps[-1], _Blocks)):
            steps.append(_Blocks())
        steps[-1].layers.append(layers[:4])
        layers = layers[4:]
    return steps


def _is_block(layers: list[nn.Module]) -> bool:
    if [type(layer) for layer in layers] not in _BLOCKS or any(_is_changed(layer) for layer in layers):
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


def _is_changed(layer: nn.Module) -> bool:
    """Whether its call is not that of its class: it has hooks, or a forward pass of its own."""
    hooks = (layer._forward_pre_hooks, layer._forward_hooks, layer._backward_pre_hooks, layer._backward_hooks)
    return any(hooks) or "forward" in vars(layer)


class _WithBias(torch.autograd.Function):
    """The weight, with a gradient of 0 for a bias without effect: an optimizer leaves out what has none."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor) -> Tensor:
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, grad.new_zeros(len(grad))
