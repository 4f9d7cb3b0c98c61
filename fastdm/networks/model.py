"""Networks as layers, and their random initialisation on the device."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from fastdm.kernels import (
    class_means,
    conv_norm_relu_pool,
    norm_relu_pool,
    norm_relu_pool_mean,
    stores_only_pooled,
    uniform_weights,
)
from fastdm.system.device import fastest_precision

INIT_STREAM = 3  # the stream of `fastdm.kernels.uniform` that network weights are drawn from
_ALIGNMENT = 64  # elements: libraries have their fastest code for tensors that begin at a multiple
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "relu": partial(nn.ReLU, inplace=True),
    "leakyrelu": partial(nn.LeakyReLU, 0.01, inplace=True),
    "swish": nn.SiLU,
}


class Network(nn.Module):
    """`forward(x) = classifier(embed(x))`, `embed(x)` being the flattened features, [N, num_features].

    A frozen network (`build_network(..., frozen=True)`) has no classifier: forward gives the features.
    """

    def __init__(self, features: nn.Sequential, num_features: int, num_classes: int, frozen: bool) -> None:
        super().__init__()
        self.features = features
        self.num_features = num_features
        self.classifier = nn.Identity() if frozen else nn.Linear(num_features, num_classes)
        self.requires_grad_(not frozen)

    @property
    def is_fused(self) -> bool:
        """Whether every layer is a `Block`, whose norm, activation and pooling are one op."""
        return all(isinstance(layer, Block) for layer in self.features)

    @property
    def uses_batch_statistics(self) -> bool:
        """Whether an image's features depend on the others of its batch: with BatchNorm, of any number of dimensions,
        in training mode, and always where it keeps no running statistics."""
        return any(
            isinstance(module, _BatchNorm) and (self.training or module.running_mean is None)
            for module in self.modules()
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.embed(x))
        return logits

    def embed(self, x: Tensor) -> Tensor:
        """Features before the classifier of images [N, C, H, W], flattened in the order (channel, row, column)."""
        features: Tensor = self.features(x)
        return features.flatten(1)

    @torch.no_grad()
    def embed_mean(self, x: Tensor, offsets: Tensor) -> Tensor:
        """Mean embedding of each class, float32 (float64 of float64) [classes, num_features], without gradient.

        x: class-sorted images; those of class c are `x[offsets[c]:offsets[c + 1]]`, offsets int64 [classes + 1] on
        the device of x. Where the network ends in InstanceNorm, ReLU and average pooling, the embedding of single
        images is never written; but where blocks stay in a CPU's cache it is: the last convolution is faster as part
        of one.
        """
        *body, last = self.features
        if not isinstance(last, Block) or last.stays_in_cache(x):
            return class_means(self.embed(x), offsets)
        for layer in body:
            x = layer(x)
        return norm_relu_pool_mean(last.conv(x), offsets, last.weight, last.bias)


class NormedConv2d(nn.Conv2d):
    """A convolution in front of an InstanceNorm, whose bias is kept but not added: the norm subtracts it again.

    The bias is there because the public networks have it, in their state and in their random draws. Its gradient is 0,
    and computing that takes more than half of a training step in bfloat16 on a CPU.
    """

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.weight, None, self.stride, self.padding, self.dilation, self.groups)


class Block(nn.Module):
    """3×3 convolution, InstanceNorm (eps 1e-5), ReLU and 2×2 average pooling in one op.

    weight, bias: the norm's scale and shift, None where the network was built without. The convolution is an op of its
    own if it adds its bias, and under autocast, which casts what PyTorch's convolution is given. But on a CPU the block
    stays one op under autocast to bfloat16: in bfloat16 where the CPU has AMX's tiles, and in float32 where it is
    faster in that, as PyTorch leaves its norms in float32.
    """

    def __init__(self, conv: nn.Conv2d, affine: bool) -> None:
        super().__init__()
        self.conv = conv
        self.weight = nn.Parameter(torch.empty(conv.out_channels)) if affine else None
        self.bias = nn.Parameter(torch.empty(conv.out_channels)) if affine else None
        self.reset_norm()

    def reset_norm(self) -> None:
        """Set the norm's scale and shift to 1 and 0."""
        if self.weight is not None and self.bias is not None:
            nn.init.ones_(self.weight)
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        kind, weight = x.device.type, self.conv.weight
        dtype: torch.dtype | None = x.dtype
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            dtype = self._dtype_under_autocast(x.device)
            weight = weight if dtype is None else weight.to(dtype)
        if dtype is None or not isinstance(self.conv, NormedConv2d):
            return norm_relu_pool(self.conv(x), self.weight, self.bias)
        return conv_norm_relu_pool(x.to(dtype), weight, self.weight, self.bias, padding=int(self.conv.padding[0]))

    def _dtype_under_autocast(self, device: torch.device) -> torch.dtype | None:
        """The dtype in which the block is one op under autocast; None where it is not."""
        half = torch.get_autocast_dtype(device.type)
        if device.type != "cpu" or half != torch.bfloat16:
            return None
        if stores_only_pooled(torch.empty(0, dtype=half), self.conv.weight):
            return half
        return torch.float32 if fastest_precision(device) == "fp32" else None

    def stays_in_cache(self, x: Tensor) -> bool:
        """Whether images like x go through the block in a CPU's cache, one after the other."""
        if x.device.type != "cpu":
            return False
        tiled = isinstance(self.conv, NormedConv2d) and stores_only_pooled(x, self.conv.weight)
        return tiled or x.dtype == torch.float32


class Residual(nn.Module):
    """relu(main(x) + shortcut(x))."""

    def __init__(self, main: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.main = main
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu_(self.main(x).add_(self.shortcut(x)))


class WeightBuffer:
    """The weights and biases of a network's convolutions and linear layers in one buffer, drawn in one launch.

    They are drawn from PyTorch's default distribution, U(−1/√fan_in, 1/√fan_in), as numbers of `uniform_weights` in the
    order of `network.modules()`, weight before bias: they depend on the key and the architecture only.

    parameters: those of the network; views: of the buffer, the same in shape, memory format, dtype and device.
    """

    def __init__(self, network: nn.Module) -> None:
        self.parameters: list[nn.Parameter] = []
        self.bounds: list[float] = []
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                own = [*module.parameters(recurse=False)]  # the weight, and the bias if there is one
                self.parameters += own
                self.bounds += [1 / math.sqrt(module.weight[0].numel())] * len(own)
        self.layout: list[tuple[int, ...]] = []
        start = first = 0
        for parameter in self.parameters:
            self.layout.append((start, first, *_extents(parameter)))
            first += parameter.numel()
            start += aligned(parameter.numel())
        self._buffer = self.parameters[0].new_empty(start) if self.parameters else torch.empty(0)
        self.views = [
            self._buffer.as_strided(parameter.shape, parameter.stride(), begin)
            for parameter, (begin, *_) in zip(self.parameters, self.layout, strict=True)
        ]

    def draw(self, key: Tensor) -> None:
        """Draw the buffer afresh, in place and without waiting for its device, where the key is: int64 [2], (seed,
        step)."""
        if self.parameters:
            uniform_weights(self._buffer, key, self.layout, self.bounds, INIT_STREAM)


def aligned(elements: int) -> int:
    """The elements that a parameter takes in a buffer, so that the next one begins where libraries like it to."""
    return -(-elements // _ALIGNMENT) * _ALIGNMENT


def _extents(parameter: Tensor) -> tuple[int, int, int]:
    """(outer, channels, pixels) of a layout of `uniform_weights`."""
    if parameter.is_contiguous():
        return 1, 1, parameter.numel()
    assert parameter.is_contiguous(memory_format=torch.channels_last)
    return parameter.shape[0], parameter.shape[1], parameter[0, 0].numel()


@torch.no_grad()
def initialise(network: nn.Module, key: Tensor) -> None:
    """Draw all parameters of `network` afresh, in place, on their device and without waiting for it.

    Convolutions and linear layers as a `WeightBuffer` draws them from the key, int64 [2], (seed, step), on the device;
    scale and shift of norms are 1 and 0, and running statistics of BatchNorm are reset.
    """
    reset_norms(network)
    weights = WeightBuffer(network)
    weights.draw(key)
    for parameter, drawn in zip(weights.parameters, weights.views, strict=True):
        parameter.copy_(drawn)


def reset_norms(network: nn.Module) -> None:
    """Set what norms hold to what they begin with."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm):
            module.reset_parameters()
        elif isinstance(module, Block):
            module.reset_norm()
