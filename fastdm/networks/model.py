"""Networks as layers, and their random initialisation on the device."""

import math
from collections.abc import Callable
from functools import lru_cache, partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastdm.kernels import conv_norm_relu_pool, norm_relu_pool, norm_relu_pool_mean, uniform

INIT_STREAM = 3  # the stream of `fastdm.kernels.uniform` that network weights are drawn from
_ROW = 4096  # values per row of that draw
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
        """Whether an image's features depend on the others of its batch: with BatchNorm, in training mode."""
        return self.training and any(isinstance(module, nn.BatchNorm2d) for module in self.modules())

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
        images is never written.
        """
        *body, last = self.features
        if not isinstance(last, Block):
            features = self.embed(x)
            wide = torch.promote_types(features.dtype, torch.float32)
            return torch.segment_reduce(features.to(wide), "mean", offsets=offsets, axis=0)
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
    """3×3 convolution, InstanceNorm (eps 1e-5), ReLU and 2×2 average pooling, the last three in one op.

    weight, bias: the norm's scale and shift, None where the network was built without. If it is not trained either, all
    four are one op.
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
        weight = self.conv.weight
        if self.weight is None and self.conv.bias is None and not weight.requires_grad:
            return conv_norm_relu_pool(x, weight, padding=int(self.conv.padding[0]))
        return norm_relu_pool(self.conv(x), self.weight, self.bias)


class Residual(nn.Module):
    """relu(main(x) + shortcut(x))."""

    def __init__(self, main: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.main = main
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu_(self.main(x).add_(self.shortcut(x)))


@torch.no_grad()
def initialise(network: nn.Module, key: Tensor) -> None:
    """Draw all parameters of `network` afresh, in place, on their device and without waiting for it.

    PyTorch's default distribution: weight and bias of convolutions and linear layers ~ U(−1/√fan_in, 1/√fan_in),
    scale and shift of norms 1 and 0; running statistics of BatchNorm are reset. key: int64 [2], (seed, step), on the
    device. The numbers are `uniform(key, rows, 4096, stream=3)` read row after row, in the order of
    `network.modules()`, weight before bias: they depend on the key and the architecture only.
    """
    drawn: list[tuple[Tensor, float]] = []  # parameter and its bound
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            bound = 1 / math.sqrt(module.weight[0].numel())
            drawn.append((module.weight, bound))
            if module.bias is not None:
                drawn.append((module.bias, bound))
        elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm):
            module.reset_parameters()
        elif isinstance(module, Block):
            module.reset_norm()

    rows = _rows(-(-sum(parameter.numel() for parameter, _ in drawn) // _ROW), key.device)
    values = uniform(key, rows, _ROW, INIT_STREAM).flatten().sub_(0.5)
    start = 0
    for parameter, bound in drawn:
        stop = start + parameter.numel()
        torch.mul(values[start:stop].view_as(parameter), 2 * bound, out=parameter)
        start = stop


@lru_cache(maxsize=64)
def _rows(count: int, device: torch.device) -> Tensor:
    """0 to count − 1, kept because on a GPU every operation costs a launch."""
    return torch.arange(count, device=device)
