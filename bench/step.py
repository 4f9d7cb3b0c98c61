"""One iteration by size, compared with the public loop and a compiled one: time, memory and error.

    python -m bench.step [--precision fp32] [--only "CIFAR-10 ipc 1" …] [--seconds 1800]
    python -m bench.step recipes|compile [--network ConvNetBN …]

The public loop runs as its users run it: float32, one class after the other, a new network and a permutation of each
class per iteration. The compiled one is what one would write instead. Times are withheld unless the step's change of
the images agrees with the same step in float64 through PyTorch's own layers. On a CPU, a second process times the loops
with glibc's malloc thresholds raised, so that it keeps large blocks.

compile: a step whose network torch.compile has fused, compared with one as PyTorch runs it, in a process per network
that finds nothing in torch.compile's cache: most of the seconds of a first run all networks take alike.
"""

import dataclasses
import gc
import math
import os
import tempfile
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from bench.harness import arguments, cells, machine, plots, records
from bench.harness.loops import LOSS_TOLERANCE, ROUNDING, build, check, make
from bench.harness.records import STEP, Result, Row, Rows, Suite
from bench.harness.timer import apart, host_times, numbered, race, within
from bench.harness.workloads import CIFAR10, CPU, CPU_SIZES, GPU_SIZES, Workload, restart_peak
from fastdm.condensation.recipes import recipe_settings
from fastdm.networks.architectures import network_names
from fastdm.runs.recording import peak_memory
from fastdm.system.device import fastest_precision, precision_context

Loop = Callable[[], object]

NETWORKS = ("ConvNetBN", "ConvNetMP", "AlexNet")  # BatchNorm; max pooling; max pooling and no norm
RECIPE_TARGET = 1.1  # times the plain step that one of a recipe may take

RAISED = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
"""With these, glibc keeps blocks of any size."""
RATIOS = {
    "public": ("public", "fastdm"),
    "raised": ("public raised", "fastdm raised"),
    "compiled": ("compiled", "fastdm"),
    "compiled_raised": ("compiled raised", "fastdm raised"),
}

COMPILE_TOLERANCE = 1e-2
"""For the difference of both steps' first changes of the images, in norm and relative to its length. The largest
roundings are those of PyTorch's statistics of BatchNorm, sums of n = 100 · 16² values one by one, whose mean is as
large as their deviation: partial sums rounded by 2^-24 leave √n/3 · 2^-24 = 3e-6 deviations. Of the activations,
3e-6 · 0.8 · φ(0) then come to the other side of a ReLU, of which half are on, and a gradient entry there is wrong by
itself: in three layers √(3 · 2 · 1e-6) = 2.4e-3. Allowed is four times that: a few of them decide, and behind max
pooling there are as many other winners again."""


# --- the loops -------------------------------------------------------------------------------------------------------


def ours(work: Workload, device: torch.device, precision: str) -> tuple[Loop, Row]:
    """The package's step after its first iteration, and what that took compared with the plan."""
    dataset, tiny = work.dataset(device), work.smoke()
    flags = partial(precision_context, work.settings(precision=precision).precision, device)
    with flags() as dtype:
        build(tiny, tiny.dataset(device), device, dtype, precision)[0](0)  # loads what is loaded once
        before = restart_peak(device)
        step, plan = build(work, dataset, device, dtype, precision)
        step(0)
        about: Row = {
            "peak_bytes": peak_memory(device) - before + plan.pool_bytes,  # The pool was there before.
            "planned_bytes": plan.pool_bytes + plan.images_bytes + plan.real_bytes + plan.synthetic_bytes,
            "chunks": -(-work.classes // plan.chunk_classes),
        }
        if device.type == "cuda":  # As a CUDA graph, which `condense` records too.
            reason = step.capture()
            about |= {"graph": False, "note": reason} if reason else {"graph": True}
    return numbered(flags()(step), 1), about


def loop(name: str, work: Workload, device: torch.device, precision: str) -> tuple[Loop, Row]:
    """A loop to be timed, and what is known of it. Raises RuntimeError if the first loss of the compiled one is off."""
    if name == "fastdm":
        return ours(work, device, precision)
    dataset = work.dataset(device)
    if name == "public":
        return numbered(make("public", work, dataset, device, precision)), {}
    call, ours_call = (make(kind, work, dataset, device, precision) for kind in ("compiled", "fastdm"))
    error = abs(float(call(0)) / float(ours_call(0)) - 1)
    if not error <= 2 * LOSS_TOLERANCE[precision]:  # Each may be off by once that.
        raise RuntimeError(f"its loss is off by {error:.1e}")
    return numbered(call, 1), {}


# --- time and memory -------------------------------------------------------------------------------------------------


def times(work: Workload, device: torch.device, precision: str, names: Sequence[str], seconds: float) -> Row:
    """Seconds per iteration of the loops: interleaved on a CPU, one by one on a GPU, whose memory each needs."""
    row: Row = {}
    found: dict[str, list[float]] = {}
    on_gpu = device.type == "cuda"
    # A core that others slow down now and then does so to each sample of a loop that takes seconds: samples of a short
    # one last as long, or they would be of quick or of slow moments.
    sample = 0.02 if on_gpu else min(1.0, seconds / 50)
    for group in [[name] for name in names] if on_gpu else [names]:
        loops: dict[str, Loop] = {}
        for name in group:
            try:
                loops[name], about = loop(name, work, device, precision)
                if on_gpu:
                    loops[name]()  # Where the memory does not suffice, it is for this.
                row |= about
            except Exception as error:  # A baseline's own trouble must not cost the row.
                if name == "fastdm":
                    raise
                loops.pop(name, None)
                row["note"] = f"{name} failed: {records.failure(error).splitlines()[0]}"
        found |= host_times(loops, device, rounds=7, seconds=seconds, warm_up=2, sample=sample)
        if on_gpu:
            loops.clear()
            gc.collect()  # A recorded step refers to itself.
            torch.cuda.empty_cache()
    return row | {"seconds": records.spreads(found)}


def cpu_peak(work: Workload, precision: str, name: str) -> int:
    """Peak MiB of this process after two iterations of a loop."""
    run = loop(name, work, CPU, precision)[0]
    run()
    run()
    return round(peak_memory(CPU) / 2**20)


def measure(work: Workload, device: torch.device, precision: str, limit: float, baselines: Sequence[str]) -> Row:
    """A row: whether the step is right and, if so, time and memory."""
    names = ["fastdm", *baselines]
    on_cpu = device.type == "cpu"
    row: Row = apart(check, work, device, precision) if on_cpu else check(work, device, precision)
    if not row["correct"]:
        return row
    if on_cpu:
        row |= apart(times, work, device, precision, names, limit)
        row["peak_mib"] = {name: apart(cpu_peak, work, precision, name) for name in names if name != "compiled"}
        raised = apart(times, work, device, precision, names, limit, **RAISED)["seconds"]
        row["seconds"] |= {f"{name} raised": spread for name, spread in raised.items()}
    else:
        row |= times(work, device, precision, names, limit)
    medians = {name: spread["median"] for name, spread in row["seconds"].items()}
    row["ratio"] = {key: medians[theirs] / medians[mine] for key, (theirs, mine) in RATIOS.items() if theirs in medians}
    return row | work.work(precision, medians["fastdm"], machine.describe(device))


def baselines(work: Workload, no_compile: bool) -> list[str]:
    """What a size is compared with. Compiling takes a minute, and one ipc shows it; all of a larger set in one batch
    would not fit into memory."""
    small = work.ipc == CIFAR10.ipc and work.size <= CIFAR10.size
    return ["public", "compiled"] if small and not no_compile else ["public"]


# --- recipes, and torch.compile of the network -----------------------------------------------------------------------


def recipes(work: Workload) -> dict[str, tuple[Workload, Workload]]:
    """By name, the step of a recipe and the plain step that it is compared with."""
    settings = recipe_settings("trained", work.smoke().dataset(CPU), work.ipc)
    mode_m = {name: getattr(settings, name) for name in ("strategy", "aug_mode")}
    trained = {name: getattr(settings, name) for name in ("partition", "networks", "ce_weight")}

    def pair(passes: int, plain_options: dict[str, Any], options: dict[str, Any]) -> tuple[Workload, Workload]:
        return (
            dataclasses.replace(work, options=plain_options | options),
            dataclasses.replace(work, ipc=passes * 4 * work.ipc, options=plain_options),
        )

    # The recipe's cross-entropy is that of a later snapshot, through which the images pass as well.
    return {
        "partition 2": pair(1, {}, {"partition": 2}),
        "recipe “trained”": pair(2, mode_m, trained),
        "recipe “trained”, ce_ahead 0": pair(1, mode_m, trained | {"ce_ahead": 0}),
    }


def measure_recipe(work: Workload, plain: Workload, device: torch.device, precision: str, seconds: float) -> Row:
    row = check(work, device, precision)
    if row["correct"]:
        loops = {name: ours(one, device, precision)[0] for name, one in (("fastdm", work), ("plain", plain))}
        row |= race(loops, device, ("fastdm", "plain"), seconds=seconds, warm_up=2)
        row |= {"target": RECIPE_TARGET, "met": row["ratio"] <= RECIPE_TARGET}
    return row


def measure_compiled(work: Workload, seconds: float) -> Row:
    """Both steps of a network; in a process of its own, whose cache of compiled code it sets."""
    eager, fused = (build(work, work.dataset(CPU), CPU, torch.float32, "fp32")[0] for _ in range(2))
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        # RuntimeError: there is no C++ compiler, or torch.compile cannot take this network.
        row: Row = {"compile_seconds": fused.compile()}
    for step in (eager, fused):
        step(0)
    row |= records.judged(float((fused.velocity - eager.velocity).norm() / eager.velocity.norm()), COMPILE_TOLERANCE)
    if row["correct"]:
        loops = {"eager": numbered(eager, 1), "compiled": numbered(fused, 1)}
        row |= race(loops, CPU, ("eager", "compiled"), seconds=seconds, warm_up=1)
        saved = row["seconds"]["eager"]["median"] - row["seconds"]["compiled"]["median"]
        if saved > 0:  # Compiling pays once so many iterations have saved its time.
            row["paid_after"] = math.ceil(row["compile_seconds"] / saved)
    return row


# --- tables and plots ------------------------------------------------------------------------------------------------


def _quote(rows: Sequence[Row]) -> str:
    """The four columns that a newcomer needs, and the other baselines in a sentence each."""
    timed = [row for row in rows if row.get("ratio")]
    ours, public = (f"{loop}, ms | {loop} | median ms" for loop in ("fastdm", "public"))
    parts = [cells.table(f"size | name; {ours}; {public}; × | ratio.public | .1f", timed)]
    for key, baseline in (
        ("raised", "With larger glibc malloc thresholds for both"),
        ("compiled", "Compared with all classes in one batch through torch.compile"),
    ):
        if ratios := sorted(row["ratio"][key] for row in timed if key in row["ratio"]):
            ends = dict.fromkeys(f"{ratio:.1f}" for ratio in (ratios[0], ratios[-1]))
            parts.append(f"{baseline}: {' to '.join(ends)} times as fast.")
    return "\n\n".join(parts)


def _times(result: Result) -> Any:
    colors = {"public": plots.THEIRS, "public raised": plots.OTHER, "compiled": plots.LINE}
    series = [plots.Series(name, f"seconds.{name}.median", color) for name, color in colors.items()]
    times = partial(cells.cell, key="ratio.public", form="{:.1f}×")
    series.append(plots.Series("fastdm", "seconds.fastdm.median", plots.OURS, times))
    return plots.bars(result, result["rows"], series, "ms per iteration", unit=1e-3, log=True)


SIZES = Suite(
    "step",
    "An iteration",
    "In ms, median (p20–p80), compared with the public loop and with all classes in one batch through torch.compile; "
    "on a CPU interleaved in one process. “raised”: all of them with larger glibc malloc thresholds. “process” is the "
    "peak memory of a fresh process; “peak” is that of the step alone, as the plan made before the first iteration "
    "counts it. The errors are those of the first change of the images, compared with float64: of the whole, which "
    "activations on the other side of a ReLU decide, and the median of the single images', which rounding does.",
    STEP,
    """
    size | name; classes; real images per class | batch_real; precision
    ms | fastdm | ms; public, ms | public | ms; × public | ratio.public | .1f
    compiled, ms | compiled | ms; × compiled | ratio.compiled | .1f
    raised, ms | fastdm raised | ms; public raised, ms | public raised | ms; × public, raised | ratio.raised | .1f
    compiled raised, ms | compiled raised | ms; × compiled, raised | ratio.compiled_raised | .1f
    % of matmul peak | percent_of_matmul | .0f
    process, MiB | peak_mib.fastdm | ,.0f; public process, MiB | peak_mib.public | ,.0f
    peak, GB | peak_bytes | .2f/1e9; planned, GB | planned_bytes | .2f/1e9; chunks; graph
    error; median error | median_error; note
    """,
    quoted=_quote,
    plots={"times": _times},
)
RECIPES = Suite(
    "step_recipes",
    "An iteration of the recipes",
    "In ms, median (p20–p80), interleaved with the plain step that passes as many synthetic images through a network: "
    "four times as many, as a partition of 2 decodes them, and twice that where a later snapshot gives the "
    "cross-entropy. The pool's networks have random weights.",
    STEP,
    """
    step | name; ipc; real images per class | batch_real; precision
    ms | fastdm | ms; plain, ms | plain | ms; ratio | ratio | .2f; target | target | ≤ {:.1f}; met
    error; median error | median_error
    """,
)
COMPILE = Suite(
    "step_compile",
    "torch.compile",
    "What `--compile` makes of networks whose layers the package does not fuse: ms per iteration of CIFAR-10's size, "
    "10 images per class, median (p20–p80), interleaved without and with it; the seconds that a first run compiles, "
    "and the iterations that save as much. The error is the difference of both first changes of the images.",
    STEP,
    """
    network | name; real images per class | batch_real
    ms | eager | ms; compiled, ms | compiled | ms; × as fast | ratio | .2f
    compiling, s | compile_seconds | .1f; has paid after | paid_after | {:,.0f} iterations; error
    """,
    slower={"ratio": "without it"},
)
SUITES = {"sizes": SIZES, "recipes": RECIPES, "compile": COMPILE}


def rows(options: Namespace) -> Rows:
    device, precision, seconds = options.device, options.precision, 0.0 if options.smoke else options.seconds
    base = CIFAR10.smoke() if options.smoke else CIFAR10
    if options.what == "compile":
        for name in ["LeNet"] if options.smoke else options.network:
            work = dataclasses.replace(base, network=name, batch_real=64, size=32)
            row: Row = {"name": name, "batch_real": work.batch_real, "ipc": work.ipc}
            yield row, partial(apart, measure_compiled, work, min(12.0, seconds))
    elif options.what == "recipes":
        chosen = recipes(dataclasses.replace(base, batch_real=128))
        for name, (work, plain) in chosen.items():
            row = {"name": name, "ipc": work.ipc, "batch_real": work.batch_real, "precision": precision}
            yield row, partial(measure_recipe, work, plain, device, precision, min(30.0, seconds / len(chosen)))
    else:
        every = GPU_SIZES if device.type == "cuda" else CPU_SIZES
        sizes = [size for size in every if size.name.startswith(tuple(options.only))]
        for size in within(sizes[:1] if options.smoke else sizes, options.seconds):
            against = baselines(size, options.no_compile or options.smoke)
            work = size.smoke() if options.smoke else size
            row = {name: value for name, value in dataclasses.asdict(work).items() if name != "options"}
            # Two timings, and as much again for the checks and processes.
            yield row, partial(measure, work, device, precision, seconds / (4 * len(sizes)), against)


def main() -> None:
    parser = arguments.parser(__doc__, "--device", "--no-compile", what=tuple(SUITES), seconds=1800.0)
    parser.add_argument("--only", nargs="+", default=[""], help="sizes, by the beginning of their names")
    parser.add_argument("--precision", choices=ROUNDING, help="default: what condense would take on this device")
    parser.add_argument(
        "--network", choices=network_names(), metavar="NAME", nargs="+", default=NETWORKS, help="of `compile`"
    )
    options = parser.parse_args()
    if options.what == "compile":
        options.device, options.precision = CPU, "fp32"
    elif options.precision is None:
        options.precision = fastest_precision(options.device)
    records.record(SUITES[options.what], options, rows, precision=options.precision)


if __name__ == "__main__":
    main()
