"""Every op of `fastdm.kernels` by shape and dtype, next to eager PyTorch and torch.compile of the same.

    python -m bench.kernels [dram] [--only dsa …] [--seconds 600]

A row holds the error compared with float64, and what it may be (see `Case`), next to the speed; where the check is red
there is no speed. The ops take turns, their most used shape first, so that a run cut short has something of each.

dram: the bytes that the memory of a GPU moves in a call, which Nsight Compute counts.
"""

import itertools
import math
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.baselines.plain_step import layers
from bench.harness import arguments, dram, machine, plots, records
from bench.harness.case import EPS, Arguments, Case, check
from bench.harness.records import Result, Row, Rows, Suite
from bench.harness.timer import device_times, rotation, within
from bench.harness.workloads import restart_peak
from fastdm import kernels
from fastdm.augmentation import DSA_STRATEGY, Strategy
from fastdm.kernels import dispatch
from fastdm.kernels.augmentation import reference as augmentation
from fastdm.kernels.numerics import class_means, working_dtype
from fastdm.kernels.random import reference as random_numbers
from fastdm.runs.recording import peak_memory

Shape = tuple[int, ...]

_DSA_FLOPS = {"S": 16, "M": 80}  # per pixel: color is 10, a bilinear sample of 1 or 16 taps with coordinates 20 or 60
_DSA_ROUNDING = math.sqrt(2) * EPS
"""Times the image's side: a coordinate, of up to half the side from the middle, is rounded some four times by half an
eps of it, and one pixel further an image of noise is another by √2 of its deviation."""
_BACKWARD = ", forward and backward"
_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}


def cases(device: torch.device, smoke: bool) -> list[Case]:
    """All cases, one of each op in turn."""
    cpu = device.type == "cpu"
    with device:
        dtypes, both = (torch.bfloat16, torch.float32), (False, True)
        augmented = [(4, 4, 16)] if smoke else [(10, 256, 32), (200, 64, 64)][: 1 if cpu else 2]
        normed = [(2560, 128, 32), (2560, 128, 16), (2560, 128, 8), (1024, 128, 64)]
        normed = [(4, 8, 8)] if smoke else [(64, 128, size) for size in (32, 16, 8)] if cpu else normed
        layouts = {shape: [(torch.bfloat16, True)] for shape in normed}
        layouts[normed[0]] += [(torch.float32, True), (torch.float32, False)]
        # The fused block: any on a CPU; on a GPU a first one, whose convolution may be computed twice.
        fused = [(64, 128, 128, 16), (64, 3, 128, 32)] if cpu else [(2560, 3, 128, 32), (1024, 3, 128, 64)]
        fused = [(2, 3, 16, 8)] if smoke else fused
        ways = [(torch.float32, way, False) if cpu else (torch.bfloat16, False, way) for way in both]
        matched = [(shape, ragged) for shape in [(4, 8, 2, 64) if smoke else (10, 256, 10, 2048)] for ragged in both]
        matched += [] if smoke else [((100, 256, 10, 2048), False)]
        families = [
            [_dsa_real(shape, mode, dtype) for shape in augmented for mode in "SM" for dtype in dtypes]
            + [_dsa_synthetic((shape[0], 2 if smoke else 10, shape[2])) for shape in augmented],
            [_norm_relu_pool(shape, *how, back) for shape in normed for how in layouts[shape] for back in both],
            [_conv_norm_relu_pool(shape, *how) for shape in fused for how in ways]
            + [_trained_block(shape, dtype) for shape in fused for dtype in dtypes],
            [_norm_relu_pool_mean((2, 4, 8, 8) if smoke else (10, 256, 128, 8), dtype) for dtype in dtypes],
            [_class_mean_difference(shape, ragged, dtype) for shape, ragged in matched for dtype in dtypes],
            [_uniform(*((8, 64) if smoke else (75, 4096)))],  # the parameters of ConvNet-3
            [_draw(*((4, 32, 8) if smoke else (10, 5000, 256)))],
        ]
        return [case for turn in itertools.zip_longest(*families) for case in turn if case is not None]


def _with_gradient(function: Callable[..., Tensor]) -> Callable[..., Any]:
    """The function of x and more or, given a gradient between them, the function and the gradients that are wanted."""

    def run(x: Tensor, grad: Tensor | None = None, *more: Tensor) -> Any:
        out = function(x, *more)
        wanted = [tensor for tensor in (x, *more) if tensor.requires_grad]
        return out if grad is None else (out, *torch.autograd.grad(out, wanted, grad))

    return run


def _sums(n: int) -> float:
    """Twice the relative error of n like values added one by one in float32: partial sums, rounded at random."""
    return max(EPS, math.sqrt(n) / 3 * EPS)


def _key() -> Tensor:
    return torch.randint(1 << 31, (2,))


def _table(rows: Tensor, size: int, mode: Any = "S") -> Tensor:
    return Strategy.parse(DSA_STRATEGY, mode).draw(_key(), rows, (size, size))[0]


def _dsa_real(shape: Shape, mode: str, dtype: torch.dtype) -> Case:
    size, n, pixels, rows, group = _batch(shape)
    mean, std = (torch.full((3,), value) for value in (0.5, 0.25))

    def draw() -> Arguments:
        pool = torch.randint(256, (2 * n, 3, size, size), dtype=torch.uint8)
        return pool, _table(rows, size, mode), torch.randint(2 * n, (n,))

    def run(pool: Tensor, table: Tensor, index: Tensor) -> Tensor:
        return kernels.dsa(pool, table, group, index=index, mean=mean, std=std, dtype=dtype, channels_last=True)

    def eager(pool: Tensor, table: Tensor, index: Tensor) -> Tensor:
        if table.dtype == torch.float64:  # asks for the exact result
            wide = (pool.double() / 255 - mean.double()[:, None, None]) / std.double()[:, None, None]
            return augmentation.dsa(wide, table, group, index, None, None, table.dtype, True)
        return augmentation.dsa(pool, table, group, index, mean, std, dtype, True)

    name = f"dsa {mode} real {n}×3×{size}² {_NAMES[dtype]}"
    return Case(name, draw, run, eager, pixels * (1 + dtype.itemsize), pixels * _DSA_FLOPS[mode], _DSA_ROUNDING * size)


def _dsa_synthetic(shape: Shape) -> Case:
    """The synthetic images, forward and back to the pixels."""
    size, n, pixels, rows, group = _batch(shape)

    def draw() -> Arguments:
        images, grad = (torch.randn(n, 3, size, size) for _ in range(2))
        return images.requires_grad_(), grad, _table(rows, size)

    run = _with_gradient(lambda images, table: kernels.dsa(images, table, group))
    eager = _with_gradient(lambda x, table: augmentation.dsa(x, table, group, None, None, None, x.dtype, False))
    name = f"dsa S synthetic {n}×3×{size}² fp32{_BACKWARD}"
    return Case(name, draw, run, eager, 16 * pixels, 2 * pixels * _DSA_FLOPS["S"], _DSA_ROUNDING * size)


def _batch(shape: Shape) -> tuple[int, int, int, Tensor, Tensor]:
    """Of (classes, images per class, size): the size, images, values, a row for each class, and that of each image."""
    classes, per_class, size = shape
    rows = torch.arange(classes)
    n = classes * per_class
    return size, n, 3 * n * size * size, rows, rows.repeat_interleave(per_class)


def _activations(shape: Shape, dtype: torch.dtype, last: bool, gradient: int) -> Arguments:
    """Images (n, channels, size) and, if `gradient` is not 0, a gradient of so many channels and half the size."""
    n, channels, size = shape
    shapes = [(n, channels, size, size), (n, gradient, size // 2, size // 2)][: 2 if gradient else 1]
    memory_format = torch.channels_last if last else torch.contiguous_format
    x, *grad = (torch.randn(one, dtype=dtype).to(memory_format=memory_format) for one in shapes)
    return x.requires_grad_(bool(gradient)), *grad


def _weight(width: int, channels: int, dtype: torch.dtype) -> Tensor:
    drawn: Tensor = (torch.rand(width, channels, 3, 3) - 0.5) / (9 * channels) ** 0.5
    return drawn.to(dtype, memory_format=torch.channels_last)


def _norm_relu_pool(shape: Shape, dtype: torch.dtype, last: bool, backward: bool) -> Case:
    n, channels, size = shape
    elements = n * channels * size * size
    return Case(
        f"norm_relu_pool {n}×{channels}×{size}² {_NAMES[dtype]} {'nhwc' if last else 'nchw'}{_BACKWARD * backward}",
        partial(_activations, shape, dtype, last, channels * backward),
        _with_gradient(kernels.norm_relu_pool),
        _with_gradient(layers),
        # Forward: x in, a quarter out; backward: x and a quarter in, x out.
        int(elements * dtype.itemsize * (3.5 if backward else 1.25)),
        # Mean, centred squares, scaling, ReLU and pooling; backward, two sums more and their products.
        elements * (24 if backward else 8),
        rounding=3 * EPS,  # six roundings in a row, two of them before the ReLU: the subtracted mean and the scaling
        relu=2 * EPS * backward,
    )


def _conv_norm_relu_pool(shape: Shape, dtype: torch.dtype, backward: bool, twice: bool) -> Case:
    n, channels, width, size = shape
    torch.manual_seed(1)
    weight = _weight(width, channels, dtype)
    computed_twice = lambda x, weight: torch.ops.fastdm.conv_norm_relu_pool(x, weight, None, None, 1, 1e-5, False)[0]  # noqa: E731
    way = _BACKWARD * backward + ", computed twice" * twice
    return Case(
        f"conv_norm_relu_pool {n}×{channels}→{width}×{size}² {_NAMES[dtype]}{way}",
        partial(_activations, (n, channels, size), dtype, True, width * backward),
        _with_gradient(lambda x: (computed_twice if twice else kernels.conv_norm_relu_pool)(x, weight)),
        _with_gradient(lambda x: layers(F.conv2d(x, weight.to(x.dtype), padding=1))),
        dtype.itemsize * (1 + backward) * (n * width * (size // 2) ** 2 + n * channels * size**2),
        (1 + backward) * 2 * 9 * channels * n * width * size**2,
        rounding=1e-5,  # three times that of Winograd's F(4×4, 3×3), relative to the deviation of its output
        relu=3e-6 * backward,
    )


def _trained_block(shape: Shape, dtype: torch.dtype) -> Case:
    """A block as training has it: with gradients to weights, scale and shift, and to x unless that is the data."""
    n, channels, width, size = shape
    data = channels <= 3

    def draw() -> Arguments:
        x, grad = _activations((n, channels, size), dtype, True, width)
        scale, shift = (torch.rand(width) + least for least in (0.5, -0.5))
        parameters = (values.requires_grad_() for values in (_weight(width, channels, dtype), scale, shift))
        return x.requires_grad_(not data), grad, *parameters

    def eager(x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, x.dtype == torch.bfloat16):
            return layers(F.conv2d(x, weight, padding=1), scale, shift)

    images, pooled = n * channels * size**2, n * width * (size // 2) ** 2
    return Case(
        f"conv_norm_relu_pool trained {n}×{channels}→{width}×{size}² {_NAMES[dtype]}{_BACKWARD}",
        draw,
        _with_gradient(kernels.conv_norm_relu_pool),
        _with_gradient(eager),
        dtype.itemsize * (2 * pooled + (2 if data else 3) * images + 2 * 9 * channels * width),
        (2 if data else 3) * 2 * 9 * channels * n * width * size**2,
        rounding=1e-5,  # as above
        # In bfloat16 the convolution's result is rounded to 8 bits: by up to eps / 2, a quarter of it on average.
        relu=3e-6 if dtype == torch.float32 else torch.finfo(dtype).eps / 4,
    )


def _means(x: Tensor, classes: int) -> Tensor:
    """Means of classes of one size."""
    return x.view(classes, -1, x.shape[1]).mean(1, dtype=working_dtype(x.dtype))


def _norm_relu_pool_mean(shape: Shape, dtype: torch.dtype) -> Case:
    classes, per_class, channels, size = shape
    n = classes * per_class
    offsets = torch.arange(classes + 1) * per_class

    return Case(
        f"norm_relu_pool_mean {n}×{channels}×{size}² {_NAMES[dtype]} nhwc, {classes} classes",
        partial(_activations, (n, channels, size), dtype, True, 0),
        lambda x: kernels.norm_relu_pool_mean(x, offsets),
        lambda x: _means(layers(x).flatten(1), classes),
        classes * channels * (size // 2) ** 2 * 4 + n * channels * size * size * dtype.itemsize,
        8 * n * channels * size**2,
        rounding=3 * EPS + _sums(per_class),
    )


def _class_mean_difference(shape: Shape, ragged: bool, dtype: torch.dtype) -> Case:
    classes, per_class, ipc, features = shape
    counts = [per_class - (c % per_class) * ragged for c in range(classes)]
    real_offsets = torch.tensor([0, *itertools.accumulate(counts)])
    synthetic_offsets = torch.arange(classes + 1) * ipc
    n, m = sum(counts), classes * ipc

    def draw() -> Arguments:
        real, synthetic = (torch.rand(images, features, dtype=dtype) for images in (n, m))
        return real, synthetic.requires_grad_()

    def run(real: Tensor, synthetic: Tensor) -> Arguments:
        loss = kernels.class_mean_difference(real, synthetic, real_offsets, synthetic_offsets)
        return loss, torch.autograd.grad(loss, synthetic)[0]

    def eager(real: Tensor, synthetic: Tensor) -> Arguments:
        # Those of classes of several sizes are summed along the offsets.
        means = class_means(real.to(working_dtype(real.dtype)), real_offsets) if ragged else _means(real, classes)
        loss = (means - _means(synthetic, classes)).square().sum()
        return loss, torch.autograd.grad(loss, synthetic)[0]

    sizes = f"{classes}×{'≤' * ragged}{per_class} and {classes}×{ipc} of {features} {_NAMES[dtype]}"
    return Case(
        f"class_mean_difference {sizes}{_BACKWARD}",
        draw,
        run,
        eager,
        (n + 2 * m) * features * dtype.itemsize,
        (n + 2 * m) * features,
        # The means of uniform values are 1/2 and differ by √((1/per_class + 1/ipc) / 12).
        rounding=_sums(per_class) * 0.5 / math.sqrt((1 / per_class + 1 / ipc) / 12),
    )


def _uniform(rows: int, n: int) -> Case:
    return _of_key("uniform", f"{rows}×{n}", 4 * rows * n, rows=torch.arange(rows), n=n, stream=3)


def _draw(classes: int, size: int, n: int) -> Case:
    options: Row = {"class_offsets": torch.arange(classes + 1) * size, "n": n, "classes": torch.arange(classes)}
    return _of_key("draw", f"{n} of {size} in {classes} classes", classes * n * 8, **options)


def _of_key(op: str, name: str, moved: int, **options: Any) -> Case:
    """An op that makes numbers out of a key."""
    run, eager = (partial(getattr(form, op), **options) for form in (kernels, random_numbers))
    return Case(f"{op} {name}", lambda: (_key(),), run, eager, moved, 0, rounding=None)


# --- the measurement -------------------------------------------------------------------------------------------------


def measure(case: Case, device: torch.device, copy_peak: float | None, smoke: bool, compiled: bool) -> Row:
    """The row of a case: whether it is right and, if so, how long the op and its two baselines take."""
    values = case.make(0, device)
    row: Row = {"implementation": dispatch.first_form(case.op, device), "bytes": case.bytes, **check(case, values)}
    if case.flops:
        row["flops"] = case.flops
    if not row["correct"]:
        return row
    # What is compiled is what eager runs: nothing of ours is in it.
    functions = {"fastdm": case.run, "eager": case.eager}
    if compiled:
        torch._dynamo.reset()
        function = torch.compile(case.eager, dynamic=False)
        try:
            function(*values)
            functions["compile"] = function
        except Exception as error:  # The baseline's own trouble must not cost the row.
            row["note"] = f"torch.compile failed: {records.failure(error).splitlines()[0]}"
    if device.type == "cuda":
        row["peak_bytes"] = {}
        for name, function in functions.items():
            before = restart_peak(device)
            function(*values)
            row["peak_bytes"][name] = peak_memory(device) - before
    inputs = [case.make(seed, device) for seed in range(2 if smoke else rotation(case.bytes, device))]
    times = device_times(functions, inputs, device, seconds=0 if smoke else 0.5 * len(functions))
    row["seconds"] = records.spreads(times)
    median = {name: spread["median"] for name, spread in row["seconds"].items()}
    row["speedup"] = {name: median[name] / median["fastdm"] for name in median if name != "fastdm"}
    row["gb_per_s"] = case.bytes / median["fastdm"] / 1e9
    if copy_peak:
        row["percent_of_copy"] = 1e11 * row["gb_per_s"] / copy_peak
        if row["percent_of_copy"] > 100:
            row["note"] = "a copy also reads the lines that it overwrites; this mostly reads, or stays in the cache"
    return row


# --- tables and plots ------------------------------------------------------------------------------------------------


def _bandwidth(result: Result) -> Any:
    """Achieved bandwidth by size, under the line of the copy."""
    rows = [row for row in result["rows"] if "gb_per_s" in row]
    if not rows:
        return None
    drawn, (axes,) = plots.figure(result)
    _points(axes, rows, lambda row: (row["bytes"], row["gb_per_s"]))
    if copy := records.peaks(result["machine"]).get("copy"):
        axes.axhline(copy / 1e9, color=plots.LINE, lw=1, label="copy")
    plots.label(axes, "bytes that must move", "GB/s")
    return drawn


def _roofline(result: Result) -> Any:
    """FLOP/s by FLOPs per byte, of the kernels and of the whole iteration, under both peaks."""
    rows = [row for row in result["rows"] if "gb_per_s" in row and "flops" in row]
    limits = records.peaks(result["machine"])
    if not rows or not {"copy", "matmul bf16"} <= limits.keys():
        return None
    drawn, (axes,) = plots.figure(result)
    _points(
        axes, rows, lambda row: (row["flops"] / row["bytes"], row["flops"] / row["seconds"]["fastdm"]["median"] / 1e12)
    )
    for stage in records.same_machine(result["machine"], "waterfall"):
        if "tflop_per_s" in stage:
            place = (stage["flops"] / stage["least_bytes"], stage["tflop_per_s"])
            color = plots.OURS if stage["name"].startswith("fastdm") else plots.THEIRS
            axes.scatter(*place, marker="*", s=60, color=color)
            axes.annotate(stage["name"], place, xytext=(5, -3), textcoords="offset points", fontsize=6)
    copy, matmul = limits["copy"] / 1e12, limits["matmul bf16"] / 1e12
    ridge = matmul / copy
    axes.plot([0.1, ridge, 20 * ridge], [0.1 * copy, matmul, matmul], color=plots.LINE, lw=1)
    plots.label(axes, "FLOPs per byte that must move", "TFLOP/s")
    return drawn


def _points(axes: Any, rows: Sequence[Row], place: Callable[[Row], tuple[float, float]]) -> None:
    for op in dict.fromkeys(row["op"] for row in rows):
        axes.scatter(*zip(*(place(row) for row in rows if row["op"] == op), strict=True), s=18, label=op)


SUITE = Suite(
    "kernels",
    "Kernels",
    "Every op compared with eager PyTorch and torch.compile of it, in µs: median (p20–p80), cold cache, forward unless "
    "said. Bytes are the least that must move.",
    ("csrc", "kernels"),
    """
    op | name; form | implementation; µs | fastdm | µs
    GB/s | gb_per_s | ,.3g; % of copy | percent_of_copy | .0f
    × eager | speedup.eager | .2f; × compile | speedup.compile | .2f
    error; median error | median_error; memory, MB | peak_bytes.fastdm | .0f/1e6; note
    """,
    slower={"speedup.eager": "of eager", "speedup.compile": "of compile"},
    plots={"bandwidth": _bandwidth, "roofline": _roofline},
)


DRAM = Suite(
    "dram",
    "Bytes that the memory moves",
    "Counted by Nsight Compute in one call, from a cold cache, next to the least that must move.",
    ("kernels",),
    """
    op | name; kernels; least, MB | bytes | ,.1f/1e6; read, MB | read | ,.1f/1e6; written, MB | written | ,.1f/1e6
    × the least | times_least | .2f; note
    """,
)


def rows(options: Namespace, chosen: Iterable[Case]) -> Rows:
    copy_peak = records.peaks(machine.describe(options.device)).get("copy")
    compiled = not (options.no_compile or options.smoke)
    for case in within(chosen, options.seconds):
        row = {"name": case.name, "op": case.op}
        yield row, partial(measure, case, options.device, copy_peak, options.smoke, compiled)


def main() -> None:
    # run: what `dram` runs under Nsight Compute.
    parser = arguments.parser(__doc__, "--device", "--no-compile", what=("speed", "dram", "run"), seconds=600.0)
    parser.add_argument("--only", nargs="+", help="ops, such as dsa")
    options = parser.parse_args()
    device = options.device
    chosen = [case for case in cases(device, options.smoke) if case.op in (options.only or [case.op])]
    counted = [case for case in chosen if case.op not in ("uniform", "draw")]  # which make numbers, not move them
    if options.what == "run":
        dram.run_marked((partial(case.run, *case.make(0, device)) for case in counted), device)
        return
    if options.what == "dram":
        least = {case.name: case.bytes for case in counted}
        command = ["-m", "bench.kernels", "run", *sys.argv[2:]]
        records.record(DRAM, options, lambda _: dram.rows(command, least, device, options.seconds))
    else:
        records.record(SUITE, options, partial(rows, chosen=chosen))


if __name__ == "__main__":
    main()
