"""Convolution, norm, ReLU and pooling in one op, in C++, against float64; the Makefile's lanes repeat it with fewer
instructions."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastdm.kernels import conv_norm_relu_pool, extension, norm_relu_pool, use_backend
from fastdm.kernels.blocks import native, reference
from tests.kernels.blocks.test_native import FLOAT, assert_near, double

pytestmark = pytest.mark.skipif(extension.load() is None, reason="fastdm was installed without extension")

# Images [N, C, H, W], filters and padding: the direct way (up to 7 channels), Winograd's with whole tiles, with tiles
# that overlap the edge, with several images in a round of tiles, and with rounds that end within an image.
BLOCKS = [
    pytest.param((3, 3, 12, 12), 64, 1, id="first layer"),
    pytest.param((2, 1, 9, 13), 32, 3, id="one channel, wide padding, odd sides"),
    pytest.param((2, 7, 6, 5), 96, 1, id="most channels of the direct way"),
    pytest.param((3, 32, 16, 16), 64, 1, id="whole tiles"),
    pytest.param((11, 64, 8, 8), 32, 1, id="several images a round"),
    pytest.param((2, 32, 7, 30), 96, 1, id="cut tiles"),
    pytest.param((1, 32, 27, 26), 32, 0, id="no padding, two rounds"),
    pytest.param((2, 32, 5, 6), 32, 2, id="wide padding"),
]


def block_inputs(shape: tuple[int, ...], filters: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    bound = 1 / math.sqrt(9 * shape[1])
    return x, torch.empty(filters, shape[1], 3, 3).uniform_(-bound, bound, generator=generator)


def root_mean_square(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def winograd_amplification() -> float:
    """How much larger the rounding errors of F(4×4, 3×3) are than those of the plain sum, by random-error analysis.

    An output is Aᵀ[(G g Gᵀ) ⊙ (Bᵀ d B)]A. With random inputs of unit variance, coordinate f of one dimension has the
    variance |Bᵀ_f|² |G_f|²; a relative rounding error of it reaches output i with the factor Aᵀ_if. The plain sum of
    the three taps has the variance 3. Both dimensions multiply. A gradient to the weights, of which each tile adds a
    sum of four to each of the three, exchanges G and A: the mean stays the same.
    """
    b = [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0]]
    b += [[0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]]
    g = [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6]]
    g += [[1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]]
    a = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
    coordinate = torch.tensor(b).square().sum(1) * torch.tensor(g).square().sum(1)
    output = torch.tensor(a).square().float() @ coordinate
    return float(output.mean() / 3)  # the root of the square over two dimensions


def test_the_amplification_of_winograd_is_moderate() -> None:
    assert winograd_amplification() == pytest.approx(10.8, abs=0.1)


@pytest.mark.parametrize(("shape", "filters", "padding"), BLOCKS)
def test_the_convolution_of_a_block(shape: tuple[int, ...], filters: int, padding: int) -> None:
    x, weight = block_inputs(shape, filters)
    _, conv, _, _ = native.conv_norm_relu_pool(x, weight, None, None, padding, 1e-5, True)
    exact = F.conv2d(x.double(), weight.double(), padding=padding)
    direct_error = root_mean_square(F.conv2d(x, weight, padding=padding) - exact)
    # The direct way adds the same numbers in another order: twice the error leaves room for that.
    allowed = direct_error * (2 if shape[1] <= 7 else winograd_amplification())
    assert root_mean_square(conv - exact) <= allowed


@pytest.mark.parametrize(("shape", "filters", "padding"), BLOCKS)
def test_a_block_and_its_gradient(shape: tuple[int, ...], filters: int, padding: int) -> None:
    x, weight = block_inputs(shape, filters)
    expected_conv = F.conv2d(x.double(), weight.double(), padding=padding)
    expected = reference.norm_relu_pool(expected_conv, None, None, 1e-5, "relu", "avg")[0]
    # Errors of the convolution (the test above; the largest of 10⁵ is five times the mean), and those of the norm.
    sums = math.sqrt(9 * max(shape[1], filters))
    tolerance = (5 * winograd_amplification() * sums / 4 + 16) * FLOAT
    out = conv_norm_relu_pool(x, weight, padding=padding)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert_near(out, expected, tolerance)

    x.requires_grad_()
    with_gradient = conv_norm_relu_pool(x, weight, padding=padding)
    assert torch.equal(with_gradient, out)
    grad = torch.linspace(-1, 2, out.numel()).view(out.shape)
    (actual,) = torch.autograd.grad(with_gradient, x, grad)
    # The ReLU's mask of what was computed: rounding decides about values near 0, and one such value weighs more than
    # all rounding.
    _, conv, mean, rstd = native.conv_norm_relu_pool(x, weight, None, None, padding, 1e-5, True)
    grad_conv, _, _ = reference.norm_relu_pool_backward(*double(grad, conv, mean, rstd), None, None, "relu", "avg")
    exact = F.conv_transpose2d(grad_conv, weight.double(), padding=padding)
    assert_near(actual, exact, tolerance)


@pytest.mark.parametrize("affine", [False, True], ids=["normalised", "affine"])
@pytest.mark.parametrize(("shape", "filters", "padding"), BLOCKS)
def test_the_gradients_of_a_trained_block(shape: tuple[int, ...], filters: int, padding: int, affine: bool) -> None:
    x, weight = block_inputs(shape, filters)
    generator = torch.Generator().manual_seed(1)
    scale, shift = torch.randn(2, filters, generator=generator).unbind() if affine else (None, None)
    leaves = [t.requires_grad_() for t in (weight, x, scale, shift) if t is not None]
    out = conv_norm_relu_pool(x, weight, scale, shift, padding=padding)
    grad = torch.randn(out.shape, generator=generator)
    gradients = torch.autograd.grad(out, leaves, grad)

    # From the results of the forward pass that it had: see above.
    plain = [t if t is None else t.detach() for t in (scale, shift)]
    kept = native.conv_norm_relu_pool(x.detach(), weight.detach(), *plain, padding, 1e-5, True)
    assert torch.equal(kept[0], out)
    expected_conv = F.conv2d(x.detach().double(), weight.detach().double(), padding=padding)
    expected = reference.norm_relu_pool(expected_conv, *double(*plain), 1e-5, "relu", "avg")[0]
    norm = (math.sqrt(9 * max(shape[1], filters)) / 4 * 5 * winograd_amplification() + 16) * FLOAT
    assert_near(out.detach(), expected, norm)
    exact = reference.conv_norm_relu_pool_backward(
        *double(grad, x.detach(), *kept[1:], weight.detach(), *plain), padding, True
    )
    # Each weight's gradient sums over the pixels of all images; the scale's and shift's, plainly.
    pixels = kept[1].numel() // filters
    weights = (math.sqrt(pixels) / 4 * 5 * winograd_amplification() + 16) * FLOAT
    plainly = (math.sqrt(pixels) + 16) * FLOAT
    expected_gradients = [exact[1], exact[0], *exact[2:]]
    for actual, wanted, allowed in zip(gradients, expected_gradients, [weights, norm, plainly, plainly], strict=False):
        assert_near(actual, wanted, allowed)


def test_only_the_gradients_that_are_needed_are_computed() -> None:
    x, weight = block_inputs((2, 32, 8, 8), 32)
    scale, shift = torch.ones(32), torch.zeros(32)
    _, *kept = native.conv_norm_relu_pool(x, weight, scale, shift, 1, 1e-5, True)
    grad = torch.ones(2, 32, 4, 4)
    everything = native.conv_norm_relu_pool_backward(grad, x, *kept, weight, scale, shift, 1, True)
    assert [len(t) for t in everything] == [2, 32, 32, 32]
    to_weight = native.conv_norm_relu_pool_backward(grad, x, *kept, weight, None, shift, 1, False)
    assert [len(t) for t in to_weight] == [0, 32, 0, 32]
    assert torch.equal(to_weight[1], everything[1])
    to_x = native.conv_norm_relu_pool_backward(grad, None, *kept, weight, scale, None, 1, True)
    assert [len(t) for t in to_x] == [2, 0, 32, 0]
    assert torch.equal(to_x[0], everything[0])


@pytest.mark.parametrize(
    "memory_format", [torch.contiguous_format, torch.channels_last], ids=["planar", "channels-last"]
)
def test_the_gradient_to_the_weights_has_their_memory_format(memory_format: torch.memory_format) -> None:
    x, weight = block_inputs((2, 32, 8, 8), 32)
    weight = weight.contiguous(memory_format=memory_format).requires_grad_()
    conv_norm_relu_pool(x, weight).sum().backward()
    assert weight.grad is not None
    assert weight.grad.stride() == weight.stride()


def test_a_block_is_what_its_parts_are() -> None:
    """Channels that the extension does not take, and other types."""
    generator = torch.Generator().manual_seed(0)
    for channels, filters, dtype in ((16, 64, torch.float32), (3, 48, torch.float32), (3, 32, torch.float64)):
        x = torch.randn(2, channels, 6, 6, generator=generator, dtype=dtype)
        weight = torch.randn(filters, channels, 3, 3, generator=generator, dtype=dtype)
        assert torch.equal(conv_norm_relu_pool(x, weight), norm_relu_pool(F.conv2d(x, weight, padding=1)))


def test_a_block_does_not_depend_on_the_batch() -> None:
    x, weight = block_inputs((13, 32, 8, 8), 32)
    together = conv_norm_relu_pool(x, weight)
    assert torch.equal(together, torch.cat([conv_norm_relu_pool(part, weight) for part in x.split(3)]))


@pytest.mark.parametrize(
    ("x", "weight", "padding", "message"),
    [
        ((2, 3, 8, 8), (32, 4, 3, 3), 1, r"must be \[K, 3, 3, 3\]"),
        ((2, 3, 8, 8), (32, 3, 5, 5), 1, r"must be \[K, 3, 3, 3\]"),
        ((2, 3, 1, 8), (32, 3, 3, 3), 1, "too small"),
        ((2, 3, 8, 8), (32, 3, 3, 3), -1, "too small"),
    ],
)
def test_a_block_refuses(x: tuple[int, ...], weight: tuple[int, ...], padding: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        conv_norm_relu_pool(torch.zeros(x), torch.zeros(weight), padding=padding)


def test_compiles_without_a_graph_break() -> None:
    x, weight = block_inputs((2, 3, 8, 8), 32)

    def loss(x: Tensor, weight: Tensor) -> Tensor:
        return conv_norm_relu_pool(x * 2, weight).square().sum()

    found = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        leaves = [t.clone().requires_grad_() for t in (x, weight)]
        found.append(torch.autograd.grad(function(*leaves), leaves))
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("affine", [False, True], ids=["normalised", "affine"])
def test_the_block_as_an_op(affine: bool) -> None:
    x, weight = block_inputs((2, 32, 8, 8), 32)
    x = x.contiguous(memory_format=torch.channels_last)
    scale, shift = (torch.linspace(0.5, 2, 32), torch.linspace(-1, 1, 32)) if affine else (None, None)
    for keep in (False, True):
        torch.library.opcheck(torch.ops.fastdm.conv_norm_relu_pool, (x, weight, scale, shift, 1, 1e-5, keep))
    results = torch.ops.fastdm.conv_norm_relu_pool(x, weight, scale, shift, 1, 1e-5, True)
    backward = torch.ops.fastdm.conv_norm_relu_pool_backward
    forms = [
        (results[0], images, *results[1:], weight, scale, shift, 1, to_x)
        for images in (x, None)
        for to_x in (False, True)
    ]
    for arguments in forms:
        torch.library.opcheck(backward, arguments)
    with use_backend("reference"):
        expected = torch.ops.fastdm.conv_norm_relu_pool(x, weight, scale, shift, 1, 1e-5, True)
        expected_gradients = [backward(*arguments) for arguments in forms]
    found = [results, *(backward(*arguments) for arguments in forms)]
    for some, plain_ones in zip(found, [expected, *expected_gradients], strict=True):
        for actual, plain in zip(some, plain_ones, strict=True):
            assert actual.stride() == plain.stride()
            if plain.numel():
                assert_near(actual, plain.double(), 100 * FLOAT)
