"""The architectures that images are matched in and evaluated with, by name."""

import math
import re
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import cast

import torch
from torch import nn

from fastdm.errors import FastDMError, unknown
from fastdm.networks.model import ACTIVATIONS, Block, Network, NormedConv2d, Residual

_NORMS = ("none", "batch", "layer", "instance", "group")
_POOLS: dict[str, Callable[[], nn.Module]] = {
    "none": nn.Identity,
    "max": partial(nn.MaxPool2d, 2),
    "avg": partial(nn.AvgPool2d, 2),
}


class _Stack:
    """Layers in a row under construction, and the shape (channels, height, width) of what they give."""

    def __init__(self, name: str, channels: int, image_size: tuple[int, int], affine: bool) -> None:
        self.name = name
        self.input_shape = (channels, *image_size)
        self.shape: tuple[int, ...] = self.input_shape
        self.affine = affine
        self.layers: list[nn.Module] = []

    def block(
        self,
        channels: int,
        *,
        kernel: int = 3,
        padding: int = 1,
        norm: str = "none",
        activation: str = "relu",
        pool: str = "none",
    ) -> None:
        """Convolution → norm → activation → 2×2 pooling."""
        height, width = (size + 2 * padding - kernel + 1 for size in self.shape[1:])
        # The mean that these norms subtract contains the bias.
        bias = self.affine or norm not in ("instance", "batch")
        kind = NormedConv2d if norm == "instance" else nn.Conv2d
        conv = kind(self.shape[0], channels, kernel, padding=padding, bias=bias)
        self.resize(channels, height, width)
        if (kernel, norm, activation, pool) == (3, "instance", "relu", "avg"):
            self.layers.append(Block(conv, affine=self.affine))
        else:
            self.layers.append(conv)
            if norm != "none":
                self.layers.append(self.norm(norm))
            self.layers.append(ACTIVATIONS[activation]())
            if pool != "none":
                self.layers.append(_POOLS[pool]())
        if pool != "none":
            self.resize(channels, height // 2, width // 2)

    def linear(self, features: int) -> None:
        """Fully connected layer → ReLU, on flattened features."""
        if len(self.shape) == 3:
            self.layers.append(nn.Flatten())
        self.layers += [nn.Linear(math.prod(self.shape), features), nn.ReLU(inplace=True)]
        self.shape = (features,)

    def residual(self, channels: int, *, stride: int, norm: str, pooled: bool) -> None:
        """Basic residual block; `pooled` puts 2×2 average pooling in place of the strided convolutions."""
        before = self.shape
        size = [side // stride if pooled else -(-side // stride) for side in before[1:]]
        self.resize(channels, *size)
        conv_stride = 1 if pooled else stride

        def shrink() -> nn.Module:
            return nn.AvgPool2d(2) if pooled and stride == 2 else nn.Identity()

        main = nn.Sequential(
            nn.Conv2d(before[0], channels, 3, conv_stride, padding=1, bias=False),
            self.norm(norm),
            nn.ReLU(inplace=True),
            shrink(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            self.norm(norm),
        )
        shortcut: nn.Module = nn.Identity()
        if before != self.shape:
            shortcut = nn.Sequential(
                nn.Conv2d(before[0], channels, 1, conv_stride, bias=False), shrink(), self.norm(norm)
            )
        self.layers.append(Residual(main, shortcut))

    def norm(self, norm: str) -> nn.Module:
        channels, height, width = self.shape
        affine = self.affine
        if norm == "batch":
            # Without them, the network is one to match in: running statistics would never be read.
            return nn.BatchNorm2d(channels, affine=affine, track_running_stats=affine)
        if norm == "layer":
            return nn.LayerNorm([channels, height, width], elementwise_affine=affine)
        if norm == "instance" and height * width == 1:
            raise self.too_small("an InstanceNorm over a single pixel gives 0")
        return nn.GroupNorm(channels if norm == "instance" else 4, channels, affine=affine)

    def resize(self, channels: int, height: int, width: int) -> None:
        if min(height, width) < 1:
            raise self.too_small("pooling leaves no pixels")
        self.shape = (channels, height, width)

    def too_small(self, why: str) -> FastDMError:
        height, width = self.input_shape[1:]
        return FastDMError(f"{self.name} cannot take {height}x{width} images: {why}; use larger images or less depth")

    def build(self, num_classes: int, frozen: bool) -> Network:
        return Network(nn.Sequential(*self.layers), math.prod(self.shape), num_classes, frozen)


def _first_padding(stack: _Stack, padding: int) -> int:
    """One-channel images get 2 more pixels on every side, which takes 28×28 to 32×32 (as the public code does)."""
    return padding + 2 if stack.input_shape[0] == 1 else padding


def _convnet(
    stack: _Stack,
    *,
    width: int = 128,
    depth: int = 3,
    activation: str = "relu",
    norm: str = "instance",
    pool: str = "avg",
) -> None:
    for level in range(depth):
        padding = _first_padding(stack, 1) if level == 0 else 1
        stack.block(width, padding=padding, norm=norm, activation=activation, pool=pool)


def _mlp(stack: _Stack) -> None:
    stack.linear(128)
    stack.linear(128)


def _lenet(stack: _Stack) -> None:
    stack.block(6, kernel=5, padding=_first_padding(stack, 0), pool="max")
    stack.block(16, kernel=5, padding=0, pool="max")
    stack.linear(120)
    stack.linear(84)


def _alexnet(stack: _Stack, norm: str = "none") -> None:
    stack.block(128, kernel=5, padding=_first_padding(stack, 2), norm=norm, pool="max")
    stack.block(192, kernel=5, padding=2, norm=norm, pool="max")
    stack.block(256, norm=norm)
    stack.block(192, norm=norm)
    stack.block(192, norm=norm, pool="max")


def _vgg11(stack: _Stack, norm: str = "instance") -> None:
    stack.block(64, padding=_first_padding(stack, 1), norm=norm, pool="max")
    stack.block(128, norm=norm, pool="max")
    for width in (256, 512, 512):
        stack.block(width, norm=norm)
        stack.block(width, norm=norm, pool="max")


def _resnet18(stack: _Stack, norm: str = "instance", pooled: bool = False) -> None:
    """The ResNet-18 for small images: 3×3 stem without pooling.

    `pooled` (the _AP variants): average pooling for strides, and the last feature map whole instead of its mean.
    """
    stack.layers.append(nn.Conv2d(stack.shape[0], 64, 3, padding=1, bias=False))
    stack.resize(64, *stack.shape[1:])
    stack.layers += [stack.norm(norm), nn.ReLU(inplace=True)]
    for level, width in enumerate((64, 128, 256, 512)):
        stack.residual(width, stride=1 if level == 0 else 2, norm=norm, pooled=pooled)
        stack.residual(width, stride=1, norm=norm, pooled=pooled)
    if not pooled:
        stack.layers.append(nn.AdaptiveAvgPool2d(1))
        stack.resize(512, 1, 1)


_ARCHITECTURES: dict[str, Callable[[_Stack], None]] = {
    "MLP": _mlp,
    "LeNet": _lenet,
    "AlexNet": _alexnet,
    "AlexNetBN": partial(_alexnet, norm="batch"),
    "VGG11": _vgg11,
    "VGG11BN": partial(_vgg11, norm="batch"),
    "ResNet18": _resnet18,
    "ResNet18BN": partial(_resnet18, norm="batch"),
    "ResNet18_AP": partial(_resnet18, pooled=True),
    "ResNet18BN_AP": partial(_resnet18, norm="batch", pooled=True),
    "ConvNet": _convnet,
    **{f"ConvNetD{depth}": partial(_convnet, depth=depth) for depth in (1, 2, 3, 4, 5, 6)},
    **{f"ConvNetW{width}": partial(_convnet, width=width) for width in (32, 64, 128, 256)},
    "ConvNetAS": partial(_convnet, activation="sigmoid"),
    "ConvNetAR": partial(_convnet, activation="relu"),
    "ConvNetAL": partial(_convnet, activation="leakyrelu"),
    "ConvNetASwish": partial(_convnet, activation="swish"),
    "ConvNetASwishBN": partial(_convnet, activation="swish", norm="batch"),
    "ConvNetNN": partial(_convnet, norm="none"),
    "ConvNetBN": partial(_convnet, norm="batch"),
    "ConvNetLN": partial(_convnet, norm="layer"),
    "ConvNetIN": partial(_convnet, norm="instance"),
    "ConvNetGN": partial(_convnet, norm="group"),
    "ConvNetNP": partial(_convnet, pool="none"),
    "ConvNetMP": partial(_convnet, pool="max"),
    "ConvNetAP": partial(_convnet, pool="avg"),
}

_ANY_CONVNET = re.compile(
    rf"ConvNet-d([1-9])-w([1-9]\d{{0,3}})-({'|'.join(ACTIVATIONS)})-({'|'.join(_NORMS)})-({'|'.join(_POOLS)})"
)

_POOLS_OF_NETWORKS = {
    "M": ("MLP", "ConvNet", "LeNet", "AlexNet", "VGG11", "ResNet18"),
    "B": ("ConvNetBN", "ConvNetASwishBN", "AlexNetBN", "VGG11BN", "ResNet18BN"),
    "W": ("ConvNetW32", "ConvNetW64", "ConvNetW128", "ConvNetW256"),
    "D": ("ConvNetD1", "ConvNetD2", "ConvNetD3", "ConvNetD4"),
    "A": ("ConvNetAS", "ConvNetAR", "ConvNetAL", "ConvNetASwish"),
    "P": ("ConvNetNP", "ConvNetMP", "ConvNetAP"),
    "N": ("ConvNetNN", "ConvNetBN", "ConvNetLN", "ConvNetIN", "ConvNetGN"),
}


def network_names() -> list[str]:
    """The names that `build_network` takes, besides those of `convnet_name`."""
    return list(_ARCHITECTURES)


def is_network(name: str) -> bool:
    """Whether `build_network` knows the name."""
    try:
        _architecture(name)
    except FastDMError:
        return False
    return True


def convnet_name(depth: int, width: int, activation: str, norm: str, pool: str) -> str:
    """The name under which `build_network` builds such a ConvNet: see `build_convnet`.

    >>> convnet_name(3, 128, "relu", "instance", "avg")
    'ConvNet-d3-w128-relu-instance-avg'
    """
    name = f"ConvNet-d{depth}-w{width}-{activation}-{norm}-{pool}"
    _architecture(name)
    return name


def _architecture(name: str) -> Callable[[_Stack], None]:
    if name in _ARCHITECTURES:
        return _ARCHITECTURES[name]
    parts = _ANY_CONVNET.fullmatch(name)
    if parts is None:
        raise unknown("network", name, _ARCHITECTURES)
    depth, width, activation, norm, pool = parts.groups()
    if norm == "group" and int(width) % 4:
        raise FastDMError(f"norm 'group' has 4 groups, so the width must be a multiple of 4, not {width}")
    return partial(_convnet, depth=int(depth), width=int(width), activation=activation, norm=norm, pool=pool)


def evaluation_pool(mode: str, network: str) -> list[str]:
    """Names of the networks that evaluation mode `mode` trains on a set condensed with `network`.

    M: architectures, B: BatchNorm, W: width, D: depth, A: activation, P: pooling, N: norm, SS: `network` itself,
    S: itself with InstanceNorm in place of BatchNorm (a small set cannot estimate BatchNorm's statistics).
    """
    _architecture(network)
    if mode == "SS":
        return [network]
    if mode == "S":
        return [network.replace("BN", "").replace("-batch-", "-instance-")]
    if mode not in _POOLS_OF_NETWORKS:
        raise unknown("evaluation mode", mode, [*_POOLS_OF_NETWORKS, "S", "SS"])
    return list(_POOLS_OF_NETWORKS[mode])


def default_network(image_shape: tuple[int, int, int]) -> str:
    """ConvNet (depth 3) for images (C, H, W) of up to 63 pixels, one block more for every doubling of the side.

    That is ConvNetD4 at 64 pixels, as in the paper, and at most ConvNetD6.
    """
    doublings = max(0, min(3, min(image_shape[1:]).bit_length() - 6))
    return "ConvNet" if doublings == 0 else f"ConvNetD{3 + doublings}"


def build_network(
    name: str,
    *,
    channels: int,
    num_classes: int,
    image_size: int | tuple[int, int],
    frozen: bool = False,
    affine: bool = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    drawn: bool = True,
) -> Network:
    """The architecture `name` (one of `network_names()`, or a `convnet_name`) with PyTorch's default initialisation.

    image_size: side, or (height, width), of the images. `frozen` builds a network whose weights are only ever drawn,
    never trained, as distribution matching needs them: no parameter takes a gradient, norms have no scale and shift
    (which would be 1 and 0), convolutions in front of an InstanceNorm or BatchNorm no bias (which the norm cancels),
    and there is no classifier. Its features are distributed as those of the unfrozen network. BatchNorm then always
    normalises with the statistics of the batch.

    affine: False leaves out the norms' scale and shift and the biases that they cancel from a network that is trained,
    so that its layers are those of a frozen one.

    device, dtype: of the parameters, by default PyTorch's; their memory format is channels_last. drawn: False leaves
    their memory as it is, for `initialise` to fill, and takes nothing from PyTorch's global generator.

    Raises FastDMError for an unknown name, and for images that are too small for the architecture.
    """
    architecture = _architecture(name)
    with nullcontext() if drawn else torch.device("meta"):
        stack = _Stack(name, channels, _pair(image_size), affine and not frozen)
        architecture(stack)
        network = stack.build(num_classes, frozen)
    if not drawn:
        network = network.to_empty(device=device or torch.device("cpu"))
        dtype = dtype or torch.float32
    return cast(Network, network.to(device, dtype, memory_format=torch.channels_last))  # type: ignore[call-overload]


def build_convnet(
    *,
    channels: int,
    num_classes: int,
    image_size: int | tuple[int, int],
    width: int = 128,
    depth: int = 3,
    activation: str = "relu",
    norm: str = "instance",
    pool: str = "avg",
    frozen: bool = False,
) -> Network:
    """A ConvNet: `depth` blocks of 3×3 convolution (`width` channels) → norm → activation → 2×2 pooling.

    activation: sigmoid, relu, leakyrelu (0.01) or swish. norm: none, batch, layer, instance or group (4 groups).
    pool: none, max or avg. The rest as in `build_network`.
    """
    for setting, value, known in (
        ("activation", activation, ACTIVATIONS),
        ("norm", norm, _NORMS),
        ("pool", pool, _POOLS),
    ):
        if value not in known:
            raise unknown(setting, value, known)
    if norm == "group" and width % 4:
        raise FastDMError(f"norm 'group' has 4 groups, so the width must be a multiple of 4, not {width}")
    stack = _Stack(f"a ConvNet of depth {depth}", channels, _pair(image_size), not frozen)
    _convnet(stack, width=width, depth=depth, activation=activation, norm=norm, pool=pool)
    return stack.build(num_classes, frozen)


def _pair(image_size: int | tuple[int, int]) -> tuple[int, int]:
    return (image_size, image_size) if isinstance(image_size, int) else image_size
