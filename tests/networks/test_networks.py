import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdm.errors import FastDMError
from fastdm.networks import model
from fastdm.networks.architectures import build_convnet, build_network, evaluation_pool, network_names
from fastdm.networks.model import NormedConv2d, initialise

KEY = torch.tensor([3, 5])


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("name", network_names())
@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 28)], ids=["cifar", "mnist"])
def test_every_network_embeds_and_classifies(name: str, channels: int, size: int) -> None:
    size *= 3 if name == "ConvNetD6" else 1
    network = build_network(name, channels=channels, num_classes=7, image_size=size)
    x = torch.randn(2, channels, size, size)
    features = network.embed(x)
    assert features.shape == (2, network.num_features)
    assert features.isfinite().all()
    assert features.std() > 0
    assert network(x).shape == (2, 7)


# (parameters, features) of the public code's networks for 3×32×32 and 10 classes, classifier included.
SIZES = {
    "MLP": (3072 * 128 + 128 + 128 * 128 + 128 + 128 * 10 + 10, 128),
    "LeNet": (62_006, 84),
    "AlexNet": (1_872_202, 192 * 4 * 4),
    "AlexNetBN": (1_872_202 + 2 * (128 + 192 + 256 + 192 + 192), 192 * 4 * 4),
    "VGG11": (9_231_114, 512),
    "VGG11BN": (9_231_114, 512),
    "ResNet18": (11_173_962, 512),
    "ResNet18BN": (11_173_962, 512),
    "ResNet18BN_AP": (11_173_962 + 512 * 15 * 10, 512 * 4 * 4),
    "ConvNet": (320_010, 128 * 4 * 4),
    "ConvNetD4": (320_010 + 147_840 - 128 * 12 * 10, 128 * 2 * 2),
    "ConvNetNN": (320_010 - 3 * 256, 128 * 4 * 4),
    "ConvNetNP": (320_010 + 128 * (1024 - 16) * 10, 128 * 32 * 32),
    "ConvNetLN": (320_010 - 3 * 256 + 2 * 128 * (32**2 + 16**2 + 8**2), 128 * 4 * 4),
}


@pytest.mark.parametrize(("name", "sizes"), SIZES.items(), ids=SIZES)
def test_sizes(name: str, sizes: tuple[int, int]) -> None:
    network = build_network(name, channels=3, num_classes=10, image_size=32)
    assert (count(network), network.num_features) == sizes


@pytest.mark.parametrize("name", ["ConvNet", "LeNet", "AlexNet", "VGG11"])
def test_grey_28_is_padded_to_32(name: str) -> None:
    grey = build_network(name, channels=1, num_classes=10, image_size=28)
    colour = build_network(name, channels=3, num_classes=10, image_size=32)
    assert grey.num_features == colour.num_features


def test_rectangular_images() -> None:
    network = build_network("ConvNet", channels=3, num_classes=2, image_size=(16, 40))
    assert network.embed(torch.randn(1, 3, 16, 40)).shape == (1, 128 * 2 * 5)


def literal_convnet(x: Tensor, weights: list[Tensor], norm: str, activation: str, pool: str) -> Tensor:
    """Convolutions (padding 1) without bias, norms without scale and shift."""
    for weight in weights:
        x = F.conv2d(x, weight, padding=1)
        dims = {"batch": (0, 2, 3), "layer": (1, 2, 3), "instance": (2, 3)}.get(norm)
        if norm == "group":
            x = F.group_norm(x, 4)
        elif dims:
            x = (x - x.mean(dims, True)) / (x.var(dims, unbiased=False, keepdim=True) + 1e-5).sqrt()
        x = {
            "sigmoid": lambda v: 1 / (1 + (-v).exp()),
            "relu": lambda v: v.clamp_min(0),
            "leakyrelu": lambda v: torch.where(v > 0, v, 0.01 * v),
            "swish": lambda v: v / (1 + (-v).exp()),
        }[activation](x)
        if pool != "none":
            quads = x.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)
            x = quads.mean(4) if pool == "avg" else quads.amax(4)
    return x.flatten(1)


VARIANTS = [
    ("instance", "relu", "avg"),  # the fused block
    ("batch", "swish", "avg"),
    ("layer", "relu", "max"),
    ("group", "sigmoid", "avg"),
    ("instance", "leakyrelu", "none"),
    ("none", "relu", "max"),
]


@pytest.mark.parametrize(("norm", "activation", "pool"), VARIANTS, ids=["-".join(variant) for variant in VARIANTS])
def test_convnet_is_the_literal_one(norm: str, activation: str, pool: str) -> None:
    torch.manual_seed(0)
    network = build_convnet(
        channels=3, num_classes=2, image_size=13, width=8, depth=2, norm=norm, activation=activation, pool=pool
    )
    weights = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            weights.append(module.weight.detach())
            nn.init.zeros_(module.bias)
    x = torch.randn(4, 3, 13, 13)
    exact = literal_convnet(x.double(), [w.double() for w in weights], norm, activation, pool)
    eager = literal_convnet(x, weights, norm, activation, pool)
    bound = 4 * (eager - exact).abs().max() + torch.finfo(torch.float32).eps * exact.abs().max()
    assert (network.embed(x) - exact).abs().max() <= bound


@pytest.mark.parametrize("name", ["ConvNet", "ConvNetBN", "ConvNetGN", "ConvNetLN", "VGG11", "ResNet18BN", "LeNet"])
def test_frozen_features_are_those_of_the_unfrozen_network(name: str) -> None:
    torch.manual_seed(0)
    free = build_network(name, channels=3, num_classes=2, image_size=32)
    frozen = build_network(name, channels=3, num_classes=2, image_size=32, frozen=True)
    kept = {key: value for key, value in free.state_dict().items() if key in frozen.state_dict()}
    frozen.load_state_dict(kept)
    assert all(not parameter.requires_grad for parameter in frozen.parameters())
    x = torch.randn(4, 3, 32, 32, requires_grad=True)
    features = frozen.embed(x)
    expected = free.embed(x)
    # At most 20 layers of float32 sums of up to 4608 terms, whose rounding grows like its root.
    tolerance = 20 * math.sqrt(4608) * torch.finfo(torch.float32).eps * expected.abs().max()
    assert (features - expected).abs().max() <= tolerance
    features.sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_frozen_convnet_is_three_weights() -> None:
    network = build_network("ConvNet", channels=3, num_classes=10, image_size=32, frozen=True)
    assert [tuple(p.shape) for p in network.parameters()] == [(128, 3, 3, 3), (128, 128, 3, 3), (128, 128, 3, 3)]


@pytest.mark.parametrize("name", ["ConvNet", "ConvNetMP", "ConvNetBN", "MLP"])
def test_embed_mean_is_the_mean_of_embed(name: str) -> None:
    torch.manual_seed(0)
    network = build_network(name, channels=3, num_classes=3, image_size=16, frozen=True)
    x = torch.randn(6, 3, 16, 16)
    offsets = torch.tensor([0, 1, 4, 6])
    means = network.embed_mean(x, offsets)
    features = network.embed(x).double()
    expected = torch.stack([features[:1].mean(0), features[1:4].mean(0), features[4:].mean(0)])
    assert means.dtype == torch.float32
    assert not means.requires_grad
    torch.testing.assert_close(means, expected.float(), rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["ConvNet", "ResNet18BN", "MLP"])
def test_initialise_draws_pytorchs_distribution(name: str) -> None:
    network = build_network(name, channels=3, num_classes=10, image_size=32)
    with torch.no_grad():
        for tensor in [*network.parameters(), *network.buffers()]:
            tensor.fill_(77)
    initialise(network, KEY)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            bound = 1 / math.sqrt(module.weight[0].numel())
            for parameter in (module.weight, module.bias):
                if parameter is None:
                    continue
                assert parameter.abs().max() <= bound
                n = parameter.numel()
                # Mean and mean square of n uniform values, within 5 standard deviations.
                assert parameter.mean().abs() <= 5 * bound / math.sqrt(3 * n)
                assert (parameter.square().mean() - bound**2 / 3).abs() <= 5 * bound**2 * math.sqrt(4 / 45 / n)
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.running_mean == 0).all()
            assert (module.running_var == 1).all()
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
    x = torch.randn(2, 3, 32, 32)
    assert network(x).abs().max() < 10  # no 77 is left


def test_initialise_depends_on_key_and_architecture_only() -> None:
    def weights(key: Tensor, memory_format: torch.memory_format) -> Tensor:
        network = build_network("ConvNetD2", channels=3, num_classes=10, image_size=16)
        network.to(memory_format=memory_format)
        initialise(network, key)
        return torch.cat([parameter.flatten() for parameter in network.parameters()])

    first = weights(KEY, torch.contiguous_format)
    assert torch.equal(first, weights(KEY, torch.channels_last))
    assert not torch.equal(first, weights(KEY + torch.tensor([0, 1]), torch.contiguous_format))
    assert not torch.equal(first, weights(KEY + torch.tensor([1, 0]), torch.contiguous_format))


@pytest.mark.parametrize("mode", ["M", "B", "W", "D", "A", "P", "N", "S", "SS"])
def test_pools_name_known_networks(mode: str) -> None:
    for network in network_names():
        assert set(evaluation_pool(mode, network)) <= set(network_names())


def test_s_replaces_batch_norm() -> None:
    assert evaluation_pool("S", "ConvNetASwishBN") == ["ConvNetASwish"]
    assert evaluation_pool("S", "ResNet18BN_AP") == ["ResNet18_AP"]
    assert evaluation_pool("SS", "ConvNetBN") == ["ConvNetBN"]


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("ConvNetX", 32, "unknown network 'ConvNetX'"),
        ("ConvNetD4", 8, "ConvNetD4 cannot take 8x8 images"),
        ("VGG11", 16, "VGG11 cannot take 16x16 images: an InstanceNorm over a single pixel"),
        ("LeNet", 10, "LeNet cannot take 10x10 images"),
    ],
)
def test_what_cannot_be_built(name: str, size: int, message: str) -> None:
    with pytest.raises(FastDMError, match=message):
        build_network(name, channels=3, num_classes=10, image_size=size)


def test_unknown_variants_and_modes() -> None:
    with pytest.raises(FastDMError, match=r"unknown norm 'instances'; did you mean instance\?"):
        build_convnet(channels=3, num_classes=2, image_size=32, norm="instances")
    with pytest.raises(FastDMError, match="unknown norm 'spectral'; choose one of none, batch"):
        build_convnet(channels=3, num_classes=2, image_size=32, norm="spectral")
    with pytest.raises(FastDMError, match="multiple of 4, not 30"):
        build_convnet(channels=3, num_classes=2, image_size=32, norm="group", width=30)
    with pytest.raises(FastDMError, match="unknown evaluation mode 'X'"):
        evaluation_pool("X", "ConvNet")


@pytest.mark.parametrize("name", ["ConvNet", "ConvNetMP", "VGG11"])
def test_a_bias_in_front_of_an_instance_norm_is_kept_and_changes_nothing(name: str) -> None:
    network = build_network(name, channels=3, num_classes=2, image_size=32).double()
    with_bias = copy.deepcopy(network)
    convolutions = [module for module in with_bias.modules() if isinstance(module, NormedConv2d)]
    for module in convolutions:
        assert module.bias is not None
        module.__class__ = nn.Conv2d
    assert convolutions
    assert network.state_dict().keys() == with_bias.state_dict().keys()
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    # The norm subtracts the bias again: float64 rounding is left, of some thousand additions.
    torch.testing.assert_close(network(x), with_bias(x), rtol=0, atol=1e-11)


def test_a_trained_convnet_has_the_gradients_of_its_layers() -> None:
    torch.manual_seed(0)
    network = build_network("ConvNetW32", channels=3, num_classes=2, image_size=16)
    for name, parameter in network.named_parameters():
        if parameter.dim() == 1 and "conv" not in name:
            nn.init.normal_(parameter, 0.5, 0.5)
    layers = copy.deepcopy(network).double()
    for module in layers.modules():
        if isinstance(module, NormedConv2d):
            module.__class__ = nn.Conv2d
    x = torch.randn(5, 3, 16, 16)
    F.cross_entropy(network(x), torch.arange(5) % 2).backward()
    F.cross_entropy(layers(x.double()), torch.arange(5) % 2).backward()
    compared = 0
    for (name, parameter), exact in zip(network.named_parameters(), layers.parameters(), strict=True):
        assert exact.grad is not None
        if name.endswith("conv.bias"):  # takes no part
            assert parameter.grad is None
            continue
        assert parameter.grad is not None
        # Three blocks of sums of up to 5 · 16² terms, whose rounding Winograd's form makes 11 times larger.
        tolerance = 3 * 11 * math.sqrt(5 * 16**2) * torch.finfo(torch.float32).eps * exact.grad.abs().max()
        assert (parameter.grad - exact.grad).abs().max() <= tolerance, name
        compared += 1
    assert compared == 3 * 3 + 2


def test_autocast_reaches_the_convolutions_of_blocks_unless_the_cpu_is_faster_in_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = build_network("ConvNetW32", channels=3, num_classes=2, image_size=16)
    x = torch.randn(2, 3, 16, 16)
    plain = network.embed(x)
    monkeypatch.setattr(model, "stores_only_pooled", lambda x, weight: False)  # as without tiles: see test_tiles.py
    for fastest, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        monkeypatch.setattr(model, "fastest_precision", lambda device, fastest=fastest: fastest)
        with torch.autocast("cpu", torch.bfloat16):
            features = network.embed(x)
        assert features.dtype == dtype
        assert torch.equal(features, plain) == (fastest == "fp32")


def test_types_that_differ_are_refused_outside_autocast() -> None:
    network = build_network("ConvNetW32", channels=3, num_classes=2, image_size=16)
    with pytest.raises(TypeError, match=r"torch\.float32; it must be torch\.bfloat16"):
        network.embed(torch.randn(2, 3, 16, 16).bfloat16())
