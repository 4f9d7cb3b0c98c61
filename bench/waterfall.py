"""An iteration stage by stage, from the public loop to a CUDA graph, and the three that everybody asks for.

    python -m bench.waterfall [headline|chunk|chunks] [--batch_real 256] [--seconds 30]

headline: the package's fastest step, the public loop and torch.compile of the batched step, also as a CUDA graph, at
CIFAR-10's size; chunk: the same on a chunk of ImageNet-1K at 64×64; chunks: on three of them. The losses of every stage
are compared with those of the same step through PyTorch's own layers in float32 on the CPU, which the tests compare
with the public loop. A stage is timed as soon as it is right, next to the first one, and all of them interleaved at the
end.
"""

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch

from bench.harness import arguments, cells, machine, plots, records
from bench.harness.loops import LOSS_TOLERANCE, Kind, make, plain_losses
from bench.harness.records import STEP, Recorder, Result, Row, Suite
from bench.harness.timer import host_times, numbered
from bench.harness.workloads import CHUNK, CHUNKS, CIFAR10, Workload

ITERATIONS_CHECKED = 2
HEADLINE_SAMPLE = 1.0  # seconds: a thousand replays of an iteration of one millisecond


class Stage(NamedTuple):
    name: str
    what: str
    precision: str
    kind: Kind


def stages(device: torch.device, compiled: bool, headline: bool = False) -> list[Stage]:
    """From slow to fast, but what takes longest to build, torch.compile, at the end."""
    on_gpu = device.type == "cuda"
    single = "tf32" if on_gpu else "fp32"
    every = [
        Stage("public", "the public loop, one class after the other", single, "public"),
        Stage("batched", "all classes in one batch, eager PyTorch", single, "batched"),
        Stage("batched bf16", "the same in bfloat16, channels-last", "bf16", "batched"),
        Stage("fastdm", "the package's ops", single, "fastdm"),
        Stage("fastdm bf16", "the same in bfloat16", "bf16", "fastdm"),
        Stage("fastdm bf16 graph", "the same as one CUDA graph", "bf16", "graph"),
        Stage("compiled bf16", "“batched bf16” through torch.compile", "bf16", "compiled"),
        Stage("compiled bf16 graph", "the same as one CUDA graph", "bf16", "compiled graph"),
    ]
    if headline:
        names = ["fastdm bf16 graph" if on_gpu else "fastdm", "public", "compiled bf16", "compiled bf16 graph"]
        every = [stage for name in names for stage in every if stage.name == name]
    left_out = ("graph",) * (not on_gpu) + ("compiled",) * (not compiled)
    return [stage for stage in every if not any(word in stage.kind for word in left_out)]


def waterfall(
    recorder: Recorder, work: Workload, device: torch.device, chosen: list[Stage], seconds: float, sample: float
) -> None:
    """Build, check and time stage after stage, then time all that are right, interleaved."""
    dataset, about = work.dataset(device), machine.describe(device)
    plain = plain_losses(work, dataset, ITERATIONS_CHECKED)
    running: dict[str, Callable[[], object]] = {}

    def build(stage: Stage) -> Row:
        """Build a stage and compare its losses; if they are right, put what is to be timed into `running`."""
        begin = time.perf_counter()
        call = make(stage.kind, work, dataset, device, stage.precision)
        losses = [float(call(iteration)) for iteration in range(ITERATIONS_CHECKED)]
        row: Row = {"start_seconds": round(time.perf_counter() - begin, 2)}
        # The public loop draws for itself: the tests compare it, with equal draws.
        row["losses"] = plain if stage.kind == "public" else losses
        error = max(abs(a - b) / b for a, b in zip(row["losses"], plain, strict=True))
        row |= records.judged(error, LOSS_TOLERANCE[stage.precision])
        if row["correct"]:
            running[stage.name] = numbered(call, ITERATIONS_CHECKED)
        return row

    def time_all(names: list[str], budget: float) -> None:
        functions = {name: running[name] for name in names}
        # The check was their warm-up.
        found = records.spreads(host_times(functions, device, seconds=budget, warm_up=1, sample=sample))
        medians = {name: spread["median"] for name, spread in found.items()}
        for row in recorder.rows:
            if (name := row["name"]) in names:
                row["seconds"] = {"iteration": found[name]}
                row |= work.work(row["precision"], medians[name], about)
                for base in {"public", "compiled bf16", "compiled bf16 graph"} & medians.keys():
                    row[f"times_{base.replace(' ', '_')}"] = medians[base] / medians[name]
        recorder.save()
        print({name: f"{seconds * 1e3:.4g} ms" for name, seconds in medians.items()}, flush=True)

    for stage in chosen:
        row: Row = {"name": stage.name, "work": work.name, "what": stage.what, "precision": stage.precision}
        recorder.add(row, partial(build, stage))
        if stage.name in running:
            time_all(list(dict.fromkeys([next(iter(running)), stage.name])), seconds / (2 * len(chosen)))
    if running:
        time_all(list(running), seconds)


def _times(result: Result) -> Any:
    def text(row: Row) -> str:
        times = cells.cell(row, "times_public", ", {:.1f}×") if row["name"] != "public" else ""
        return f"{1e3 * row['seconds']['iteration']['median']:.3g} ms{times}"

    def color(row: Row) -> str:
        return plots.OURS if row["name"].startswith("fastdm") else plots.THEIRS

    label = "ms per iteration (and how many times as fast as the public loop)"
    series = plots.Series("", "seconds.iteration.median", color, text)
    return plots.bars(result, result["rows"], [series], label, unit=1e-3)


_TIMES = """
    ms | iteration | ms; × public | times_public | .1f; × compiled | times_compiled_bf16 | .2f
    × compiled, graph | times_compiled_bf16_graph | .2f
"""


def _suite(name: str, title: str, of: str, **more: Any) -> Suite:
    text = (
        f"An iteration of {of}, in ms: median (p20–p80). The error is that of the losses compared with PyTorch's own "
        "layers in float32 with equal draws; “compiled bf16”, and on a GPU that as one graph, is the baseline to beat. "
        "FLOPs are those of plain convolutions."
    )
    table = f"""
    stage | name; what; precision; {_TIMES.strip()}
    TFLOP/s | tflop_per_s | .3g; % of matmul peak | percent_of_matmul | .0f
    error of the loss | error; first call, s | start_seconds | .1f; note
    """
    return Suite(name, title, text, STEP, table, f"stage | name; {_TIMES.strip()}", **more)


_SIZE = "CIFAR-10's size, 10 images per class"
SUITE = _suite("waterfall", "From the public loop to a graph", _SIZE, plots={"times": _times})
HEADLINE = _suite("headline", "Headline", _SIZE)
CHUNK_STEP = _suite("chunk", "A chunk of ImageNet-1K", f"{CHUNK.classes} of its classes at 64×64")
CHUNKS_STEP = _suite("chunks", "Three chunks of ImageNet-1K", f"{CHUNKS.classes} of its classes at 64×64")
_WORK = {"waterfall": CIFAR10, "headline": CIFAR10, "chunk": CHUNK, "chunks": CHUNKS}
_SUITES = {suite.name: suite for suite in (SUITE, HEADLINE, CHUNK_STEP, CHUNKS_STEP)}


def main() -> None:
    parser = arguments.parser(__doc__, "--device", "--no-compile", what=tuple(_WORK), seconds=30.0)
    parser.add_argument("--batch_real", type=int, default=256, help="real images per class")
    options = parser.parse_args()
    device, smoke = options.device, options.smoke
    suite, work = _SUITES[options.what], dataclasses.replace(_WORK[options.what], batch_real=options.batch_real)
    recorder = Recorder(suite, {"smoke": smoke, "batch_real": options.batch_real}, device)
    chosen = stages(device, not (options.no_compile or smoke), headline=suite is not SUITE)
    sample = HEADLINE_SAMPLE if suite is not SUITE and device.type == "cuda" and not smoke else 0.02
    waterfall(recorder, work.smoke() if smoke else work, device, chosen, options.seconds, sample)


if __name__ == "__main__":
    main()
