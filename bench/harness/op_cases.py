"""The ops of `fastdm.kernels` on the shapes that matter, with fresh arguments, and plain PyTorch for comparison."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdm import kernels
from fastdm.augmentation import DSA_STRATEGY, Strategy
from fastdm.kernels.augmentation import reference as augmentation
from fastdm.kernels.numerics import class_means
from fastdm.kernels.random import reference as random_numbers

Arguments = tuple[Any, ...]
Shape = tuple[int, ...]

_DSA_FLOPS = {"S": 16, "M": 80}  # per pixel: color is 10, a bilinear sample of 1 or 16 taps with coordinates 20 or 60
_EPS = torch.finfo(torch.float32).eps
_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}
_BACKWARD = ", forward and backward"


@dataclasses.dataclass(frozen=True)
class Case:
    """One op on one shape.

    op: its name in `fastdm.kernels`, which the command line selects by. make: fresh random arguments of a seed.
    run, eager: the op and plain PyTorch on these arguments.
    bytes: the least that must move. flops: of the formula, about; 0 where it computes with integers.
    exact: whether both must give the same bits; else `eager` in float64 is the yardstick of both.
    rounding: the relative error that float32 may have however its sums are ordered.
    relu: the relative error of what goes into a ReLU whose gradient is computed. An activation that rounding takes to
        the other side of it has a wrong gradient entry: 2 · relu · φ(0) of them, by whose root the whole gradient is
        off. Twice that is allowed, and the strict tolerance holds for the median of the images.
    """

    op: str
    name: str
    make: Callable[[int], Arguments]
    run: Callable[..., Any]
    eager: Callable[..., Any]
    bytes: int
    flops: int
    exact: bool = False
    rounding: float = _EPS
    relu: float = 0.0


def cases(device: torch.device, smoke: bool) -> Iterator[Case]:
    """All cases, one of each op in turn."""
    cpu, dtypes, both = device.type == "cpu", (torch.bfloat16, torch.float32), (False, True)
    augmented = [(4, 4, 16)] if smoke else [(10, 256, 32), (200, 64, 64)][: 1 if cpu else 2]
    normed = [(2560, 128, 32), (2560, 128, 16), (2560, 128, 8), (1024, 128, 64)]
    normed = [(4, 8, 8)] if smoke else [(64, 128, size) for size in (32, 16, 8)] if cpu else normed
    layouts = {shape: [(torch.bfloat16, True)] for shape in normed}
    layouts[normed[0]] += [(torch.float32, True), (torch.float32, False)]
    # The fused block, which only a CPU has.
    fused = [] if not cpu else [(2, 16, 16, 8)] if smoke else [(64, 128, 128, 16), (64, 3, 128, 32)]
    matched = [((4, 8, 2, 64), both)] if smoke else [((10, 256, 10, 2048), both), ((100, 256, 10, 2048), (False,))]
    families: list[list[partial[Case]]] = [
        [partial(_dsa_real, shape, mode, dtype) for shape in augmented for mode in "SM" for dtype in dtypes]
        + [partial(_dsa_synthetic, (shape[0], 2 if smoke else 10, shape[2])) for shape in augmented],
        [partial(_norm_relu_pool, shape, *how, back) for shape in normed for how in layouts[shape] for back in both],
        [partial(_conv_norm_relu_pool, shape, back) for shape in fused for back in both],
        [partial(_norm_relu_pool_mean, (2, 4, 8, 8) if smoke else (10, 256, 128, 8), dtype) for dtype in dtypes],
        [
            partial(_class_mean_difference, shape, rag, dtype)
            for shape, how in matched
            for rag in how
            for dtype in dtypes
        ],
        [partial(_uniform, (8, 64) if smoke else (75, 4096))],  # the parameters of ConvNet-3
        [partial(_draw, (4, 32, 8) if smoke else (10, 5000, 256))],
    ]
    for turn in itertools.zip_longest(*families):
        yield from (case(device) for case in turn if case is not None)


def _sums(n: int) -> float:
    """Twice the relative error of n like values added one by one in float32: partial sums, rounded at random."""
    return max(_EPS, math.sqrt(n) / 3 * _EPS)


# --- augmentation ----------------------------------------------------------------------------------------------------


def _draw_table(seed: int, rows: Tensor, size: int, mode: Any = "S") -> Tensor:
    key = torch.tensor([seed, 7], device=rows.device)
    return Strategy.parse(DSA_STRATEGY, mode).draw(key, rows, (size, size))[0]


def _dsa_real(shape: Shape, mode: str, dtype: torch.dtype, device: torch.device) -> Case:
    classes, per_class, size = shape
    n, pixels = classes * per_class, 3 * size * size
    rows = torch.arange(classes, device=device)
    group = rows.repeat_interleave(per_class)
    mean, std = (torch.full((3,), value, device=device) for value in (0.5, 0.25))

    def make(seed: int) -> Arguments:
        generator = torch.Generator(device).manual_seed(seed)
        pool = torch.randint(256, (2 * n, 3, size, size), dtype=torch.uint8, device=device, generator=generator)
        index = torch.randint(2 * n, (n,), device=device, generator=generator)
        return pool, _draw_table(seed, rows, size, mode), index

    def run(pool: Tensor, table: Tensor, index: Tensor) -> Tensor:
        return kernels.dsa(pool, table, group, index=index, mean=mean, std=std, dtype=dtype, channels_last=True)

    def eager(pool: Tensor, table: Tensor, index: Tensor) -> Tensor:
        if table.dtype == torch.float64:  # asks for the exact result
            wide = (pool.double() / 255 - mean.double()[:, None, None]) / std.double()[:, None, None]
            return augmentation.dsa(wide, table, group, index, None, None, table.dtype, True)
        return augmentation.dsa(pool, table, group, index, mean, std, dtype, True)

    name = f"dsa {mode} real {n}×3×{size}² {_NAMES[dtype]}"
    return Case("dsa", name, make, run, eager, n * pixels * (1 + dtype.itemsize), n * pixels * _DSA_FLOPS[mode])


def _dsa_synthetic(shape: Shape, device: torch.device) -> Case:
    """The synthetic images, forward and back to the pixels."""
    classes, per_class, size = shape
    n, pixels = classes * per_class, 3 * size * size
    rows = torch.arange(classes, device=device)
    group = rows.repeat_interleave(per_class)

    def make(seed: int) -> Arguments:
        generator = torch.Generator(device).manual_seed(seed)
        images, grad = (torch.randn(n, 3, size, size, device=device, generator=generator) for _ in range(2))
        return images.requires_grad_(), grad, _draw_table(seed, rows, size)

    run = _maybe_backward(lambda images, table: kernels.dsa(images, table, group))
    eager = _maybe_backward(lambda x, table: augmentation.dsa(x, table, group, None, None, None, x.dtype, False))
    name = f"dsa S synthetic {n}×3×{size}² fp32{_BACKWARD}"
    return Case("dsa", name, make, run, eager, 16 * n * pixels, 2 * n * pixels * _DSA_FLOPS["S"])


# --- blocks ----------------------------------------------------------------------------------------------------------


def _layers(x: Tensor) -> Tensor:
    """InstanceNorm, ReLU and AvgPool as the public network has them."""
    return F.avg_pool2d(F.relu(F.group_norm(x, x.shape[1])), 2)


def _maybe_backward(function: Callable[..., Tensor]) -> Callable[..., Any]:
    """The function of x and more or, given a gradient between them, the function and the gradient to x."""

    def run(x: Tensor, grad: Tensor | None = None, *more: Tensor) -> Any:
        out = function(x, *more)
        return out if grad is None else (out, torch.autograd.grad(out, x, grad)[0])

    return run


def _activations(
    shape: Shape, dtype: torch.dtype, last: bool, gradient: int, device: torch.device, seed: int
) -> Arguments:
    """Images (n, channels, size) and, if `gradient` is not 0, a gradient of so many channels and half the size."""
    generator = torch.Generator(device).manual_seed(seed)
    memory_format = torch.channels_last if last else torch.contiguous_format

    def random(channels: int, size: int) -> Tensor:
        values = torch.randn(shape[0], channels, size, size, device=device, generator=generator, dtype=dtype)
        return values.to(memory_format=memory_format)

    x = random(*shape[1:])
    return (x.requires_grad_(), random(gradient, shape[2] // 2)) if gradient else (x,)


def _norm_relu_pool(shape: Shape, dtype: torch.dtype, last: bool, backward: bool, device: torch.device) -> Case:
    n, channels, size = shape
    elements = n * channels * size * size
    return Case(
        "norm_relu_pool",
        f"norm_relu_pool {n}×{channels}×{size}² {_NAMES[dtype]} {'nhwc' if last else 'nchw'}{_BACKWARD * backward}",
        partial(_activations, shape, dtype, last, channels * backward, device),
        _maybe_backward(kernels.norm_relu_pool),
        _maybe_backward(_layers),
        # Forward: x in, a quarter out; backward: x and a quarter in, x out.
        int(elements * dtype.itemsize * (3.5 if backward else 1.25)),
        # Mean, centred squares, scaling, ReLU and pooling; backward, two sums more and their products.
        elements * (24 if backward else 8),
        relu=2 * _EPS * backward,  # the subtracted mean and the scaling
    )


def _conv_norm_relu_pool(shape: Shape, backward: bool, device: torch.device) -> Case:
    n, channels, width, size = shape
    generator = torch.Generator().manual_seed(1)
    weight = (torch.rand(width, channels, 3, 3, generator=generator) - 0.5) / (9 * channels) ** 0.5
    return Case(
        "conv_norm_relu_pool",
        f"conv_norm_relu_pool {n}×{channels}→{width}×{size}² fp32{_BACKWARD * backward}",
        partial(_activations, (n, channels, size), torch.float32, True, width * backward, device),
        _maybe_backward(lambda x: kernels.conv_norm_relu_pool(x, weight)),
        _maybe_backward(lambda x: _layers(F.conv2d(x, weight.to(x.dtype), padding=1))),
        4 * (1 + backward) * (n * width * (size // 2) ** 2 + n * channels * size**2),
        (1 + backward) * 2 * 9 * channels * n * width * size**2,
        rounding=1e-5,  # three times that of Winograd's F(4×4, 3×3), relative to the deviation of its output
        relu=3e-6 * backward,
    )


def _norm_relu_pool_mean(shape: Shape, dtype: torch.dtype, device: torch.device) -> Case:
    classes, per_class, channels, size = shape
    n = classes * per_class
    offsets = torch.arange(classes + 1, device=device) * per_class

    def eager(x: Tensor) -> Tensor:
        features = _layers(x).flatten(1)
        wide = torch.promote_types(features.dtype, torch.float32)
        return features.view(classes, -1, features.shape[1]).mean(1, dtype=wide)

    return Case(
        "norm_relu_pool_mean",
        f"norm_relu_pool_mean {n}×{channels}×{size}² {_NAMES[dtype]} nhwc, {classes} classes",
        partial(_activations, (n, channels, size), dtype, True, 0, device),
        lambda x: kernels.norm_relu_pool_mean(x, offsets),
        eager,
        classes * channels * (size // 2) ** 2 * 4 + n * channels * size * size * dtype.itemsize,
        8 * n * channels * size**2,
        rounding=_sums(per_class),
    )


# --- class means and random draws ------------------------------------------------------------------------------------


def _class_mean_difference(shape: Shape, ragged: bool, dtype: torch.dtype, device: torch.device) -> Case:
    classes, per_class, ipc, features = shape
    counts = torch.full((classes,), per_class) - (torch.arange(classes) % per_class) * ragged
    real_offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]).to(device)
    synthetic_offsets = torch.arange(classes + 1, device=device) * ipc
    n, m = int(counts.sum()), classes * ipc

    def make(seed: int) -> Arguments:
        generator = torch.Generator(device).manual_seed(seed)
        real, synthetic = (
            torch.rand(rows, features, device=device, generator=generator, dtype=dtype) for rows in (n, m)
        )
        return real, synthetic.requires_grad_()

    def run(real: Tensor, synthetic: Tensor) -> Arguments:
        loss = kernels.class_mean_difference(real, synthetic, real_offsets, synthetic_offsets)
        return loss, torch.autograd.grad(loss, synthetic)[0]

    def means(x: Tensor, ragged: bool) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        if ragged:
            return class_means(x.to(wide), real_offsets)
        return x.view(classes, -1, features).mean(1, dtype=wide)

    def eager(real: Tensor, synthetic: Tensor) -> Arguments:
        loss = (means(real, ragged) - means(synthetic, False)).square().sum()
        return loss, torch.autograd.grad(loss, synthetic)[0]

    each, kind = f"{'≤' * ragged}{per_class}", _NAMES[dtype]
    return Case(
        "class_mean_difference",
        f"class_mean_difference {classes}×{each} and {classes}×{ipc} of {features} {kind}{_BACKWARD}",
        make,
        run,
        eager,
        (n + 2 * m) * features * dtype.itemsize,
        (n + 2 * m) * features,
        # The means of uniform values are 1/2 and differ by √((1/per_class + 1/ipc) / 12).
        rounding=_sums(per_class) * 0.5 / math.sqrt((1 / per_class + 1 / ipc) / 12),
    )


def _random(op: str, name: str, run: Callable[..., Any], eager: Callable[..., Any], moved: int, device: Any) -> Case:
    def make(seed: int) -> Arguments:
        return (torch.tensor([seed, 3], device=device),)

    return Case(op, f"{op} {name}", make, run, eager, moved, 0, exact=True)


def _uniform(shape: Shape, device: torch.device) -> Case:
    rows, n = torch.arange(shape[0], device=device), shape[1]
    run, eager = (partial(form.uniform, rows=rows, n=n, stream=3) for form in (kernels, random_numbers))
    return _random("uniform", f"{len(rows)}×{n}", run, eager, 4 * len(rows) * n, device)


def _draw(shape: Shape, device: torch.device) -> Case:
    classes, size, n = shape
    offsets, every = torch.arange(classes + 1, device=device) * size, torch.arange(classes, device=device)
    run, eager = (partial(form.draw, class_offsets=offsets, n=n, classes=every) for form in (kernels, random_numbers))
    return _random("draw", f"{n} of {size} in {classes} classes", run, eager, classes * n * 8, device)
