"""The blocks of a network in C++ against float64; the lanes of the Makefile repeat it with fewer instructions."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastdm.kernels import conv_norm_relu_pool, extension, norm_relu_pool, norm_relu_pool_mean, use_backend
from fastdm.kernels.blocks import native, reference

pytestmark = pytest.mark.skipif(extension.load() is None, reason="fastdm was installed without extension")

FLOAT = torch.finfo(torch.float32).eps
HALF = torch.finfo(torch.bfloat16).eps

SHAPES = [
    pytest.param((3, 37, 7, 9), id="odd sides, channels that fill no vector"),
    pytest.param((2, 80, 8, 6), id="several vectors of channels"),
    pytest.param((5, 3, 2, 33), id="one row of outputs"),
]
FORMATS = [
    pytest.param(torch.contiguous_format, id="planar"),
    pytest.param(torch.channels_last, id="channels-last"),
]
DTYPES = [pytest.param(torch.float32, id="float32"), pytest.param(torch.bfloat16, id="bfloat16")]


def inputs(
    shape: tuple[int, ...], memory_format: torch.memory_format, dtype: torch.dtype, affine: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Draw until all normalised values keep clear of 0, where rounding would decide about the ReLU's gradient."""
    generator = torch.Generator().manual_seed(1)
    weight, bias = (torch.randn(2, shape[1], generator=generator) * 0.5 + 1).unbind() if affine else (None, None)
    while True:
        x = (torch.randn(shape, generator=generator) * 2 + 3).to(dtype)
        # Swish is zero only at 0, and half of what is near it.
        z = reference.norm_relu_pool(*double(x, weight, bias), 1e-12, "swish", "none")[0]
        if z.abs().min() > 1e-5:
            return x.contiguous(memory_format=memory_format), weight, bias


def double(*tensors: Tensor | None) -> list[Any]:
    return [None if t is None else t.double() for t in tensors]


def assert_near(actual: Tensor, expected: Tensor, relative: float) -> None:
    """Within `relative` of the largest expected value: rounding errors follow the numbers that were added."""
    error = (actual.double() - expected).abs().max() / expected.abs().max()
    assert error <= relative, f"{error:.2e} of the largest value; {relative:.2e} allowed"


@pytest.mark.parametrize("affine", [False, True], ids=["normalised", "affine"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_norm_relu_pool_and_its_gradients(
    shape: tuple[int, ...], memory_format: torch.memory_format, dtype: torch.dtype, affine: bool
) -> None:
    x, weight, bias = inputs(shape, memory_format, dtype, affine)
    leaves = [t.requires_grad_() for t in (x, weight, bias) if t is not None]
    out = norm_relu_pool(x, weight, bias)
    grad = torch.linspace(-1, 2, out.numel()).view(out.shape).to(dtype)
    gradients = torch.autograd.grad(out, leaves, grad)

    expected, mean, rstd = reference.norm_relu_pool(*double(x, weight, bias), 1e-5, "relu", "avg")
    expected_gradients = reference.norm_relu_pool_backward(
        grad.double(), x.double(), mean, rstd, *double(weight, bias), "relu", "avg"
    )
    # At most 63 values are summed, each with a few roundings; a bfloat16 result is rounded once more, by half an eps.
    tolerance = 16 * FLOAT + (HALF / 2 if dtype == torch.bfloat16 else 0)
    assert out.dtype == dtype
    assert out.is_contiguous(memory_format=memory_format)
    assert_near(out, expected, tolerance)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=False):
        assert_near(gradient, expected_gradient, tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("memory_format", FORMATS)
def test_norm_relu_pool_mean_with_an_empty_class(memory_format: torch.memory_format, dtype: torch.dtype) -> None:
    x, weight, bias = inputs((7, 70, 5, 6), memory_format, dtype, affine=True)
    offsets = torch.tensor([0, 3, 3, 4, 7])
    expected = reference.norm_relu_pool_mean(x.double(), offsets, *double(weight, bias), 1e-5, "relu", "avg")
    actual = norm_relu_pool_mean(x, offsets, weight, bias)
    assert actual.dtype == torch.float32
    assert actual[1].eq(0).all()
    assert_near(actual, expected, 16 * FLOAT)


def test_the_variance_of_a_nearly_flat_image() -> None:
    """One pass (E[x²] − mean²) would lose every digit here."""
    x = 1000 + torch.rand(2, 16, 8, 8, generator=torch.Generator().manual_seed(0)) / 16
    for memory_format in (torch.contiguous_format, torch.channels_last):
        out = norm_relu_pool(x.contiguous(memory_format=memory_format))
        expected = reference.norm_relu_pool(x.double(), None, None, 1e-5, "relu", "avg")[0]
        # The mean, near 1000, is known to eps · 1000 at best; a deviation is 1 / 16 / √12.
        assert_near(out, expected, 4 * FLOAT * 1000 * 16 * 12**0.5)


def test_what_is_no_number_stays_none() -> None:
    x = torch.zeros(1, 20, 4, 4).contiguous(memory_format=torch.channels_last)
    x[0, 1, 2, 2] = torch.nan
    assert norm_relu_pool(x).isnan().any((2, 3)).tolist() == [[c == 1 for c in range(20)]]
    assert norm_relu_pool(x.bfloat16()).isnan().any((2, 3)).tolist() == [[c == 1 for c in range(20)]]


@pytest.mark.parametrize("activation", ["swish", "relu"])
def test_other_forms_are_left_to_pytorch(activation: str) -> None:
    x = torch.randn(2, 4, 6, 6)
    out = norm_relu_pool(x, activation=activation, pool="max")
    assert torch.equal(out, reference.norm_relu_pool(x, None, None, 1e-5, activation, "max")[0])


def test_an_empty_batch() -> None:
    assert norm_relu_pool(torch.empty(0, 16, 8, 8)).shape == (0, 16, 4, 4)


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
    the three taps has the variance 3. Both dimensions multiply.
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
    _, conv, _, _ = native.conv_norm_relu_pool(x, weight, padding, 1e-5, True)
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
    _, conv, mean, rstd = native.conv_norm_relu_pool(x, weight, padding, 1e-5, True)
    grad_conv, _, _ = reference.norm_relu_pool_backward(*double(grad, conv, mean, rstd), None, None, "relu", "avg")
    exact = F.conv_transpose2d(grad_conv, weight.double(), padding=padding)
    assert_near(actual, exact, tolerance)


def test_a_block_is_what_its_parts_are() -> None:
    """Channels that the extension does not take, other types, and weights with a gradient."""
    generator = torch.Generator().manual_seed(0)
    for channels, filters, dtype in ((16, 64, torch.float32), (3, 48, torch.float32), (3, 32, torch.float64)):
        x = torch.randn(2, channels, 6, 6, generator=generator, dtype=dtype)
        weight = torch.randn(filters, channels, 3, 3, generator=generator, dtype=dtype)
        assert torch.equal(conv_norm_relu_pool(x, weight), norm_relu_pool(F.conv2d(x, weight, padding=1)))
    x, weight = torch.randn(2, 3, 6, 6), torch.randn(32, 3, 3, 3, requires_grad=True)
    gradients = [
        torch.autograd.grad(out.sum(), weight)[0]
        for out in (conv_norm_relu_pool(x, weight), norm_relu_pool(F.conv2d(x, weight, padding=1)))
    ]
    assert torch.equal(*gradients)


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


def test_the_block_as_an_op() -> None:
    x, weight = block_inputs((2, 32, 8, 8), 32)
    x = x.contiguous(memory_format=torch.channels_last)
    for keep in (False, True):
        torch.library.opcheck(torch.ops.fastdm.conv_norm_relu_pool, (x, weight, 1, 1e-5, keep))
    out, conv, mean, rstd = torch.ops.fastdm.conv_norm_relu_pool(x, weight, 1, 1e-5, True)
    torch.library.opcheck(torch.ops.fastdm.conv_norm_relu_pool_backward, (out, conv, mean, rstd, weight, 1))
    with use_backend("reference"):
        expected = torch.ops.fastdm.conv_norm_relu_pool(x, weight, 1, 1e-5, True)
        expected_gradient = torch.ops.fastdm.conv_norm_relu_pool_backward(out, conv, mean, rstd, weight, 1)
    for actual, plain in zip((out, conv, mean, rstd), expected, strict=True):
        assert actual.stride() == plain.stride()
        assert_near(actual, plain.double(), 100 * FLOAT)
    gradient = torch.ops.fastdm.conv_norm_relu_pool_backward(out, conv, mean, rstd, weight, 1)
    assert gradient.stride() == expected_gradient.stride()
    assert_near(gradient, expected_gradient.double(), 100 * FLOAT)


def test_the_extension_refuses_wrong_buffers() -> None:
    x, out, statistics = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 2, 2), torch.zeros(2, 3)
    with pytest.raises(ValueError, match="should have"):
        extension.load().norm_relu_pool(x, None, None, 1e-5, False, out[:1], statistics, statistics)
    with pytest.raises(TypeError, match="same type"):
        extension.load().norm_relu_pool(x, None, None, 1e-5, False, out.bfloat16(), statistics, statistics)
    with pytest.raises(TypeError, match="float32 or bfloat16"):
        extension.load().norm_relu_pool(x.double(), None, None, 1e-5, False, out.double(), statistics, statistics)
