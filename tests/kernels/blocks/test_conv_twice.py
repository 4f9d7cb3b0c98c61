"""The block whose convolution is computed twice and never stored, and the choice between that and storing it."""

from collections.abc import Iterator
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fastdm.kernels import conv_norm_relu_pool, use_backend
from fastdm.kernels.blocks import choice

FLOAT32_EPS = 2.0**-23
SHAPES = [
    pytest.param(2, 3, 8, 8, 16, 1, id="even"),
    pytest.param(3, 2, 9, 7, 5, 1, id="odd"),  # also a number of channels that fills no tile
    pytest.param(1, 1, 6, 6, 3, 3, id="grey"),  # with the padding that makes 32×32 of 28×28 pixels
    pytest.param(1, 3, 20, 14, 40, 0, id="several tiles"),
    pytest.param(1, 1, 36, 34, 70, 0, id="several programs"),  # for an image and for the channels
]


def inputs(
    n: int, c: int, h: int, w: int, k: int, generator: torch.Generator, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    x = 1 + torch.randn(n, c, h, w, generator=generator)
    weight = (torch.rand(k, c, 3, 3, generator=generator) - 0.5) * 2 / (9 * c) ** 0.5
    return x.to(dtype), weight.to(dtype)


def exact(x: Tensor, weight: Tensor, padding: int, eps: float = 1e-5) -> tuple[Tensor, Tensor, Tensor]:
    conv = F.conv2d(x.double(), weight.double(), padding=padding)
    pooled = F.avg_pool2d(F.relu(F.group_norm(conv, len(weight), eps=eps)), 2)
    return pooled, conv.mean((2, 3)), (conv.var((2, 3), correction=0) + eps).rsqrt()


def fused(x: Tensor, weight: Tensor, padding: int, device: torch.device, eps: float = 1e-5) -> list[Tensor]:
    """Result, mean and 1 / deviation."""
    out, conv, *statistics = torch.ops.fastdm.conv_norm_relu_pool(
        x.to(device), weight.to(device), None, None, padding, eps, False
    )
    assert len(conv) == 0
    assert out.dtype == x.dtype
    assert out.is_contiguous(memory_format=torch.channels_last)
    return [found.cpu().double() for found in (out, *statistics)]


@pytest.mark.parametrize(("n", "c", "h", "w", "k", "padding"), SHAPES)
def test_it_is_that_of_float64(
    n: int, c: int, h: int, w: int, k: int, padding: int, triton_device: torch.device, interpreted: bool
) -> None:
    """In float16, whose rounding u has the patches less the image's mean, the result, and nothing in between."""
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float16) if interpreted else (torch.float16, torch.bfloat16):
        x, weight = inputs(n, c, h, w, k, generator, dtype)
        out, mean, rstd = fused(x, weight, padding, triton_device)
        expected, expected_mean, expected_rstd = exact(x, weight, padding)
        # Sums of 9 · c + 1 products, in float32; in half precision each is of a patch that is rounded, of at most
        # |x| + 1, times weights of at most 1 / √(9 c).
        u = 0 if dtype == torch.float32 else torch.finfo(dtype).eps / 2
        largest = float(x.abs().max()) + 1
        bound = (u + 30 * FLOAT32_EPS) * largest * (9 * c) ** 0.5
        assert (mean - expected_mean).abs().max() <= bound
        assert (rstd / expected_rstd - 1).abs().max() <= 2 * bound * float(expected_rstd.max())
        scale = float(expected_rstd.max()) * (1 + 2 * float(expected.max()))
        assert (out - expected).abs().max() <= bound * scale + u * float(expected.max())


def test_rounded_pixels_leave_the_mean_where_it_is(triton_device: torch.device) -> None:
    """Each pixel less the image's mean is rounded, by u / √3 of it in the mean square; it is part of nine patches.

    Where all of a size were rounded the same way, as by a mean of finer digits, their sum would be off by u of them.
    """
    generator = torch.Generator().manual_seed(0)
    u = torch.finfo(torch.float16).eps / 2
    x, weight = inputs(4, 1, 64, 64, 16, generator, torch.float16)
    x = x - 1  # a mean that is small has many digits
    _, mean, _ = fused(x, weight, 1, triton_device)
    _, expected, _ = exact(x, weight, 1)
    one = u / 3**0.5 / 64 * weight.double().abs().flatten(1).sum(1)  # of 64² numbers, the standard deviation
    assert ((mean - expected).abs() <= 6 * one).all()


def test_a_flat_image_keeps_its_digits(triton_device: torch.device, interpreted: bool) -> None:
    """E[x²] − mean² in float32 would lose all of a variance of 1e-6 next to a mean of 100."""
    x = torch.full((1, 1, 10, 10), 100.0)
    x[:, :, ::2] += 2.0**-9 if interpreted else 1  # in float16, whose next number after 100 is 100.0625
    x = x if interpreted else x.half()
    weight = torch.full((1, 1, 3, 3), 1 / 16, dtype=x.dtype)
    out, _, _ = fused(x, weight, 0, triton_device, eps=1e-12)
    expected, _, _ = exact(x, weight, 0, eps=1e-12)
    assert (out - expected).abs().max() <= 1e-3 * expected.abs().max()


def test_repeated_runs_are_equal(triton_device: torch.device) -> None:
    x, weight = inputs(2, 3, 8, 8, 8, torch.Generator().manual_seed(0), torch.float16)
    first, second = (fused(x, weight, 1, triton_device)[0] for _ in range(2))
    assert torch.equal(first, second)


# --- the choice ------------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh() -> Iterator[None]:
    """Nothing is measured yet, everything is large enough, and time may decide."""
    with (
        mock.patch.object(choice, "_measured", {}),
        mock.patch.object(choice, "LEAST_STORED", 0),
        torch.backends.cudnn.flags(benchmark=True),
        mock.patch.object(torch.cuda, "is_current_stream_capturing", return_value=False),
    ):
        yield


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("is_faster", [False, True])
def test_time_chooses_once_for_a_shape(
    is_faster: bool, triton_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = mock.Mock(return_value=is_faster)
    monkeypatch.setattr(choice, "_is_second_faster", measured)
    x, weight = (t.to(triton_device) for t in inputs(2, 3, 8, 8, 8, torch.Generator().manual_seed(0), torch.float16))
    stored = mock.Mock(wraps=torch.conv2d)
    monkeypatch.setattr(torch, "conv2d", stored)
    first, second = (conv_norm_relu_pool(x, weight) for _ in range(2))
    assert torch.equal(first, second)
    assert measured.call_count == 1
    assert stored.call_count == (0 if is_faster else 2)
    conv_norm_relu_pool(x[:1], weight)
    assert measured.call_count == 2
    # A gradient to the images has a choice of its own, and one to the weight needs the convolution.
    conv_norm_relu_pool(x.requires_grad_(), weight)
    with torch.no_grad():
        conv_norm_relu_pool(x, weight)
    assert measured.call_count == 3
    stored.reset_mock()
    conv_norm_relu_pool(x, weight.requires_grad_())
    assert stored.call_count == 1
    assert measured.call_count == 3


@pytest.mark.usefixtures("fresh")
def test_the_gradient_to_the_images_is_that_of_the_stored_block(
    triton_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight = (t.to(triton_device) for t in inputs(2, 3, 9, 8, 8, torch.Generator().manual_seed(0), torch.float16))
    gradients = []
    for is_faster in (False, True):
        monkeypatch.setattr(choice, "_is_second_faster", mock.Mock(return_value=is_faster))
        monkeypatch.setattr(choice, "_measured", {})
        images = x.clone().requires_grad_()
        with use_backend("auto"):
            out = conv_norm_relu_pool(images, weight)
        # With the backend of the forward pass, in whatever thread and block the gradient is asked for.
        with use_backend("reference"):
            gradients += torch.autograd.grad(out, images, out.detach())
        assert type(out.grad_fn).__name__.startswith("_RecomputedBlock" if is_faster else "_NormReluPool")
    stored, again = (gradient.double() for gradient in gradients)
    # The stored form also rounds the convolution and its gradient, which changes no sign here.
    assert (again - stored).abs().max() <= 2.0**-8 * stored.abs().max()
    with pytest.raises(NotImplementedError, match="conv_norm_relu_pool has no second derivative"):
        torch.autograd.grad(conv_norm_relu_pool(images, weight).sum(), images, create_graph=True)


@pytest.mark.usefixtures("fresh")
def test_it_is_stored_for_a_reason(triton_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = (t.to(triton_device) for t in inputs(2, 3, 8, 8, 8, torch.Generator().manual_seed(0), torch.float16))
    assert choice.reason_to_store(x, weight) == ""
    assert "float32" in choice.reason_to_store(x.float(), weight.float())
    assert "too many" in choice.reason_to_store(x.repeat(1, 2, 1, 1), weight.repeat(1, 2, 1, 1))
    with use_backend("reference"):
        assert "no kernel" in choice.reason_to_store(x, weight)
    with torch.backends.cudnn.flags(benchmark=False):
        assert choice.reason_to_store(x, weight) == "time must not decide"
    with FakeTensorMode():
        assert "recorded" in choice.reason_to_store(x, weight)
    monkeypatch.setattr(choice, "LEAST_STORED", 2 * 8 * 8 * 8 * 4)
    assert "small" in choice.reason_to_store(x, weight)
    assert choice.reason_to_store(x.requires_grad_(), weight) == ""  # storing it would move more with a gradient


@pytest.mark.usefixtures("fresh")
def test_nothing_is_timed_within_a_capture(triton_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    x, weight = (t.to(triton_device) for t in inputs(2, 3, 8, 8, 8, torch.Generator().manual_seed(0), torch.float16))
    assert not choice.computes_twice(x, weight, 1, ())
    assert choice._measured == {}


def test_a_cpu_stores_it() -> None:
    x, weight = inputs(1, 3, 8, 8, 8, torch.Generator().manual_seed(0), torch.bfloat16)
    assert choice.reason_to_store(x, weight) == "there is no kernel for it here"
