"""Norm, activation and pooling against PyTorch's own layers in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastdm.kernels import norm_relu_pool, norm_relu_pool_mean, use_backend
from fastdm.kernels.dispatch import Backend

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leakyrelu": F.leaky_relu,
    "swish": F.silu,
    "sigmoid": torch.sigmoid,
}
POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "avg": lambda x: F.avg_pool2d(x, 2),
    "max": lambda x: F.max_pool2d(x, 2),
    "none": lambda x: x,
}
FLOAT32_EPS = 2.0**-23
# One unit in the last place: the interpreter truncates to bfloat16.
ULP = {torch.float32: 0.0, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}


def exact(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    activation: str = "relu",
    pool: str = "avg",
    eps: float = 1e-5,
) -> Tensor:
    return POOLS[pool](ACTIVATIONS[activation](F.group_norm(x, x.shape[1], weight, bias, eps)))


def tolerance(x: Tensor, weight: Tensor | None = None) -> float:
    """The bound of a float32 result of order 1: two sums of hw terms, whose errors grow like √hw, and a few operations.

    A normalised value is up to √hw, a weight multiplies it.
    """
    pixels = x.shape[2] * x.shape[3]
    return (8 + 2 * pixels**0.5) * FLOAT32_EPS * 4 * (1 if weight is None else float(weight.abs().max()) + 1)


def arranged(x: Tensor, last: bool) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if last else x


@pytest.fixture(params=[False, True], ids=["nchw", "nhwc"])
def last(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.mark.parametrize("affine", [False, True], ids=["plain", "affine"])
@pytest.mark.parametrize(
    ("activation", "pool"),
    [("relu", "avg"), ("relu", "max"), ("relu", "none"), ("leakyrelu", "avg"), ("swish", "max"), ("sigmoid", "none")],
)
@pytest.mark.parametrize(
    ("n", "c", "h", "w"),
    [
        pytest.param(2, 4, 8, 8, id="even"),
        pytest.param(3, 5, 9, 7, id="odd"),  # also a number of channels that fills no tile
    ],
)
def test_forward_and_gradients_are_those_of_float64(
    n: int,
    c: int,
    h: int,
    w: int,
    activation: str,
    pool: str,
    affine: bool,
    last: bool,
    device: torch.device,
    generator: torch.Generator,
) -> None:
    x = arranged(torch.randn(n, c, h, w, generator=generator), last)
    parameters = [torch.randn(c, generator=generator) for _ in range(2)] if affine else []
    wide = [t.double().requires_grad_() for t in (x, *parameters)]
    expected = exact(*wide, activation=activation, pool=pool)
    grad = torch.randn(expected.shape, generator=generator)
    expected_grads = torch.autograd.grad(expected, wide, grad.double())

    ours = [t.to(device, copy=True).requires_grad_() for t in (x, *parameters)]
    out = norm_relu_pool(*ours, activation=activation, pool=pool)
    grads = torch.autograd.grad(out, ours, grad.to(device))
    bound = tolerance(x, parameters[0] if affine else None)
    assert (out.cpu() - expected).detach().abs().max() <= bound
    # The gradient of x is one more pair of such sums; those of weight and bias add n · hw terms.
    for ours_grad, expected_grad, terms in zip(grads, expected_grads, (1, n * h * w, n * h * w), strict=False):
        assert (ours_grad.cpu() - expected_grad).abs().max() <= 2 * bound * terms**0.5 * float(grad.abs().max())
    if not affine:
        offsets = torch.tensor([0, 1, 1, n])
        means = norm_relu_pool_mean(ours[0], offsets.to(device), activation=activation, pool=pool)
        rows = expected.detach().flatten(1)
        expected_means = torch.stack([rows[0], torch.zeros_like(rows[0]), rows[1:].mean(0)])
        assert means.dtype == torch.float32
        assert (means.cpu() - expected_means).abs().max() <= bound


def test_an_image_of_several_tiles(
    last: bool, device: torch.device, interpreted: bool, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = (2, 3, 258, 130)
    if device.type == "cpu":
        shape = (2, 3, 18, 10)
    if interpreted:
        monkeypatch.setattr(
            "fastdm.kernels.blocks.triton_tiles.ROOM", 32
        )  # Divided as compiled kernels divide a large image.
    x = arranged(torch.randn(shape, generator=generator), last)
    wide = x.double().requires_grad_()
    expected = exact(wide)
    grad = torch.randn(expected.shape, generator=generator)
    expected.backward(grad.double())
    leaf = x.to(device, copy=True).requires_grad_()
    out = norm_relu_pool(leaf)
    out.backward(grad.to(device))
    assert (out.cpu() - expected).detach().abs().max() <= tolerance(x)
    assert (leaf.grad.cpu() - wide.grad).abs().max() <= 2 * tolerance(x) * float(grad.abs().max())
    means = norm_relu_pool_mean(leaf, torch.tensor([0, 2], device=device)).cpu()
    assert (means - expected.detach().flatten(1).mean(0)).abs().max() <= tolerance(x)
    again = norm_relu_pool_mean(leaf, torch.tensor([0, 2], device=device)).cpu()
    assert torch.equal(means, again)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_flat_channel_keeps_its_digits(backend: Backend, last: bool, device: torch.device) -> None:
    # E[x²] − mean² in float32 would lose all of a variance of 1e-6 beside a mean of 100.
    x = torch.full((1, 2, 8, 8), 100.0)
    x[:, :, ::2] += 2.0**-9
    wide = x.double()
    with use_backend(backend):
        out = norm_relu_pool(arranged(x, last).to(device)).cpu()
    assert (out - exact(wide)).abs().max() <= 1e-3 * exact(wide).abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_half_precision_is_float32_inside(
    dtype: torch.dtype, last: bool, device: torch.device, generator: torch.Generator
) -> None:
    x = arranged(torch.randn(2, 4, 8, 8, generator=generator).to(dtype), last)
    wide = x.double().requires_grad_()
    expected = exact(wide)
    grad = torch.randn(expected.shape, generator=generator).to(dtype)
    expected.backward(grad.double())
    leaf = x.to(device, copy=True).requires_grad_()
    out = norm_relu_pool(leaf)
    out.backward(grad.to(device))
    assert out.dtype == leaf.grad.dtype == dtype
    assert out.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    for ours, reference in ((out, expected.detach()), (leaf.grad, wide.grad)):
        error = (ours.detach().cpu().double() - reference).abs()
        assert (error <= 8 * tolerance(x) + ULP[dtype] * reference.abs()).all()


@pytest.mark.parametrize("pool", ["avg", "none"])
def test_the_gradient_may_come_in_the_other_memory_format(
    pool: str, last: bool, device: torch.device, generator: torch.Generator
) -> None:
    """As that of flattened features does."""
    x = arranged(torch.randn(2, 5, 6, 10, generator=generator), last).to(device)
    found = []
    for format_of_grad in (last, not last):
        leaf = x.clone().requires_grad_()
        out = norm_relu_pool(leaf, pool=pool)
        grad = torch.randn(out.shape, generator=generator.manual_seed(1))
        out.backward(arranged(grad, format_of_grad).to(device))
        assert leaf.grad.stride() == x.stride()
        found.append(leaf.grad)
    assert (found[0] - found[1]).abs().max() <= 2 * tolerance(x.cpu()) * float(grad.abs().max())


def test_weight_and_bias_need_not_be_contiguous(last: bool, device: torch.device, generator: torch.Generator) -> None:
    x = arranged(torch.randn(2, 6, 5, 4, generator=generator), last)
    numbers = torch.randn(6, 2, generator=generator)
    weight, bias, offsets = numbers[:, 0].to(device), numbers[:1, 1].to(device).expand(6), torch.tensor([0, 2])
    assert not weight.is_contiguous()
    assert not bias.is_contiguous()
    results = []
    for affine in ((weight, bias), (weight.contiguous(), bias.contiguous())):
        leaf = x.to(device).requires_grad_()
        out = norm_relu_pool(leaf, *affine)
        means = norm_relu_pool_mean(leaf, offsets.to(device), *affine)
        results.append((out.detach(), means, *torch.autograd.grad(out, leaf, torch.ones_like(out))))
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of Triton's interpreter
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_is_no_number_stays_none(
    activation: str, last: bool, device: torch.device, generator: torch.Generator
) -> None:
    x = arranged(torch.randn(3, 4, 6, 6, generator=generator), last)
    x[1, 2, 3, 3] = torch.nan
    x[2, 0, 0, 0] = torch.inf
    lost = [[False] * 4, [False, False, True, False], [True, False, False, False]]
    out = norm_relu_pool(x.to(device), activation=activation)
    assert out.isnan().all((2, 3)).tolist() == out.isnan().any((2, 3)).tolist() == lost
    means = norm_relu_pool_mean(x.to(device), torch.tensor([0, 1, 3], device=device), activation=activation)
    assert means.view(2, 4, -1).isnan().all(2).tolist() == [lost[0], [True, False, True, False]]


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_images_in_neither_format_give_contiguous_ones(
    dtype: torch.dtype, pool: str, device: torch.device, generator: torch.Generator
) -> None:
    """A compiled graph relies on it."""
    for order in ((0, 1, 3, 2), (3, 0, 1, 2)):
        x = torch.randn(4, 4, 4, 4, generator=generator, dtype=dtype).to(device).permute(order)
        leaf = x.detach().requires_grad_()
        out = norm_relu_pool(leaf, pool=pool)
        (gradient,) = torch.autograd.grad(out, leaf, torch.ones_like(out))
        assert out.is_contiguous()
        assert gradient.is_contiguous()
        assert torch.equal(out, norm_relu_pool(x.contiguous(), pool=pool))


@pytest.mark.parametrize("n", [1, 257])
def test_any_number_of_images(n: int, device: torch.device, generator: torch.Generator) -> None:
    x = torch.randn(n, 1, 2, 2, generator=generator)
    assert torch.allclose(norm_relu_pool(x.to(device)).cpu().double(), exact(x.double()), rtol=0, atol=tolerance(x))


def test_means_of_classes_of_any_size(device: torch.device, generator: torch.Generator) -> None:
    x = torch.randn(26, 1, 2, 2, generator=generator)
    sizes = torch.tensor([24, 0, 1, 1])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    means = norm_relu_pool_mean(x.to(device), offsets.to(device)).cpu()
    for rows, mean in zip(exact(x.double()).flatten(1).split(sizes.tolist()), means, strict=True):
        assert (mean - (rows.mean(0) if len(rows) else 0)).abs().max() <= tolerance(x)


@pytest.mark.parametrize(("activation", "pool"), [("swish", "avg"), ("leakyrelu", "max")])
def test_gradcheck(activation: str, pool: str, last: bool, device: torch.device, generator: torch.Generator) -> None:
    x, weight, bias = (torch.randn(s, generator=generator, dtype=torch.float64) for s in ((1, 2, 3, 4), (2,), (2,)))
    inputs = [t.to(device).requires_grad_() for t in (arranged(x, last), weight, bias)]
    assert torch.autograd.gradcheck(
        lambda *t: norm_relu_pool(*t, activation=activation, pool=pool), inputs, fast_mode=True
    )


def test_opcheck(last: bool, device: torch.device, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # It compares storage offsets, which canaries shift.
    x = arranged(torch.randn(2, 3, 6, 5, generator=generator), last).to(device)
    statistics, weight = torch.rand(2, 3, device=device), torch.rand(3, device=device)
    grad = torch.rand(2, 3, 3, 2, device=device)
    ops = torch.ops.fastdm
    torch.library.opcheck(ops.norm_relu_pool.default, (x, weight, None, 1e-5, "relu", "avg"))
    for affine in ((None, None), (weight, None), (weight, weight)):
        torch.library.opcheck(
            ops.norm_relu_pool_backward.default, (grad, x, statistics, statistics, *affine, "relu", "avg")
        )
    offsets = torch.tensor([0, 2], device=device)
    torch.library.opcheck(ops.norm_relu_pool_mean.default, (x, offsets, None, None, 1e-5, "relu", "avg"))


def test_compiles_without_a_graph_break(device: torch.device, generator: torch.Generator) -> None:
    x = torch.randn(2, 3, 6, 6, generator=generator).to(device)

    def loss(x: Tensor) -> Tensor:
        return norm_relu_pool(x * 2).square().sum()

    grads = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        leaf = x.clone().requires_grad_()
        function(leaf).backward()
        grads.append(leaf.grad)
    assert torch.equal(*grads)


X = torch.zeros(2, 3, 8, 8)


@pytest.mark.parametrize(
    ("error", "message", "arguments", "keywords"),
    [
        (ValueError, "x has the shape", (X[0],), {}),
        (TypeError, "x is torch.int32", (X.int(),), {}),
        (ValueError, r"weight is .* must be \[3\]", (X, torch.ones(4)), {}),
        (ValueError, "bias is on meta", (X, None, torch.ones(3, device="meta")), {}),
        (ValueError, "activation is 'gelu'", (X,), {"activation": "gelu"}),
        (ValueError, "pool is 'sum'", (X,), {"pool": "sum"}),
        (ValueError, "too small to pool", (X[:, :, :1],), {}),
    ],
)
def test_bad_arguments_are_refused(
    error: type[Exception], message: str, arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> None:
    with pytest.raises(error, match=message):
        norm_relu_pool(*arguments, **keywords)


def test_bad_offsets_are_refused() -> None:
    for offsets in ([0, 1], [1, 2], [0, 2, 1, 2]):
        with pytest.raises(ValueError, match="offsets must rise from 0 to the number of rows, 2"):
            norm_relu_pool_mean(X, torch.tensor(offsets))
