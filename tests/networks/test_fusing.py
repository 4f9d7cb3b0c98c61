"""Blocks of a caller's network as single ops: the same values, and nothing else changes."""

import copy
import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from fastdm.kernels import conv_norm_relu_pool, extension
from fastdm.networks import fusing
from fastdm.networks.fusing import fused_blocks, has_fused_blocks
from tests.kernels.blocks.test_conv_block import winograd_amplification
from tests.kernels.blocks.test_native import FLOAT, assert_near

pytestmark = pytest.mark.skipif(extension.load() is None, reason="fastdm was installed without extension")


def block(channels: int = 3, padding: int = 1, **changes: nn.Module) -> nn.Sequential:
    """The layers of a block of the public ConvNet, by name."""
    layers: dict[str, nn.Module] = {
        "conv": nn.Conv2d(channels, 32, 3, padding=padding),
        "norm": nn.GroupNorm(32, 32),
        "activation": nn.ReLU(inplace=True),
        "pool": nn.AvgPool2d(2, 2),
    }
    return nn.Sequential(*(layers | changes).values())


class Net(nn.Module):
    """Two blocks whose norms have a scale and a shift, and a layer that is not of a block."""

    def __init__(self, norm: Callable[[], nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(*block(1, padding=3, norm=norm()), nn.Dropout(0.0), *block(32, norm=norm()))
        for module in self.features:
            if isinstance(module, nn.GroupNorm | nn.InstanceNorm2d) and module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)  # type: ignore[no-any-return]


NORMS = {
    "GroupNorm": lambda: nn.GroupNorm(32, 32, eps=1e-4),
    "InstanceNorm": lambda: nn.InstanceNorm2d(32, affine=True),
    "without scale": lambda: nn.InstanceNorm2d(32),
}


def by_ops(net: Net, x: Tensor) -> Tensor:
    """The forward pass, its blocks written out."""
    for first in (0, 5):
        conv, norm = net.features[first], net.features[first + 1]
        x = conv_norm_relu_pool(x, conv.weight, norm.weight, norm.bias, padding=conv.padding[0], eps=norm.eps)
    return x


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_values_and_gradients_are_those_of_the_ops(norm: Callable[[], nn.Module]) -> None:
    net = Net(norm)
    x = torch.randn(3, 1, 10, 11, requires_grad=True)
    leaves = [x, *(p for name, p in net.named_parameters() if name not in ("features.0.bias", "features.5.bias"))]
    with fused_blocks(net):
        assert has_fused_blocks(net)
        out = net(x)
    expected = by_ops(net, x)
    assert torch.equal(out, expected)
    grad = torch.randn(out.shape)
    for one, other in zip(*(torch.autograd.grad(y, leaves, grad) for y in (out, expected)), strict=True):
        assert torch.equal(one, other)

    # Two blocks, whose errors tests/kernels/blocks/test_conv_block.py derives; the second magnifies those of the first
    # as its sums do: by what it does to values, since both are normalised.
    sums = math.sqrt(9 * 32)
    tolerance = 2 * (5 * winograd_amplification() * sums / 4 + 16) * FLOAT
    assert_near(out, copy.deepcopy(net).double()(x.double()), tolerance)


def test_a_bias_without_effect_has_a_gradient_of_zero() -> None:
    net = Net(NORMS["GroupNorm"])
    with fused_blocks(net):
        net(torch.randn(2, 1, 8, 8)).sum().backward()
    assert torch.equal(net.features[0].bias.grad, torch.zeros(32))


def with_hook() -> nn.Sequential:
    layers = block()
    layers[1].register_forward_hook(lambda *_: None)
    return layers


def with_a_forward_pass_of_its_own() -> nn.Sequential:
    layers = block()
    layers[0].forward = lambda x: torch.ones(len(x), 32, 4, 4)  # type: ignore[method-assign]
    return layers


OTHERS = {
    "hook": with_hook,
    "forward pass of its own": with_a_forward_pass_of_its_own,
    "parametrisation": lambda: block(conv=nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 32, 3, padding=1))),
    "stride": lambda: block(conv=nn.Conv2d(3, 32, 3, 2, 1)),
    "dilation": lambda: block(conv=nn.Conv2d(3, 32, 3, dilation=2)),
    "kernel": lambda: block(conv=nn.Conv2d(3, 32, 5)),
    "padding by name": lambda: block(conv=nn.Conv2d(3, 32, 3, padding="same")),
    "padding of two kinds": lambda: block(conv=nn.Conv2d(3, 32, 3, padding=(0, 1))),
    "reflected": lambda: block(conv=nn.Conv2d(3, 32, 3, padding=1, padding_mode="reflect")),
    "channels": lambda: block(conv=nn.Conv2d(3, 24, 3), norm=nn.GroupNorm(24, 24)),
    "groups of channels": lambda: block(norm=nn.GroupNorm(8, 32)),
    "running statistics": lambda: block(norm=nn.InstanceNorm2d(32, track_running_stats=True)),
    "BatchNorm": lambda: block(norm=nn.BatchNorm2d(32)),
    "another activation": lambda: block(activation=nn.LeakyReLU()),
    "larger pool": lambda: block(pool=nn.AvgPool2d(3, 2)),
    "rounded up": lambda: block(pool=nn.AvgPool2d(2, ceil_mode=True)),
    "divisor": lambda: block(pool=nn.AvgPool2d(2, divisor_override=3)),
    "double": lambda: block().double(),
}


@pytest.mark.parametrize("layers", OTHERS.values(), ids=OTHERS)
def test_other_layers_are_left_alone(layers: Callable[[], nn.Sequential]) -> None:
    torch.manual_seed(0)
    net = layers()
    x = torch.randn(2, 3, 9, 9, dtype=net[0].weight.dtype)
    expected = copy.deepcopy(net)(x)
    with fused_blocks(net):
        assert not has_fused_blocks(net)
        assert torch.equal(net(x), expected)


def test_under_autocast_and_in_a_wrapper_nothing_is_fused() -> None:
    net, x = Net(NORMS["GroupNorm"]), torch.randn(2, 1, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        expected = net(x)
        with fused_blocks(net):
            assert torch.equal(net(x), expected)
    for wrapped in (nn.DataParallel(net), torch.compile(net)):
        with fused_blocks(wrapped):
            assert not has_fused_blocks(wrapped)
    net.compile()
    with fused_blocks(net):
        assert not has_fused_blocks(net)


@pytest.mark.parametrize("images", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("weights", [torch.contiguous_format, torch.channels_last], ids=str)
def test_the_memory_format_is_that_of_the_layers(images: torch.memory_format, weights: torch.memory_format) -> None:
    net = nn.Sequential(*block(3), *block(32), nn.Dropout(0.0), *block(32)).to(memory_format=weights)  # type: ignore[call-overload]
    x = torch.randn(2, 3, 18, 18).to(memory_format=images)
    expected = net(x)
    with fused_blocks(net):
        assert net(input=x).stride() == expected.stride()


class Checkpointed(Net):
    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.features, x, use_reentrant=False)  # type: ignore[no-any-return]


def test_a_checkpointed_network_computes_its_layers_again_after_the_context() -> None:
    net, x = Checkpointed(NORMS["GroupNorm"]), torch.randn(2, 1, 8, 8)
    expected = torch.autograd.grad(net(x).square().sum(), net.features[0].weight)
    with fused_blocks(net):
        out = net(x)
    assert torch.equal(torch.autograd.grad(out.square().sum(), net.features[0].weight)[0], expected[0])


def test_hooks_of_all_modules_see_the_layers() -> None:
    net, seen = Net(NORMS["GroupNorm"]), []
    with fused_blocks(net), nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module)):
        net(torch.randn(2, 1, 8, 8))
    assert set(net.features) <= set(seen)


def in_func(net: Net, x: Tensor) -> Tensor:
    return torch.func.grad(lambda images: net(images).square().sum())(x)


def in_forward_mode(net: Net, x: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(net(forward_ad.make_dual(x, torch.ones_like(x)))).tangent


def compiled(net: Net, x: Tensor) -> Tensor:
    return torch.compile(lambda images: net(images), backend="eager", fullgraph=True)(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("call", [in_func, in_forward_mode, compiled])
def test_what_transforms_or_compiles_a_call_gets_the_layers(call: Callable[[Net, Tensor], Tensor]) -> None:
    net, x = Net(NORMS["GroupNorm"]).requires_grad_(False), torch.randn(2, 1, 8, 8)
    expected = call(net, x)
    with fused_blocks(net):
        assert torch.equal(call(net, x), expected)


def test_layers_that_are_replaced_later_count() -> None:
    net, x = Net(NORMS["GroupNorm"]).features, torch.randn(2, 1, 10, 10)
    with fused_blocks(net):
        net[0] = nn.Conv2d(1, 32, 3, stride=2)
        net[5] = nn.Conv2d(32, 32, 3, stride=2, padding=2)
        net.append(nn.Sigmoid())
        out = net(x)
    assert torch.equal(out, net(x))


def test_a_bias_may_change_before_the_backward_pass() -> None:
    net = Net(NORMS["GroupNorm"])
    with fused_blocks(net):
        out = net(torch.randn(2, 1, 8, 8))
    with torch.no_grad():
        net.features[0].bias.add_(1)
    out.sum().backward()
    assert torch.equal(net.features[0].bias.grad, torch.zeros(32))


def test_threads_may_fuse_one_network(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net(NORMS["GroupNorm"])
    found = threading.Barrier(2)
    steps = fusing._has_blocks

    def has_blocks(module: nn.Module) -> bool:
        has = steps(module)
        if has:
            found.wait()
        return has

    def fuse_and_restore(_: int) -> None:
        with fused_blocks(net):
            found.wait()

    monkeypatch.setattr(fusing, "_has_blocks", has_blocks)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(fuse_and_restore, range(2)))
    assert not has_fused_blocks(net)


def test_afterwards_the_network_is_as_it_was() -> None:
    net = Net(NORMS["GroupNorm"])
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(ZeroDivisionError), fused_blocks(net):
        raise ZeroDivisionError
    assert not has_fused_blocks(net)
    assert type(net.features) is nn.Sequential
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    copy.deepcopy(net)
