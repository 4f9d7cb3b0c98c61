"""Norm, ReLU and pooling in C++ against float64; the lanes of the Makefile repeat it with fewer instructions."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fastdm.kernels import extension, norm_relu_pool, norm_relu_pool_mean
from fastdm.kernels.blocks import reference

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


def test_the_extension_refuses_wrong_buffers() -> None:
    x, out, statistics = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 2, 2), torch.zeros(2, 3)
    with pytest.raises(ValueError, match="should have"):
        extension.load().norm_relu_pool(x, None, None, 1e-5, False, out[:1], statistics, statistics)
    with pytest.raises(TypeError, match="same type"):
        extension.load().norm_relu_pool(x, None, None, 1e-5, False, out.bfloat16(), statistics, statistics)
    with pytest.raises(TypeError, match="float32 or bfloat16"):
        extension.load().norm_relu_pool(x.double(), None, None, 1e-5, False, out.double(), statistics, statistics)
