"""An iteration stage by stage, from the public loop to a CUDA graph, and the three that everybody asks for.

    python -m bench.waterfall [--device cuda] [--smoke] [--batch_real 256] [--seconds 30] [--no-compile]
    python -m bench.waterfall headline|chunk [the same options]

headline: the package's fastest step, the public loop and torch.compile of the batched step, at CIFAR-10's size; chunk:
the same on a chunk of ImageNet-1K at 64×64. The losses of every stage are compared with those of the public loop with
equal draws; a stage whose losses are off has no speed. A stage is timed as soon as it is right, next to the first one,
and all of them interleaved at the end.
"""

import dataclasses
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.baselines.plain_step import PlainStep
from bench.baselines.public_step import PublicStep, public_run
from bench.harness import arguments, cells, machine, plots, records
from bench.harness.records import STEP, Recorder, Result, Row, Suite
from bench.harness.timer import Flags, host_times, numbered
from bench.harness.workloads import CHUNK, CIFAR10, CPU, Workload
from fastdm import Settings
from fastdm.condensation.build import build_step
from fastdm.data import Dataset
from fastdm.system.device import precision_context

ITERATIONS_CHECKED = 2

TOLERANCE = {"fp32": 1e-4, "tf32": 2**-10, "bf16": 2**-7}
"""For the relative error of a loss. For tf32 and bf16 the spacing of the operands, whose roundings average out over the
features; for fp32 that of the tests: the loss is the square of small differences of means."""

HEADLINE_SAMPLE = 1.0  # seconds: a thousand replays of an iteration of one millisecond

Call = Callable[[int], Tensor | float]


@dataclasses.dataclass(frozen=True)
class Stage:
    """what: in words; build: makes the iteration from (dataset, settings, device, dtype)."""

    name: str
    what: str
    precision: str
    build: Callable[[Dataset, Settings, torch.device, torch.dtype], Call]


def _public(dataset: Dataset, settings: Settings, device: torch.device, _: torch.dtype) -> Call:
    return PublicStep(dataset, settings, device)


def _ours(dataset: Dataset, settings: Settings, device: torch.device, dtype: torch.dtype, captured: bool) -> Call:
    step = build_step(dataset, settings.resolve(dataset, device), device, dtype)[0]
    if captured:
        step.capture()
    return step


def stages(device: torch.device, compiled: bool, headline: bool = False) -> list[Stage]:
    """From slow to fast, but what takes longest to build, torch.compile, at the end."""
    on_gpu = device.type == "cuda"
    single = "tf32" if on_gpu else "fp32"
    fused, plain = partial(_ours, captured=False), partial(PlainStep, compiled=False)
    every = [
        Stage("public", "the public loop, one class after the other", single, _public),
        Stage("batched", "all classes in one batch, eager PyTorch", single, plain),
        Stage("batched bf16", "the same in bfloat16, channels-last", "bf16", plain),
        Stage("fastdm", "the package's ops", single, fused),
        Stage("fastdm bf16", "the same in bfloat16", "bf16", fused),
        Stage("fastdm bf16 graph", "the same as one CUDA graph", "bf16", partial(_ours, captured=True)),
        Stage("compiled bf16", "“batched bf16” through torch.compile", "bf16", partial(PlainStep, compiled=True)),
    ]
    left_out = {*([] if on_gpu else ["fastdm bf16 graph"]), *([] if compiled else ["compiled bf16"])}
    chosen = [stage for stage in every if stage.name not in left_out]
    if headline:
        names = ["fastdm bf16 graph" if on_gpu else "fastdm", "public", "compiled bf16"]
        chosen = sorted((stage for stage in chosen if stage.name in names), key=lambda stage: names.index(stage.name))
    return chosen


def waterfall(
    recorder: Recorder, work: Workload, device: torch.device, chosen: list[Stage], seconds: float, sample: float
) -> None:
    """Build, check and time stage after stage, then time all that are right, interleaved."""
    dataset, settings = work.dataset(device), work.settings()
    about = machine.describe(device)
    on_cpu = dataclasses.replace(dataset, train=dataset.train.to(CPU))
    exact = public_run(on_cpu, settings, ITERATIONS_CHECKED, torch.float32)[1]
    running: dict[str, Callable[[], object]] = {}

    def time_all(names: list[str], budget: float) -> None:
        functions = {name: running[name] for name in names}
        # The check was their warm-up.
        medians = records.spreads(host_times(functions, device, seconds=budget, warm_up=0, sample=sample))
        rows = [row for row in recorder.rows if row["name"] in names]
        for row in rows:
            row["seconds"] = {"iteration": medians[row["name"]]}
            row |= work.work(row["precision"], medians[row["name"]]["median"], about)
            for base in ("public", "compiled bf16"):
                if base in medians:
                    ratio = medians[base]["median"] / medians[row["name"]]["median"]
                    row[f"times_{base.replace(' ', '_')}"] = ratio
        recorder.save()
        print({name: f"{spread['median'] * 1e3:.4g} ms" for name, spread in medians.items()}, flush=True)

    for stage in chosen:
        row: Row = {"name": stage.name, "work": work.name, "what": stage.what, "precision": stage.precision}
        recorder.add(row, partial(_check, stage, dataset, settings, device, exact, running))
        if stage.name in running:
            time_all(list(dict.fromkeys([next(iter(running)), stage.name])), seconds / (2 * len(chosen)))
    if running:
        time_all(list(running), seconds)


def _check(
    stage: Stage,
    dataset: Dataset,
    settings: Settings,
    device: torch.device,
    exact: list[float],
    running: dict[str, Callable[[], object]],
) -> Row:
    """Build a stage and compare its losses; if they are right, put what is to be timed into `running`."""
    chosen = dataclasses.replace(settings, precision=stage.precision)  # type: ignore[arg-type]
    is_public = stage.name == "public"
    # The public loop runs as PyTorch sets itself up: TF32 in convolutions only, no choice by trial.
    flags: Flags = nullcontext if is_public else partial(precision_context, chosen.precision, device)
    with flags():
        begin = time.perf_counter()
        call = stage.build(dataset, chosen, device, torch.bfloat16 if stage.precision == "bf16" else torch.float32)
        losses = [float(call(iteration)) for iteration in range(ITERATIONS_CHECKED)]
        row: Row = {"start_seconds": round(time.perf_counter() - begin, 2)}
    # What is timed of the public loop draws for itself; its losses with equal draws are the yardstick.
    row["losses"] = exact if is_public else losses
    row["error"] = max(abs(a - b) / b for a, b in zip(row["losses"], exact, strict=True))
    row["tolerance"] = TOLERANCE[stage.precision]
    row["correct"] = row["error"] <= row["tolerance"]
    if row["correct"]:
        running[stage.name] = numbered(call, flags, ITERATIONS_CHECKED)
    return row


# --- table and plot --------------------------------------------------------------------------------------------------

_COLUMNS = [
    ("stage", cells.text("name")),
    ("what", cells.text("what")),
    ("precision", cells.text("precision")),
    ("ms", cells.spread("iteration", 1e-3)),
    ("× public", cells.number("times_public", "{:.1f}")),
    ("× compiled", cells.number("times_compiled_bf16", "{:.2f}")),
    ("TFLOP/s", cells.number("tflop_per_s")),
    ("% of matmul peak", cells.number("percent_of_matmul", "{:.0f}")),
    ("error of the loss", cells.error),
    ("first call, s", cells.number("start_seconds", "{:.1f}")),
    ("note", cells.text("note")),
]
_TEXT = (
    "in ms: median (p20–p80). The error is that of the losses compared with the public loop with equal draws; "
    "“compiled bf16” is the baseline to beat. FLOPs are those of plain convolutions."
)


def _times(result: Result) -> Any:
    rows = [row for row in result["rows"] if "seconds" in row]
    if not rows:
        return None
    values = [row["seconds"]["iteration"]["median"] * 1e3 for row in rows]
    texts = [
        f"{value:.3g} ms" + (f", {row['times_public']:.1f}×" if row.get("times_public", 1) != 1 else "")
        for row, value in zip(rows, values, strict=True)
    ]
    colors = [plots.OURS if row["name"].startswith("fastdm") else plots.THEIRS for row in rows]
    label = "ms per iteration (and how many times as fast as the public loop)"
    return plots.bars(result, [row["name"] for row in rows], [plots.Series("", values, colors, texts)], label)[0]


HEADLINE = Suite(
    "headline", "Headline", f"An iteration of CIFAR-10's size, 10 images per class, {_TEXT}", STEP, _COLUMNS
)
CHUNK_STEP = Suite(
    "chunk", "A chunk of ImageNet-1K", f"An iteration of 15 of its classes at 64×64, {_TEXT}", STEP, _COLUMNS
)
SUITE = Suite(
    "waterfall",
    "From the public loop to a graph",
    f"An iteration of CIFAR-10's size, 10 images per class, {_TEXT}",
    STEP,
    _COLUMNS,
    plots={"times": _times},
)
_CHOICES = {"waterfall": (SUITE, CIFAR10), "headline": (HEADLINE, CIFAR10), "chunk": (CHUNK_STEP, CHUNK)}


def main() -> None:
    parser = arguments.parser(__doc__, device=True, seconds=30.0)
    parser.add_argument("what", nargs="?", choices=_CHOICES, default="waterfall")
    parser.add_argument("--batch_real", type=int, default=256, help="real images per class")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    options = parser.parse_args()
    device = arguments.device_of(options)
    suite, work = _CHOICES[options.what]
    work = dataclasses.replace(work, batch_real=options.batch_real)
    if options.smoke:
        work = work.smoke()
    recorder = Recorder(suite, {"smoke": options.smoke, "batch_real": options.batch_real}, options.device)
    chosen = stages(device, not options.no_compile, headline=suite is not SUITE)
    long = suite is not SUITE and device.type == "cuda" and not options.smoke
    waterfall(recorder, work, device, chosen, options.seconds, HEADLINE_SAMPLE if long else 0.02)


if __name__ == "__main__":
    main()
