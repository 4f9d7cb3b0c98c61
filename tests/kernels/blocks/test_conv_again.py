"""The gradient to the images of a block whose convolution is computed again instead of kept."""

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastdm.kernels import use_backend

FLOAT32 = 2.0**-24
SHAPES = [
    pytest.param(2, 3, 8, 8, 16, 1, id="even"),
    pytest.param(3, 2, 9, 7, 5, 1, id="odd"),  # also a number of channels that fills no tile
    pytest.param(2, 1, 6, 6, 3, 3, id="grey"),  # with the padding that makes 32×32 of 28×28 pixels
    pytest.param(1, 3, 20, 15, 40, 0, id="several tiles"),
    pytest.param(1, 1, 36, 34, 33, 1, id="several tiles in a program"),
]


class Inputs(NamedTuple):
    x: Tensor
    weight: Tensor
    grad: Tensor
    padding: int


def inputs(
    n: int, c: int, h: int, w: int, k: int, padding: int, dtype: torch.dtype, device: torch.device, mean: float = 1
) -> Inputs:
    """Images, weights and the gradient to the pooled result."""
    generator = torch.Generator().manual_seed(0)
    x = mean + torch.randn(n, c, h, w, generator=generator)
    weight = (torch.rand(k, c, 3, 3, generator=generator) - 0.5) * 2 / (9 * c) ** 0.5
    grad = torch.randn(n, k, (h + 2 * padding - 2) // 2, (w + 2 * padding - 2) // 2, generator=generator)
    return Inputs(*(t.to(device, dtype) for t in (x, weight, grad)), padding)


def statistics(given: Inputs) -> tuple[Tensor, Tensor]:
    """Mean and 1 / deviation of the convolution, in float64."""
    conv = F.conv2d(given.x.double(), given.weight.double(), padding=given.padding)
    return conv.mean((2, 3)), (conv.var((2, 3), correction=0) + 1e-5).rsqrt()


def exact(given: Inputs) -> Tensor:
    """The gradient in float64, by PyTorch's derivatives."""
    x = given.x.double().requires_grad_()
    conv = F.conv2d(x, given.weight.double(), padding=given.padding)
    pooled = F.avg_pool2d(F.relu(F.group_norm(conv, len(given.weight), eps=1e-5)), 2)
    return torch.autograd.grad(pooled, x, given.grad.double())[0]


def found(given: Inputs) -> Tensor:
    mean, rstd = (each.float() for each in statistics(given))
    op = torch.ops.fastdm.conv_norm_relu_pool_backward_x
    gradient: Tensor = op(given.grad, given.x, mean, rstd, given.weight, given.padding)
    assert gradient.dtype == given.x.dtype
    assert gradient.is_contiguous(memory_format=torch.channels_last)
    return gradient.double()


def bound(given: Inputs) -> Tensor:
    """What rounding may make of each pixel's gradient.

    Products of weight and deviation are rounded to half precision, and so is the result, both by u; the coefficients of
    the patches are two such numbers each, which leaves u² of them, twice. All else is sums in float32, of as many terms
    as there are in a tile, whose error is that of their absolute values.
    """
    x, weight, grad = (t.double().abs() for t in given[:3])
    mean, rstd = (each[:, :, None, None] for each in statistics(given))
    conv = F.conv2d(given.x.double(), given.weight.double(), padding=given.padding)
    height, width = conv.shape[2:]
    spread = F.interpolate(grad, scale_factor=2) / 4
    spread = F.pad(spread, (0, width - spread.shape[3], 0, height - spread.shape[2])) * (conv > mean)
    largest = F.conv2d(x, weight, padding=given.padding) + mean.abs()
    a = (spread * largest * rstd).mean((2, 3), keepdim=True)
    b = spread.mean((2, 3), keepdim=True)
    direct, around = (
        F.conv_transpose2d(rstd * part, weight, padding=given.padding) for part in (spread, b + a * rstd * largest)
    )
    u = 0.0 if given.x.dtype == torch.float32 else torch.finfo(given.x.dtype).eps / 2
    return u * (direct + exact(given).abs()) + (2 * u**2 + 64 * FLOAT32) * (direct + around)


def dtypes(interpreted: bool) -> tuple[torch.dtype, torch.dtype]:
    """Those of the public function and, interpreted, float32, which shows all but the rounding to half precision."""
    return (torch.float32, torch.float16) if interpreted else (torch.float16, torch.bfloat16)


@pytest.mark.parametrize(("n", "c", "h", "w", "k", "padding"), SHAPES)
def test_it_is_that_of_float64(
    n: int, c: int, h: int, w: int, k: int, padding: int, triton_device: torch.device, interpreted: bool
) -> None:
    for dtype in dtypes(interpreted):
        given = inputs(n, c, h, w, k, padding, dtype, triton_device)
        assert ((found(given) - exact(given)).abs() <= bound(given)).all()


def test_images_far_from_zero_keep_their_digits(triton_device: torch.device) -> None:
    """The terms of the image's mean, 30 deviations from 0, cancel."""
    given = inputs(2, 3, 8, 8, 16, 0, torch.float16, triton_device, mean=30)
    error = (found(given) - exact(given)).abs()
    assert (error <= bound(given)).all()
    assert error.max() <= 2.0**-9 * exact(given).abs().max()


def test_a_small_gradient_keeps_its_digits(triton_device: torch.device) -> None:
    """The coefficients, about 1e-7 times those above, would be 0 or of one digit in float16."""
    given = inputs(2, 3, 8, 8, 16, 1, torch.float16, triton_device)
    x, weight, grad, padding = given
    small = Inputs(x * 64, weight, (grad * 2.0**-9).to(grad.dtype), padding)
    expected = exact(small)
    assert (found(small) - expected).abs().max() <= 2.0**-9 * expected.abs().max() + 2.0**-25


def test_no_gradient_gives_none(triton_device: torch.device) -> None:
    given = inputs(2, 3, 8, 8, 16, 1, torch.float16, triton_device)
    assert not found(given._replace(grad=torch.zeros_like(given.grad))).any()
    none = torch.empty(0, 16, device=triton_device)
    op = torch.ops.fastdm.conv_norm_relu_pool_backward_x
    assert op(given.grad[:0], given.x[:0], none, none, given.weight, 1).shape == (0, 3, 8, 8)


def test_memory_formats_and_runs_are_equal(triton_device: torch.device) -> None:
    given = inputs(2, 3, 8, 8, 16, 1, torch.float16, triton_device)
    last = (t.contiguous(memory_format=torch.channels_last) for t in given[:3])
    expected = found(given)
    assert torch.equal(found(given), expected)
    assert torch.equal(found(Inputs(*last, given.padding)), expected)


def test_plain_pytorch_is_that_of_float64() -> None:
    for shape in ((2, 3, 8, 8, 16, 1), (3, 2, 9, 7, 5, 0)):
        given = inputs(*shape, torch.float64, torch.device("cpu"))
        gradient = torch.ops.fastdm.conv_norm_relu_pool_backward_x(
            given.grad, given.x, *statistics(given), given.weight, given.padding
        )
        torch.testing.assert_close(gradient, exact(given), rtol=1e-12, atol=1e-12)


def test_it_is_an_op() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        given = inputs(2, 3, 9, 8, 4, 1, dtype, torch.device("cpu"))
        mean, rstd = (each.float() for each in statistics(given))
        arguments = (given.grad, given.x, mean, rstd, given.weight, given.padding)
        torch.library.opcheck(torch.ops.fastdm.conv_norm_relu_pool_backward_x, arguments)
        with use_backend("reference"):
            torch.library.opcheck(torch.ops.fastdm.conv_norm_relu_pool_backward_x, arguments)
