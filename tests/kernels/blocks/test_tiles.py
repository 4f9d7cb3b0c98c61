"""Blocks in bfloat16 through tiles, in C++, against float64 and PyTorch's convolution; mostly the plain form, which any
processor runs. core_test.cpp compares the bits of both forms, with AMX's instructions emulated where they are missing.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from fastdm.kernels import conv_norm_relu_pool, dispatch, extension, norm_relu_pool, stores_only_pooled, use_backend
from fastdm.kernels.blocks import native, reference
from fastdm.networks import build_network
from fastdm.networks.model import Block
from tests.kernels.blocks.test_conv_block import block_inputs
from tests.kernels.blocks.test_native import FLOAT, HALF, assert_near, double

pytestmark = pytest.mark.skipif(extension.load() is None, reason="fastdm was installed without extension")

HAS_AMX = extension.load() is not None and extension.load().tiles() == "amx"

# Images [N, C, H, W], filters and padding.
BLOCKS = [
    pytest.param((3, 3, 12, 12), 64, 1, id="first layer"),
    pytest.param((1, 3, 32, 16), 32, 1, id="many tiles of one image"),
    pytest.param((2, 1, 9, 13), 32, 3, id="one channel, wide padding, odd sides"),
    pytest.param((2, 7, 6, 5), 96, 1, id="most gathered channels"),
    pytest.param((7, 64, 8, 8), 32, 1, id="several images together"),
    pytest.param((1, 32, 7, 30), 96, 0, id="no padding"),
    pytest.param((3, 32, 5, 16), 64, 1, id="rows of one tile"),
    pytest.param((2, 64, 5, 34), 32, 0, id="rows of two tiles, no padding"),
    pytest.param((2, 32, 5, 6), 32, 2, id="wide padding"),
]


@contextmanager
def tiles(form: str) -> Iterator[None]:
    core = extension.load()
    before = core.tiles()
    core.use_tiles(form)
    try:
        yield
    finally:
        core.use_tiles(before)


@pytest.fixture(autouse=True)
def plain_tiles() -> Iterator[None]:
    with tiles("plain"):
        yield


def half_inputs(shape: tuple[int, ...], filters: int) -> tuple[Tensor, Tensor]:
    x, weight = block_inputs(shape, filters)
    return x.bfloat16(), weight.bfloat16()


def assert_rounded(actual: Tensor, exact: Tensor, magnitude: Tensor, terms: int, roundings: float = 1) -> None:
    """Each value is within some roundings to bfloat16 of the exact one, and within the error of a float32 sum.

    magnitude: the sum of the magnitudes of the `terms` products, each addition of which rounds by at most half an eps
    of what there is so far.
    """
    allowed = roundings * HALF / 2 * exact.abs() + (1 + HALF) * terms * FLOAT / 2 * magnitude
    assert bool(((actual.double() - exact).abs() <= allowed).all())


def assert_normed(
    kept: tuple[Tensor, ...], x: Tensor, weight: Tensor, scale: Tensor | None, shift: Tensor | None, padding: int
) -> None:
    """The norm's results are those of the exact convolution, but for the float32 sums of both, and one rounding."""
    exact = F.conv2d(x, weight, padding=padding)
    expected, mean, rstd = reference.norm_relu_pool(exact, scale, shift, 1e-5, "relu", "avg")
    magnitude = F.conv2d(x.abs(), weight.abs(), padding=padding)
    spread = weight[0].numel() * FLOAT / 2 * magnitude.amax((2, 3))  # the largest error of a channel's sums
    assert bool(((kept[2].double() - mean).abs() <= spread + 16 * FLOAT * magnitude.amax((2, 3))).all())
    assert bool(((kept[3].double() / rstd - 1).abs() <= spread * rstd + 16 * FLOAT).all())
    largest = ((exact - mean[:, :, None, None]).abs() * rstd[:, :, None, None]).amax((2, 3))
    # A value is off by its own error and the mean's; the deviation, by a share of what it divides.
    inherited = (2 + largest) * (spread * rstd + 16 * FLOAT) * (1 if scale is None else scale.abs())
    allowed = (1 + HALF) * (inherited[:, :, None, None] + 16 * FLOAT * expected.abs().max()) + HALF / 2 * expected.abs()
    assert bool(((kept[0].double() - expected).abs() <= allowed).all())


@pytest.mark.parametrize(("shape", "filters", "padding"), BLOCKS)
def test_the_convolution_is_the_exact_one_rounded_once(shape: tuple[int, ...], filters: int, padding: int) -> None:
    x, weight = half_inputs(shape, filters)
    _, conv, _, _ = native.conv_norm_relu_pool(x, weight, None, None, padding, 1e-5, True)
    assert conv.dtype == torch.bfloat16
    exact = F.conv2d(x.double(), weight.double(), padding=padding)
    magnitude = F.conv2d(x.double().abs(), weight.double().abs(), padding=padding)
    assert_rounded(conv, exact, magnitude, 9 * shape[1])
    # PyTorch's is as near, so that both are within two roundings of each other.
    with use_backend("reference"):
        _, by_torch, _, _ = torch.ops.fastdm.conv_norm_relu_pool(x, weight, None, None, padding, 1e-5, True)
    assert_rounded(by_torch, exact, magnitude, 9 * shape[1])
    assert float((conv == by_torch).double().mean()) > 0.95  # They differ where the exact value is nearly a tie.


@pytest.mark.parametrize("affine", [False, True], ids=["normalised", "affine"])
@pytest.mark.parametrize(("shape", "filters", "padding"), BLOCKS)
def test_a_block_and_its_gradient(shape: tuple[int, ...], filters: int, padding: int, affine: bool) -> None:
    x, weight = half_inputs(shape, filters)
    generator = torch.Generator().manual_seed(1)
    scale, shift = torch.randn(2, filters, generator=generator).unbind() if affine else (None, None)
    out = conv_norm_relu_pool(x, weight, scale, shift, padding=padding)
    assert out.dtype == torch.bfloat16
    assert out.is_contiguous(memory_format=torch.channels_last)
    kept = native.conv_norm_relu_pool(x, weight, scale, shift, padding, 1e-5, True)
    assert torch.equal(kept[0], out)
    assert_normed(kept, *double(x, weight, scale, shift), padding=padding)

    leaves = [t.requires_grad_() for t in (x, scale, shift) if t is not None]
    with_gradient = conv_norm_relu_pool(x, weight, scale, shift, padding=padding)
    assert torch.equal(with_gradient, out)
    grad = torch.randn(out.shape, generator=generator).bfloat16()
    gradients = torch.autograd.grad(with_gradient, leaves, grad)
    plain = [t if t is None else t.detach() for t in (scale, shift)]
    grad_conv, *exact_norm = reference.norm_relu_pool_backward(*double(grad, *kept[1:], *plain), "relu", "avg")
    exact = F.conv_transpose2d(grad_conv, weight.double(), padding=padding)
    # The norm's gradient is rounded to bfloat16 (and has its own error, as above), then the sum once more.
    slack = torch.full_like(grad_conv, float(16 * FLOAT * grad_conv.abs().max()))
    passed = HALF / 2 * grad_conv.abs() + slack
    inherited = F.conv_transpose2d(passed, weight.double().abs(), padding=padding)
    magnitude = F.conv_transpose2d(grad_conv.abs(), weight.double().abs(), padding=padding)
    allowed = (1 + HALF) * (HALF / 2 * exact.abs() + 9 * filters * FLOAT / 2 * magnitude + inherited)
    assert bool(((gradients[0].double() - exact).abs() <= allowed).all())
    for actual, wanted in zip(gradients[1:], exact_norm, strict=affine):
        assert_near(actual, wanted, (kept[1].numel() // filters) ** 0.5 * FLOAT + 16 * FLOAT)


def rounded_gradient_of_the_convolution(grad: Tensor, kept: tuple[Tensor, ...]) -> Tensor:
    """What both convolutions of the backward pass are given: it comes out of one that changes nothing."""
    filters = kept[0].shape[1]
    identity = torch.zeros(filters, filters, 3, 3, dtype=torch.bfloat16)
    identity[:, :, 1, 1] = torch.eye(filters)
    return native.conv_norm_relu_pool_backward(grad, None, *kept, identity, None, None, 1, True)[0]


@pytest.mark.parametrize(
    ("shape", "filters", "padding"),
    [
        *BLOCKS,
        pytest.param((23, 32, 8, 8), 32, 1, id="several shares of several rounds of images"),
        pytest.param((19, 3, 8, 9), 32, 1, id="the same with gathered channels"),
        pytest.param((1, 128, 20, 17), 32, 1, id="many channels and positions"),
    ],
)
def test_the_gradient_to_the_weights_is_the_exact_one_rounded_once(
    shape: tuple[int, ...], filters: int, padding: int
) -> None:
    x, weight = half_inputs(shape, filters)
    kept = native.conv_norm_relu_pool(x, weight, None, None, padding, 1e-5, True)[1:]
    out = conv_norm_relu_pool(x, weight.requires_grad_(), padding=padding)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    (gradient,) = torch.autograd.grad(out, weight, grad)
    assert gradient.dtype == torch.bfloat16
    grad_conv = rounded_gradient_of_the_convolution(grad, kept).double()
    exact = conv2d_weight(x.double(), weight.shape, grad_conv, padding=padding)
    magnitude = conv2d_weight(x.double().abs(), weight.shape, grad_conv.abs(), padding=padding)
    assert_rounded(gradient, exact, magnitude, grad_conv.numel() // filters)


def test_only_the_gradients_that_are_needed_are_computed() -> None:
    x, weight = half_inputs((2, 32, 8, 8), 32)
    scale, shift = torch.ones(32), torch.zeros(32)
    _, *kept = native.conv_norm_relu_pool(x, weight, scale, shift, 1, 1e-5, True)
    grad = torch.ones(2, 32, 4, 4, dtype=torch.bfloat16)
    everything = native.conv_norm_relu_pool_backward(grad, x, *kept, weight, scale, shift, 1, True)
    assert [len(t) for t in everything] == [2, 32, 32, 32]
    to_weight = native.conv_norm_relu_pool_backward(grad, x, *kept, weight, None, shift, 1, False)
    assert [len(t) for t in to_weight] == [0, 32, 0, 32]
    assert torch.equal(to_weight[1], everything[1])
    assert torch.equal(to_weight[3], everything[3])
    to_x = native.conv_norm_relu_pool_backward(grad, None, *kept, weight, scale, None, 1, True)
    assert [len(t) for t in to_x] == [2, 0, 32, 0]
    assert torch.equal(to_x[0], everything[0])


def test_a_block_does_not_depend_on_the_batch() -> None:
    x, weight = half_inputs((13, 32, 4, 4), 32)
    together = conv_norm_relu_pool(x, weight)
    assert torch.equal(together, torch.cat([conv_norm_relu_pool(part, weight) for part in x.split(3)]))


def test_weights_of_any_memory_format() -> None:
    x, weight = half_inputs((2, 32, 6, 6), 64)
    other = weight.contiguous(memory_format=torch.channels_last)
    assert torch.equal(conv_norm_relu_pool(x, weight), conv_norm_relu_pool(x, other))


def test_what_is_taken_depends_on_the_tiles() -> None:
    x, weight = half_inputs((2, 32, 6, 6), 64)
    conv, statistics = torch.zeros(2, 64, 6, 6, dtype=torch.bfloat16), torch.zeros(2, 64)
    backward = ("conv_norm_relu_pool_backward", conv[:, :, ::2, ::2])
    others = (conv, statistics, statistics, weight, None, None, 1, True)
    assert stores_only_pooled(x, weight)
    for images in (None, x):
        assert dispatch.implementation(*backward, images, *others).__module__.endswith("blocks.native")
    with tiles("none"):
        assert not stores_only_pooled(x, weight)
        assert dispatch.implementation(*backward, x, *others).__module__.endswith("blocks.reference")
        assert torch.equal(conv_norm_relu_pool(x, weight), norm_relu_pool(F.conv2d(x, weight, padding=1)))
    with pytest.raises(ValueError, match="'wide'; it must be plain, none or"):
        extension.load().use_tiles("wide")


def test_the_block_as_an_op() -> None:
    x, weight = half_inputs((2, 32, 8, 8), 32)
    x = x.contiguous(memory_format=torch.channels_last)
    for keep in (False, True):
        torch.library.opcheck(torch.ops.fastdm.conv_norm_relu_pool, (x, weight, None, None, 1, 1e-5, keep))
    results = torch.ops.fastdm.conv_norm_relu_pool(x, weight, None, None, 1, 1e-5, True)
    for images in (None, x):
        arguments = (results[0], images, *results[1:], weight, None, None, 1, True)
        torch.library.opcheck(torch.ops.fastdm.conv_norm_relu_pool_backward, arguments)


def test_a_frozen_network_goes_through_tiles() -> None:
    torch.manual_seed(0)
    network = build_network("ConvNetD2", channels=3, num_classes=10, image_size=8, frozen=True, dtype=torch.bfloat16)
    x = torch.randn(4, 3, 8, 8).bfloat16().contiguous(memory_format=torch.channels_last)
    images = x.clone().requires_grad_()
    features = network.embed(images)
    (gradient,) = torch.autograd.grad(features.float().square().sum(), images)
    with tiles("none"):
        again = x.clone().requires_grad_()
        expected = network.embed(again)
        (wanted,) = torch.autograd.grad(expected.float().square().sum(), again)
    # Two networks of bfloat16 differ where a tie is rounded otherwise: by a rounding or two in each of two layers.
    assert_near(features.detach(), expected.detach().double(), 4 * HALF)
    assert float(F.cosine_similarity(gradient.flatten().double(), wanted.flatten().double(), dim=0)) > 1 - 4 * HALF


def test_autocast_without_gradient_goes_through_tiles() -> None:
    torch.manual_seed(0)
    network = build_network("ConvNetD2", channels=3, num_classes=10, image_size=8)
    offsets = torch.tensor([0, 3, 4])
    x = torch.randn(4, 3, 8, 8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        features, means = network.embed(x), network.embed_mean(x.bfloat16(), offsets)
    assert features.dtype == torch.bfloat16
    blocks = [layer for layer in network.features if isinstance(layer, Block)]
    expected = x.bfloat16()
    for block in blocks:
        expected = conv_norm_relu_pool(expected, block.conv.weight.detach().bfloat16(), block.weight, block.bias)
    assert len(blocks) == 2
    assert torch.equal(features, expected.flatten(1))
    assert_near(means, torch.stack([part.double().mean(0) for part in features.split([3, 1])]), 4 * FLOAT)


def test_a_training_step_under_autocast_goes_through_tiles() -> None:
    torch.manual_seed(0)
    network = build_network("ConvNetW32", channels=3, num_classes=3, image_size=16)
    x, labels = torch.randn(12, 3, 16, 16), torch.arange(12) % 3

    def gradients(tiled: str, autocast: bool) -> dict[str, Tensor]:
        network.zero_grad()
        with tiles(tiled), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = network(x)
        F.cross_entropy(logits.float(), labels).backward()
        return {name: p.grad.double() for name, p in network.named_parameters() if p.grad is not None}

    def by_hand() -> dict[str, Tensor]:
        network.zero_grad()
        features = x.bfloat16()
        for layer in network.features:
            assert isinstance(layer, Block)
            features = conv_norm_relu_pool(features, layer.conv.weight.bfloat16(), layer.weight, layer.bias)
        with torch.autocast("cpu", torch.bfloat16):
            logits = network.classifier(features.flatten(1))
        F.cross_entropy(logits.float(), labels).backward()
        return {name: p.grad.double() for name, p in network.named_parameters() if p.grad is not None}

    found, exact = gradients("plain", True), gradients("none", False)
    assert len(found) == 3 * 3 + 2
    assert found.keys() == exact.keys()
    for name, expected in by_hand().items():
        assert torch.equal(found[name], expected), name
    # Roundings to bfloat16 move the values of a block's convolution by at most an eps of their deviation, in block k by
    # √k times that, since its input was moved too. At 0, where the normal density is 0.4, this takes 0.4 · √k · HALF of
    # the values, 0.8 of those that pass the ReLU, to its other side, each with its share of the gradient's square:
    # 0.8 · (1 + √2 + √3) < 4 in all three blocks. The other roundings move the gradient by less.
    for name, gradient in found.items():
        assert float((gradient - exact[name]).norm() / exact[name].norm()) <= (4 * HALF) ** 0.5, name


@pytest.mark.skipif(not HAS_AMX, reason="this processor has no AMX tiles, or the system does not grant them")
@pytest.mark.parametrize(("shape", "filters", "padding"), BLOCKS)
def test_amx_gives_the_bits_of_the_plain_form(shape: tuple[int, ...], filters: int, padding: int) -> None:
    x, weight = half_inputs(shape, filters)

    def results() -> list[Tensor]:
        leaves = [t.clone().requires_grad_() for t in (x, weight)]
        out = conv_norm_relu_pool(*leaves, padding=padding)
        return [out.detach(), *torch.autograd.grad(out, leaves, torch.ones_like(out))]

    plain = results()
    with tiles("amx"):
        assert all(torch.equal(*pair) for pair in zip(results(), plain, strict=True))
