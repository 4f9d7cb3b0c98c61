"""Every op of `fastdm.kernels` by shape and dtype, beside eager PyTorch and torch.compile of the same.

python -m bench.kernels [--device cuda] [--smoke] [--only dsa …] [--seconds 120]

A row holds the error against float64 next to the speed; where the check is red there is no speed. The tolerance is
twice what eager PyTorch makes of the same input in the same dtype (for Winograd's convolution, whose rounding error is
a few times that of a plain sum, eight times), and at least the spacing of that dtype.
Bytes are the least that must move: every input read once, every output written once. The ops take turns, their most
used shape first, so that a run cut short has something of each.
"""

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import peaks, results
from bench.timer import device_times, rotation
from fastdm import kernels
from fastdm.augmentation import DSA_STRATEGY, Strategy
from fastdm.kernels import dispatch
from fastdm.kernels.augmentation import reference as augmentation
from fastdm.kernels.numerics import class_means
from fastdm.kernels.random import reference as random_numbers

Arguments = tuple[Any, ...]

_DSA_FLOPS = {"S": 16, "M": 80}  # per pixel: color is 10, a bilinear sample of 1 or 16 taps with coordinates 20 or 60


@dataclasses.dataclass(frozen=True)
class Case:
    """One op on one shape.

    op: its name in `fastdm.kernels`, which the command line selects by. make(seed): fresh random arguments. run, eager:
    the op and plain PyTorch on these arguments. exact: the same in float64; None where both must give the same bits.
    bytes: the least that must move. flops: of the formula, about; 0 where it computes with integers. factor: how many
    times eager PyTorch's error is tolerated.
    """

    op: str
    name: str
    make: Callable[[int], Arguments]
    run: Callable[..., Any]
    eager: Callable[..., Any]
    exact: Callable[..., Any] | None
    bytes: int
    flops: int
    factor: float = 2.0


def cases(device: torch.device, smoke: bool) -> Iterator[Case]:
    """All cases, one of each op in turn."""
    families = (_dsa, _norm_relu_pool, _conv_norm_relu_pool, _norm_relu_pool_mean, _class_mean_difference, _random)
    for turn in itertools.zip_longest(*(family(device, smoke) for family in families)):
        yield from (case for case in turn if case is not None)


def measure(case: Case, device: torch.device, copy_peak: float | None, smoke: bool, compiled: bool) -> dict[str, Any]:
    """The row of a case: whether it is right and, if so, how long the op and its two baselines take."""
    arguments = case.make(0)
    row: dict[str, Any] = {
        "name": case.name,
        "op": case.op,
        "implementation": _implementation(case.op, device),
        "bytes": case.bytes,
        **({"flops": case.flops} if case.flops else {}),
        **check(case, arguments),
    }
    if not row["correct"]:
        return row
    # What is compiled is what eager runs: nothing of ours is in it.
    functions = {"fastdm": case.run, "eager": case.eager}
    if compiled:
        torch._dynamo.reset()
        start = time.perf_counter()
        function = torch.compile(case.eager, dynamic=False)
        try:
            function(*arguments)
            row["compile_seconds"] = round(time.perf_counter() - start, 2)
            functions["compile"] = function
        except Exception as error:  # The baseline's own trouble must not cost the row.
            row["failure"] = f"torch.compile: {type(error).__name__}: {str(error).splitlines()[0][:200]}"
    if device.type == "cuda":
        row["peak_bytes"] = {name: _peak(function, arguments) for name, function in functions.items()}
    inputs = [case.make(seed) for seed in range(2 if smoke else rotation(case.bytes, device))]
    times = device_times(functions, inputs, device, seconds=0 if smoke else 0.5 * len(functions))
    row["rotation"] = len(inputs)
    row["seconds"] = {name: results.spread(values) for name, values in times.items()}
    median = {name: spread["median"] for name, spread in row["seconds"].items()}
    row["gb_per_s"] = case.bytes / median["fastdm"] / 1e9
    if copy_peak:
        row["percent_of_copy"] = 100 * case.bytes / median["fastdm"] / copy_peak
    row["speedup"] = {name: median[name] / median["fastdm"] for name in median if name != "fastdm"}
    return row


def check(case: Case, arguments: Arguments) -> dict[str, Any]:
    """error and tolerance, both ‖difference‖ / ‖exact‖; of ops that give the same bits the share that differs."""
    ours = _tensors(case.run(*arguments))
    if case.exact is None:
        theirs = _tensors(case.eager(*arguments))
        wrong = sum(int((a != b).sum()) for a, b in zip(ours, theirs, strict=True))
        error = wrong / sum(a.numel() for a in ours)
        return {"error": error, "tolerance": 0.0, "correct": error == 0}
    exact = _tensors(case.exact(*arguments))
    eager = _tensors(case.eager(*arguments))
    error = tolerance = 0.0
    correct = True
    for a, b, c in zip(ours, eager, exact, strict=True):
        own, others = (((x.double() - c).norm() / c.norm()).item() for x in (a, b))
        allowed = max(case.factor * others, torch.finfo(a.dtype).eps)
        correct = correct and own <= allowed  # False for NaN as well.
        error, tolerance = max(error, own), max(tolerance, allowed)
    return {"error": error, "tolerance": tolerance, "correct": correct}


# --- the ops ---------------------------------------------------------------------------------------------------------


def _dsa(device: torch.device, smoke: bool) -> Iterator[Case]:
    shapes = [(4, 4, 16)] if smoke else [(10, 256, 32), (200, 64, 64)]
    if device.type == "cpu":
        shapes = shapes[:1]
    strategies = {"S": Strategy.parse(DSA_STRATEGY), "M": Strategy.parse(DSA_STRATEGY, "M")}
    mean, std = (torch.full((3,), value, device=device) for value in (0.5, 0.25))
    for classes, per_class, size in shapes:
        n, pool_size = classes * per_class, 2 * classes * per_class
        rows = torch.arange(classes, device=device)
        group = rows.repeat_interleave(per_class)
        pixels = 3 * size * size
        for mode, strategy in strategies.items():
            for dtype in (torch.bfloat16, torch.float32):

                def make(
                    seed: int,
                    strategy: Strategy = strategy,
                    rows: Tensor = rows,
                    n: int = n,
                    m: int = pool_size,
                    s: int = size,
                ) -> Arguments:
                    generator = torch.Generator(device).manual_seed(seed)
                    key = torch.tensor([seed, 7], device=device)
                    (table,) = strategy.draw(key, rows, (s, s))
                    pool = torch.randint(256, (m, 3, s, s), dtype=torch.uint8, device=device, generator=generator)
                    index = torch.randint(m, (n,), device=device, generator=generator)
                    return pool, table, index

                def run(
                    pool: Tensor, table: Tensor, index: Tensor, d: torch.dtype = dtype, g: Tensor = group
                ) -> Tensor:
                    return kernels.dsa(pool, table, g, index=index, mean=mean, std=std, dtype=d, channels_last=True)

                def eager(
                    pool: Tensor, table: Tensor, index: Tensor, d: torch.dtype = dtype, g: Tensor = group
                ) -> Tensor:
                    return augmentation.dsa(pool, table, g, index, mean, std, d, True)

                def exact(pool: Tensor, table: Tensor, index: Tensor, g: Tensor = group) -> Tensor:
                    wide = (pool[index].double() / 255 - mean.double()[:, None, None]) / std.double()[:, None, None]
                    return augmentation.dsa(wide, table, g, None, None, None, torch.float64, False)

                yield Case(
                    "dsa",
                    f"dsa {mode} real {n}×3×{size}² {_name(dtype)}",
                    make,
                    run,
                    eager,
                    exact,
                    n * pixels * (1 + dtype.itemsize),
                    n * pixels * _DSA_FLOPS[mode],
                )
        # The synthetic branch, forward and back to the pixels.
        per_class = 2 if smoke else 10
        yield from _dsa_synthetic(device, classes, per_class, size, strategies["S"])


def _dsa_synthetic(device: torch.device, classes: int, per_class: int, size: int, strategy: Strategy) -> Iterator[Case]:
    n = classes * per_class
    group = torch.arange(classes, device=device).repeat_interleave(per_class)

    def make(seed: int) -> Arguments:
        generator = torch.Generator(device).manual_seed(seed)
        key = torch.tensor([seed, 7], device=device)
        (table,) = strategy.draw(key, torch.arange(classes, device=device), (size, size))
        images, grad = (torch.randn(n, 3, size, size, device=device, generator=generator) for _ in range(2))
        return images.requires_grad_(), table, grad

    def both(images: Tensor, out: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        return out, torch.autograd.grad(out, images, grad.to(out.dtype))[0]

    def run(images: Tensor, table: Tensor, grad: Tensor) -> Any:
        return both(images, kernels.dsa(images, table, group), grad)

    def eager(images: Tensor, table: Tensor, grad: Tensor) -> Any:
        return both(images, augmentation.dsa(images, table, group, None, None, None, images.dtype, False), grad)

    def exact(images: Tensor, table: Tensor, grad: Tensor) -> Any:
        return eager(images.detach().double().requires_grad_(), table, grad.double())

    name = f"dsa S synthetic {n}×3×{size}² fp32, forward and backward"
    yield Case(
        "dsa", name, make, run, eager, exact, 4 * n * 3 * size * size * 4, 2 * n * 3 * size * size * _DSA_FLOPS["S"]
    )


def _layers(x: Tensor) -> Tensor:
    """InstanceNorm, ReLU and AvgPool as the public network has them."""
    return F.avg_pool2d(F.relu(F.group_norm(x, x.shape[1])), 2)


def _norm_relu_pool(device: torch.device, smoke: bool) -> Iterator[Case]:
    shapes = [(4, 8, 8)] if smoke else [(2560, 128, 32), (2560, 128, 16), (2560, 128, 8), (1024, 128, 64)]
    if device.type == "cpu" and not smoke:
        shapes = [(64, 128, size) for size in (32, 16, 8)]
    for n, channels, size in shapes:
        single = [(torch.float32, True), (torch.float32, False)] if (n, channels, size) == shapes[0] else []
        for dtype, last in [(torch.bfloat16, True), *single]:
            memory_format = torch.channels_last if last else torch.contiguous_format
            elements = n * channels * size * size
            for backward in (False, True):

                def make(
                    seed: int,
                    shape: tuple[int, ...] = (n, channels, size, size),
                    dtype: torch.dtype = dtype,
                    memory_format: torch.memory_format = memory_format,
                    backward: bool = backward,
                ) -> Arguments:
                    generator = torch.Generator(device).manual_seed(seed)

                    def random(*shape: int) -> Tensor:
                        values = torch.randn(shape, device=device, generator=generator, dtype=dtype)
                        return values.to(memory_format=memory_format)

                    if not backward:
                        return (random(*shape),)
                    grad = random(shape[0], shape[1], shape[2] // 2, shape[3] // 2)
                    return random(*shape).requires_grad_(), grad

                run, eager = _maybe_backward(kernels.norm_relu_pool), _maybe_backward(_layers)

                def exact(*arguments: Tensor, eager: Callable[..., Any] = eager, backward: bool = backward) -> Any:
                    wide = [argument.detach().double() for argument in arguments]
                    wide[0].requires_grad_(backward)
                    return eager(*wide)

                what = ", forward and backward" if backward else ""
                layout = "nhwc" if last else "nchw"
                yield Case(
                    "norm_relu_pool",
                    f"norm_relu_pool {n}×{channels}×{size}² {_name(dtype)} {layout}{what}",
                    make,
                    run,
                    eager,
                    exact,
                    # Forward: x in, a quarter out; backward: x and a quarter in, x out.
                    int(elements * dtype.itemsize * (3.5 if backward else 1.25)),
                    # Mean, centred squares, scaling, ReLU and pooling; backward, two sums more and their products.
                    elements * (24 if backward else 8),
                )


def _conv_norm_relu_pool(device: torch.device, smoke: bool) -> Iterator[Case]:
    """The fused block, which only a CPU has."""
    if device.type != "cpu":
        return
    for n, channels, width, size in [(2, 16, 16, 8)] if smoke else [(64, 128, 128, 16), (64, 3, 128, 32)]:
        for backward in (False, True):
            generator = torch.Generator().manual_seed(1)
            weight = (torch.rand(width, channels, 3, 3, generator=generator) - 0.5) / (9 * channels) ** 0.5

            def make(
                seed: int, shape: tuple[int, ...] = (n, channels, width, size), back: bool = backward
            ) -> Arguments:
                n, channels, width, size = shape
                generator = torch.Generator().manual_seed(seed)
                x = torch.randn(n, channels, size, size, generator=generator).to(memory_format=torch.channels_last)
                if not back:
                    return (x,)
                grad = torch.randn(n, width, size // 2, size // 2, generator=generator)
                return x.requires_grad_(), grad.to(memory_format=torch.channels_last)

            def plain(x: Tensor, weight: Tensor = weight) -> Tensor:
                return _layers(F.conv2d(x, weight.to(x.dtype), padding=1))

            def ours(x: Tensor, weight: Tensor = weight) -> Tensor:
                return kernels.conv_norm_relu_pool(x, weight)

            run, eager = _maybe_backward(ours), _maybe_backward(plain)

            def exact(*arguments: Tensor, eager: Callable[..., Any] = eager, backward: bool = backward) -> Any:
                wide = [argument.detach().double() for argument in arguments]
                wide[0].requires_grad_(backward)
                return eager(*wide)

            outer, inner = n * width * (size // 2) ** 2, n * channels * size**2
            yield Case(
                "conv_norm_relu_pool",
                f"conv_norm_relu_pool {n}×{channels}→{width}×{size}² fp32" + (", forward and backward" * backward),
                make,
                run,
                eager,
                exact,
                4 * (2 if backward else 1) * (outer + inner),
                (2 if backward else 1) * 2 * 9 * channels * n * width * size**2,
                8.0,
            )


def _maybe_backward(function: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    """The function of x or, given a gradient too, the function and the gradient to x."""

    def run(x: Tensor, grad: Tensor | None = None) -> Any:
        out = function(x)
        return out if grad is None else (out, torch.autograd.grad(out, x, grad)[0])

    return run


def _norm_relu_pool_mean(device: torch.device, smoke: bool) -> Iterator[Case]:
    shapes = [(2, 4, 8, 8)] if smoke else [(10, 256, 128, 8)]
    for classes, per_class, channels, size in shapes:
        n = classes * per_class
        offsets = torch.arange(classes + 1, device=device) * per_class
        for dtype in (torch.bfloat16, torch.float32):

            def make(seed: int, n: int = n, c: int = channels, s: int = size, dtype: torch.dtype = dtype) -> Arguments:
                generator = torch.Generator(device).manual_seed(seed)
                x = torch.randn(n, c, s, s, device=device, generator=generator, dtype=dtype)
                return (x.to(memory_format=torch.channels_last),)

            def run(x: Tensor, offsets: Tensor = offsets) -> Tensor:
                return kernels.norm_relu_pool_mean(x, offsets)

            def eager(x: Tensor, classes: int = classes) -> Tensor:
                features = _layers(x).flatten(1)
                wide = torch.promote_types(features.dtype, torch.float32)
                return features.view(classes, -1, features.shape[1]).mean(1, dtype=wide)

            def exact(x: Tensor, eager: Callable[..., Tensor] = eager) -> Tensor:
                return eager(x.double())

            name = f"norm_relu_pool_mean {n}×{channels}×{size}² {_name(dtype)} nhwc, {classes} classes"
            written = classes * channels * (size // 2) ** 2 * 4
            read = n * channels * size * size * dtype.itemsize
            yield Case("norm_relu_pool_mean", name, make, run, eager, exact, read + written, 8 * n * channels * size**2)


def _class_mean_difference(device: torch.device, smoke: bool) -> Iterator[Case]:
    features = 64 if smoke else 2048
    for classes, per_class, ipc, ragged in (
        ((4, 8, 2, False), (4, 8, 2, True))
        if smoke
        else (
            (10, 256, 10, False),
            (10, 256, 10, True),
            (100, 256, 10, False),
        )
    ):
        counts = torch.full((classes,), per_class)
        if ragged:
            counts -= torch.arange(classes) % per_class
        real_offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]).to(device)
        synthetic_offsets = torch.arange(classes + 1, device=device) * ipc
        n, m = int(counts.sum()), classes * ipc
        for dtype in (torch.bfloat16, torch.float32):

            def make(seed: int, n: int = n, m: int = m, dtype: torch.dtype = dtype) -> Arguments:
                generator = torch.Generator(device).manual_seed(seed)
                real, synthetic = (
                    torch.rand(rows, features, device=device, generator=generator, dtype=dtype) for rows in (n, m)
                )
                return real, synthetic.requires_grad_()

            def run(real: Tensor, synthetic: Tensor, ro: Tensor = real_offsets, so: Tensor = synthetic_offsets) -> Any:
                loss = kernels.class_mean_difference(real, synthetic, ro, so)
                return loss, torch.autograd.grad(loss, synthetic)[0]

            def eager(
                real: Tensor,
                synthetic: Tensor,
                ro: Tensor = real_offsets,
                ragged: bool = ragged,
                classes: int = classes,
            ) -> Any:
                wide = torch.promote_types(real.dtype, torch.float32)
                if ragged:
                    real_means = class_means(real.to(wide), ro)
                else:
                    real_means = real.view(classes, -1, features).mean(1, dtype=wide)
                means = synthetic.view(classes, -1, features).mean(1, dtype=wide)
                loss = (real_means - means).square().sum()
                return loss, torch.autograd.grad(loss, synthetic)[0]

            def exact(real: Tensor, synthetic: Tensor, eager: Callable[..., Any] = eager) -> Any:
                return eager(real.double(), synthetic.detach().double().requires_grad_())

            name = (
                f"class_mean_difference {classes}×{'≤' if ragged else ''}{per_class} and {classes}×{ipc} of {features} "
                f"{_name(dtype)}, forward and backward"
            )
            moved = (n + 2 * m) * features * dtype.itemsize
            yield Case("class_mean_difference", name, make, run, eager, exact, moved, (n + 2 * m) * features)


def _random(device: torch.device, smoke: bool) -> Iterator[Case]:
    rows, n = (8, 64) if smoke else (75, 4096)  # the parameters of ConvNet-3
    all_rows = torch.arange(rows, device=device)

    def key(seed: int) -> Arguments:
        return (torch.tensor([seed, 3], device=device),)

    yield Case(
        "uniform",
        f"uniform {rows}×{n}",
        key,
        lambda key: kernels.uniform(key, all_rows, n, 3),
        lambda key: random_numbers.uniform(key, all_rows, n, 3),
        None,
        rows * n * 4,
        0,
    )
    classes, size, drawn = (4, 32, 8) if smoke else (10, 5000, 256)
    offsets = torch.arange(classes + 1, device=device) * size
    every = torch.arange(classes, device=device)
    yield Case(
        "draw",
        f"draw {drawn} of {size} in {classes} classes",
        key,
        lambda key: kernels.draw(key, offsets, drawn),
        lambda key: random_numbers.draw(key, offsets, drawn, every),
        None,
        classes * drawn * 8,
        0,
    )


# --- small things ----------------------------------------------------------------------------------------------------


def _name(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]


def _tensors(result: Any) -> Sequence[Tensor]:
    return result if isinstance(result, tuple) else (result,)


def _peak(function: Callable[..., object], arguments: Arguments) -> int:
    """Bytes that a call takes on the device beside its arguments, at most."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function(*arguments)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _implementation(op: str, device: torch.device) -> str:
    """Which form of the op runs here: reference, native or triton."""
    return dispatch.first_form(op, device)


def main() -> None:
    parser = peaks.parser(__doc__)
    parser.add_argument("--only", nargs="*", help="ops, such as dsa")
    parser.add_argument("--seconds", type=float, default=600.0, help="stop after about this long")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out, whose compilation is slow")
    arguments = parser.parse_args()
    device = peaks.device_of(arguments)
    copy_peak = peaks.measured(device).get("copy")
    settings: Mapping[str, Any] = {"smoke": arguments.smoke, "compile": not arguments.no_compile}
    start = time.perf_counter()
    rows: list[dict[str, Any]] = []
    for case in cases(device, arguments.smoke):
        if arguments.only and case.op not in arguments.only:
            continue
        if time.perf_counter() - start > arguments.seconds:
            print("out of time")
            break
        try:
            row = measure(case, device, copy_peak, arguments.smoke, not arguments.no_compile)
        except Exception as error:  # One op's failure must leave the others.
            row = {"name": case.name, "op": case.op, "failure": f"{type(error).__name__}: {error}"[:400]}
        rows.append(row)
        results.save("kernels", rows, dict(settings), arguments.device)
        print({key: value for key, value in row.items() if key != "seconds"}, flush=True)


if __name__ == "__main__":
    main()
