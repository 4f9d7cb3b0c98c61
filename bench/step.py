"""One iteration next to the public loop, by size: time, memory and error; and what `--compile` is worth.

    python -m bench.step [--precision fp32] [--only "CIFAR-10 ipc 1" …] [--seconds 1800] [--device cuda] [--smoke]
    python -m bench.step compile [--network ConvNetBN …] [--smoke]

The public loop runs as its users run it: float32, one class after the other, a new network and a permutation of each
class per iteration. Times are withheld unless the step's change of the images agrees with the same step in float64
through PyTorch's own layers. On a CPU, memory is the peak of a fresh process, and a second one times both loops with
glibc's malloc thresholds raised, so that it keeps large blocks.

compile: a step whose network torch.compile has fused, next to one as PyTorch runs it, in a process per network that
finds nothing in torch.compile's cache: most of the seconds of a first run all networks take alike.
"""

import ctypes
import dataclasses
import gc
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.baselines.public_step import PublicStep
from bench.harness import arguments, cells, machine, plots, records
from bench.harness.records import STEP, Recorder, Result, Row, Suite
from bench.harness.timer import apart, host_times, numbered, within
from bench.harness.workloads import CIFAR10, CPU, CPU_SIZES, GPU_SIZES, Workload
from fastdm.condensation.build import build_step
from fastdm.condensation.step import Step
from fastdm.data import Dataset
from fastdm.networks.architectures import network_names
from fastdm.system.device import chosen_backend, precision_context

NETWORKS = ("ConvNetBN", "ConvNetMP", "AlexNet")  # BatchNorm; max pooling; max pooling and no norm

_FLIPS = 0.4  # density of N(0, 1) at 0


def _tolerance(rounding: float) -> float:
    """For the error of a change of the images, in norm and relative to its own length.

    A normalised activation, of unit variance, errs by `rounding`, so that 2 · rounding · φ(0) of them come to the other
    side of a ReLU, where a gradient entry is wrong by itself: the root of three times that in three layers. Allowed is
    twice as much; plain PyTorch meets such values too.
    """
    return 2 * math.sqrt(3 * 2 * rounding * _FLIPS)


ROUNDING = {"fp32": 3e-6, "tf32": 2**-11, "bf16": 2**-8}
"""For fp32 that of Winograd's F(4×4, 3×3), some ten times that of a float32 sum; else that of the operands."""
MEDIAN_TOLERANCE = {"fp32": 2e-5, "tf32": _tolerance(2**-11), "bf16": _tolerance(2**-8)}
"""For the median over the images of each one's error. In fp32 most images (nine of ten in the worst of the cases) have
no activation on the other side of a ReLU, so that only rounding is left. A convolution adds 3e-6 to the features,
independently in each image, and 3e-6 to the gradient on its way back. The gradient starts at a difference of means over
images, in which 3/4 of the features' deviation is left (the rest all images share), so that their error counts 4/3. The
first convolution is not Winograd's, and errs far less: in four layers it makes √3 · 3e-6 · √(1 + (4/3)²) = 8.7e-6.
Allowed is twice that, rounded up. In tf32 and bf16 every image has such activations."""
COMPILE_TOLERANCE = 1e-2
"""For the difference of both steps' first changes of the images, in norm and relative to its length. The largest
roundings are those of PyTorch's statistics of BatchNorm, sums of n = 100 · 16² values one by one, whose mean is as
large as their deviation: partial sums rounded by 2^-24 leave √n/3 · 2^-24 = 3e-6 deviations. Of the activations,
3e-6 · 0.8 · φ(0) then come to the other side of a ReLU, of which half are on, and a gradient entry there is wrong by
itself: in three layers √(3 · 2 · 1e-6) = 2.4e-3. Allowed is four times that: a few of them decide, and behind max
pooling there are as many other winners again."""


# --- by size ---------------------------------------------------------------------------------------------------------


def build(
    work: Workload, dataset: Dataset, device: torch.device, dtype: torch.dtype, precision: str
) -> tuple[Step, Any]:
    """The package's step and its plan."""
    settings = work.settings(precision=precision).resolve(dataset, device)
    return build_step(dataset, settings, device, dtype, work.chunk_memory)


def check(work: Workload, device: torch.device, precision: str) -> Row:
    """How far the first change of the images is from the same step through PyTorch's own layers in float64, on a few
    real images."""
    few = dataclasses.replace(work, batch_real=min(4, work.batch_real))
    dataset = few.dataset(device)
    changes = []
    for backend, exact in (("reference", True), ("auto", False)):
        with chosen_backend(backend), precision_context(few.settings(precision=precision).precision, device) as dtype:
            step = build(few, dataset, device, torch.float64 if exact else dtype, precision)[0]
            step(0)
        changes.append(step.velocity.double())
    return compared(changes[1], changes[0], precision)


def compared(ours: Tensor, exact: Tensor, precision: str) -> Row:
    """Both errors of a change of the images, float64, with what they may be; whether they are within."""
    difference = (ours - exact).flatten(1)
    row: Row = {
        "error": float(difference.norm() / exact.norm()),
        "tolerance": _tolerance(ROUNDING[precision]),
        "median_error": float((difference.norm(dim=1) / exact.flatten(1).norm(dim=1)).median()),
        "median_tolerance": MEDIAN_TOLERANCE[precision],
    }
    return row | {"correct": row["error"] <= row["tolerance"] and row["median_error"] <= row["median_tolerance"]}


def ours(work: Workload, device: torch.device, precision: str) -> tuple[Callable[[], object], Row]:
    """The package's step after its first iteration, and what that took compared with the plan."""
    dataset, tiny = work.dataset(device), work.smoke()
    flags = partial(precision_context, work.settings(precision=precision).precision, device)
    with flags() as dtype:
        build(tiny, tiny.dataset(device), device, dtype, precision)[0](0)  # loads what is loaded once
        before = machine.restart_peak(device)
        step, plan = build(work, dataset, device, dtype, precision)
        step(0)
        about: Row = {
            "peak_bytes": machine.peak(device) - before + plan.pool_bytes,  # The pool was there before.
            "planned_bytes": plan.pool_bytes + plan.images_bytes + plan.real_bytes + plan.synthetic_bytes,
            "chunks": -(-work.classes // plan.chunk_classes),
        }
        if device.type == "cuda":
            about |= _captured(step)
    return numbered(step, flags, 1), about


def _captured(step: Step) -> Row:
    """Whether the step runs as a CUDA graph, as `condense` would have it."""
    try:
        step.capture()
    except RuntimeError as error:
        return {"graph": False, "capture_failure": str(error)[:200]}
    return {"graph": True}


def public(work: Workload, device: torch.device) -> Callable[[], object]:
    return numbered(PublicStep(work.dataset(device), work.settings(), device), nullcontext, 0)


def cpu_times(work: Workload, precision: str, seconds: float, raised: bool) -> Row:
    """Seconds per iteration of both loops, interleaved; raised: glibc keeps blocks of any size."""
    if raised:
        libc, m_mmap_threshold, m_trim_threshold = ctypes.CDLL(None), -3, -1
        libc.mallopt(m_mmap_threshold, 1 << 30)
        libc.mallopt(m_trim_threshold, -1)
    functions: dict[str, Callable[[], object]] = {}
    functions["fastdm"], about = ours(work, CPU, precision)
    if work.chunk_memory is None:
        functions["public"] = public(work, CPU)
    return about | {"seconds": records.spreads(host_times(functions, CPU, rounds=7, seconds=seconds, warm_up=0))}


def cpu_peak(work: Workload, precision: str, of: str) -> int:
    """Peak MiB of this process after two iterations of either loop."""
    run = ours(work, CPU, precision)[0] if of == "fastdm" else public(work, CPU)
    run()
    run()
    return round(machine.peak(CPU) / 2**20)


def gpu_times(work: Workload, device: torch.device, precision: str, seconds: float) -> Row:
    """Seconds per iteration of both loops, one after the other: each needs the memory."""
    run, row = ours(work, device, precision)
    found = host_times({"fastdm": run}, device, rounds=10, seconds=seconds)
    del run
    gc.collect()  # A recorded step refers to itself.
    row["reserved_bytes"] = torch.cuda.memory_reserved(device)
    torch.cuda.empty_cache()
    try:
        found |= host_times({"public": public(work, device)}, device, rounds=3, seconds=seconds, warm_up=1)
    except torch.cuda.OutOfMemoryError:
        row["public"] = "out of memory"
    torch.cuda.empty_cache()
    return row | {"seconds": records.spreads(found)}


def measure(work: Workload, device: torch.device, precision: str, limit: float) -> Row:
    """A row: whether the step is right and, if so, time and memory."""
    on_cpu = device.type == "cpu"
    row: Row = apart(check, work, device, precision) if on_cpu else check(work, device, precision)
    if not row["correct"]:
        return row
    if on_cpu:
        row |= apart(cpu_times, work, precision, limit, False)
        row["load"] = machine.load()
        row["peak_mib"] = {loop: apart(cpu_peak, work, precision, loop) for loop in row["seconds"]}
        if "public" in row["seconds"]:
            raised = apart(cpu_times, work, precision, limit, True)["seconds"]
            row["seconds"] |= {f"{loop} raised": spread for loop, spread in raised.items()}
    else:
        row |= gpu_times(work, device, precision, limit)
    seconds = row["seconds"]
    row["ratio"] = {
        kind: seconds[f"public{suffix}"]["median"] / seconds[f"fastdm{suffix}"]["median"]
        for kind, suffix in (("public", ""), ("raised", " raised"))
        if f"public{suffix}" in seconds
    }
    return row | work.work(precision, seconds["fastdm"]["median"], machine.describe(device))


# --- what --compile is worth -----------------------------------------------------------------------------------------


def measure_compiled(work: Workload, seconds: float) -> Row:
    """Both steps of a network; in a process of its own, whose cache of compiled code it sets."""
    eager, compiled = (build(work, work.dataset(CPU), CPU, torch.float32, "fp32")[0] for _ in range(2))
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        # RuntimeError: there is no C++ compiler, or torch.compile cannot take this network.
        row: Row = {"compile_seconds": compiled.compile()}
    for step in (eager, compiled):
        step(0)
    row["error"] = float((compiled.velocity - eager.velocity).norm() / eager.velocity.norm())
    row["tolerance"] = COMPILE_TOLERANCE
    row["correct"] = row["error"] <= COMPILE_TOLERANCE
    if row["correct"]:
        functions = {"eager": numbered(eager, nullcontext, 1), "compiled": numbered(compiled, nullcontext, 1)}
        row |= gain(host_times(functions, CPU, seconds=seconds, warm_up=0), row["compile_seconds"])
    return row


def gain(found: dict[str, list[float]], compile_seconds: float) -> Row:
    """Times, their ratio, and the iterations that save as much as compiling took, if any do."""
    seconds = records.spreads(found)
    eager, compiled = seconds["eager"]["median"], seconds["compiled"]["median"]
    row: Row = {"seconds": seconds, "ratio": eager / compiled}
    return row | ({"paid_after": math.ceil(compile_seconds / (eager - compiled))} if compiled < eager else {})


# --- tables and plots ------------------------------------------------------------------------------------------------


def _quote(rows: Sequence[Row]) -> str:
    """The four columns that a newcomer needs, and what raised malloc thresholds change."""
    timed = [row for row in rows if row.get("ratio")]
    ours, public = (cells.number(f"seconds.{loop}.median", "{:,.0f}", 1e-3) for loop in ("fastdm", "public"))
    columns = [("size", cells.text("name")), ("fastdm, ms", ours), ("public, ms", public)]
    quoted = cells.table([*columns, ("×", cells.number("ratio.public", "{:.1f}"))], timed)
    if raised := [row["ratio"]["raised"] for row in timed if "raised" in row["ratio"]]:
        quoted += (
            f"\n\nWith larger glibc malloc thresholds for both: {min(raised):.1f} to {max(raised):.1f} times as fast."
        )
    return quoted


def _times(result: Result) -> Any:
    rows = [row for row in result["rows"] if row.get("ratio")]
    if not rows:
        return None
    series = [
        plots.Series(loop, [1e3 * row["seconds"][loop]["median"] for row in rows], color, texts)
        for loop, color, texts in (
            ("public", plots.THEIRS, ()),
            ("public raised", plots.OTHER, ()),
            ("fastdm", plots.OURS, [f"{row['ratio']['public']:.1f}×" for row in rows]),
        )
        if all(loop in row["seconds"] for row in rows)
    ]
    values = [value for one in series for value in one.values]
    names = [row["name"] for row in rows]
    return plots.bars(result, names, series, "ms per iteration", limits=(min(values) / 5, max(values) * 5))[0]


def _classes(result: Result) -> Any:
    """Time and peak memory against the number of classes, at a fixed chunk, and the line of proportion."""
    rows = [row for row in result["rows"] if row["name"].startswith("scaling") and "seconds" in row]
    if len(rows) < 2:
        return None
    figure, (time, peak) = plots.figure(result, 2, (8, 3))
    counts = [row["classes"] for row in rows]
    medians = [row["seconds"]["fastdm"]["median"] * 1e3 for row in rows]
    time.plot(counts, medians, "o-", color=plots.OURS, label="fastdm")
    time.plot([0, counts[-1]], [0, medians[-1]], "--", color=plots.LINE, lw=0.8, label="in proportion")
    time.legend()
    peak.plot(counts, [row["peak_mib"]["fastdm"] for row in rows], "o-", color=plots.OURS)
    for axes, what in ((time, "ms per iteration"), (peak, "peak memory of the process, MiB")):
        axes.set(xlabel="classes", ylabel=what, xlim=(0, None), ylim=(0, None))
    return figure


def _memory(result: Result) -> Any:
    rows = [row for row in result["rows"] if "peak_bytes" in row]
    if not rows:
        return None
    planned, peak = ([row[key] / 1e9 for row in rows] for key in ("planned_bytes", "peak_bytes"))
    series = [plots.Series("planned", planned, plots.THEIRS), plots.Series("peak", peak, plots.OURS)]
    return plots.bars(result, [row["name"] for row in rows], series, "GB")[0]


SIZES = Suite(
    "step",
    "An iteration",
    "In ms, median (p20–p80), compared with the public loop; on a CPU interleaved in one process. “raised”: both run "
    "with larger glibc malloc thresholds. “process” is the peak memory of a fresh process; “peak” is that of the step "
    "alone, as the plan made before the first iteration counts it. The errors are those of the first change of the "
    "images, compared with float64: of the whole, which activations on the other side of a ReLU decide, and the median "
    "of the single images', which rounding does.",
    STEP,
    [
        ("size", cells.text("name")),
        ("classes", cells.text("classes")),
        ("real images per class", cells.text("batch_real")),
        ("precision", cells.text("precision")),
        ("ms", cells.spread("fastdm", 1e-3)),
        ("public, ms", cells.spread("public", 1e-3)),
        ("× public", cells.number("ratio.public", "{:.1f}")),
        ("raised, ms", cells.spread("fastdm raised", 1e-3)),
        ("public raised, ms", cells.spread("public raised", 1e-3)),
        ("× public, raised", cells.number("ratio.raised", "{:.1f}")),
        ("% of matmul peak", cells.number("percent_of_matmul", "{:.0f}")),
        ("process, MiB", cells.number("peak_mib.fastdm", "{:,.0f}")),
        ("public process, MiB", cells.number("peak_mib.public", "{:,.0f}")),
        ("peak, GB", cells.number("peak_bytes", "{:.2f}", 1e9)),
        ("planned, GB", cells.number("planned_bytes", "{:.2f}", 1e9)),
        ("chunks", cells.text("chunks")),
        ("graph", cells.text("graph")),
        ("error", cells.error),
        ("median error", cells.median_error),
        ("note", cells.text("note")),
    ],
    quote=_quote,
    plots={"times": _times, "classes": _classes, "memory": _memory},
)
COMPILE = Suite(
    "step_compile",
    "torch.compile",
    "What `--compile` makes of networks whose layers the package does not fuse: ms per iteration of CIFAR-10's size, "
    "10 images per class, median (p20–p80), interleaved without and with it; the seconds that a first run compiles, "
    "and the iterations that save as much. The error is the difference of both first changes of the images.",
    STEP,
    [
        ("network", cells.text("name")),
        ("real images per class", cells.text("batch_real")),
        ("ms", cells.spread("eager", 1e-3)),
        ("compiled, ms", cells.spread("compiled", 1e-3)),
        ("× as fast", cells.number("ratio", "{:.2f}")),
        ("compiling, s", cells.number("compile_seconds", "{:.1f}")),
        ("has paid after", cells.number("paid_after", "{:,.0f} iterations")),
        ("error", cells.error),
    ],
    slower=lambda row: f"{1 / row['ratio']:.2f}× the time without it" if row.get("ratio", 1) < 1 else "",
)


def main() -> None:
    parser = arguments.parser(__doc__, device=True, seconds=1800.0)
    parser.add_argument("what", nargs="?", choices=("sizes", "compile"), default="sizes")
    parser.add_argument("--only", nargs="+", default=[""], help="sizes, by the beginning of their names")
    parser.add_argument("--precision", choices=ROUNDING, help="default: what condense would take on this device")
    parser.add_argument("--network", choices=network_names(), nargs="+", default=NETWORKS, help="of `compile`")
    options = parser.parse_args()
    device, tiny, smoke = arguments.device_of(options), CIFAR10.smoke(), options.smoke
    if options.what == "compile":
        recorder = Recorder(COMPILE, {"smoke": smoke, "precision": "fp32"})
        for name in options.network:
            work = dataclasses.replace(tiny if smoke else CIFAR10, network=name, batch_real=64, size=32)
            row: Row = {"name": name, "batch_real": work.batch_real, "ipc": work.ipc}
            recorder.add(row, partial(apart, measure_compiled, work, 0 if smoke else min(12.0, options.seconds)))
        return
    sizes = GPU_SIZES if device.type == "cuda" else CPU_SIZES
    chosen = [size for size in sizes if size.name.startswith(tuple(options.only))]
    precision = options.precision or str(tiny.settings().resolve(tiny.dataset(CPU), device).precision)
    recorder = Recorder(SIZES, {"smoke": smoke, "precision": precision}, options.device)
    for size in within(chosen, options.seconds):
        # Two timings, and as much again for the checks and processes.
        work, limit = (size.smoke(), 0.0) if smoke else (size, options.seconds / (4 * len(chosen)))
        recorder.add(dataclasses.asdict(work), partial(measure, work, device, precision, limit))


if __name__ == "__main__":
    main()
