"""Every op of `fastdm.kernels` by shape and dtype, next to eager PyTorch and torch.compile of the same.

python -m bench.kernels [--device cuda] [--smoke] [--only dsa …] [--seconds 600] [--no-compile]

A row holds the error compared with float64 next to the speed; where the check is red there is no speed. The tolerance
is twice what eager PyTorch makes of the same input in the same dtype, and at least what rounding may do (see `Case`).
Bytes are the least that must move: every input read once, every output written once. The ops take turns, their most
used shape first, so that a run cut short has something of each.
"""

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.harness import arguments, cells, machine, plots, records
from bench.harness.op_cases import Arguments, Case, cases
from bench.harness.records import Recorder, Result, Row, Suite
from bench.harness.timer import device_times, rotation, within
from fastdm.kernels import dispatch

_DENSITY = 0.4  # of N(0, 1) at 0


def measure(case: Case, device: torch.device, copy_peak: float | None, smoke: bool, compiled: bool) -> Row:
    """The row of a case: whether it is right and, if so, how long the op and its two baselines take."""
    values = case.make(0)
    row: Row = {"implementation": _implementation(case.op, device), "bytes": case.bytes, **check(case, values)}
    if case.flops:
        row["flops"] = case.flops
    if not row["correct"]:
        return row
    # What is compiled is what eager runs: nothing of ours is in it.
    functions = {"fastdm": case.run, "eager": case.eager}
    if compiled:
        torch._dynamo.reset()
        start = time.perf_counter()
        function = torch.compile(case.eager, dynamic=False)
        try:
            function(*values)
            row["compile_seconds"] = round(time.perf_counter() - start, 2)
            functions["compile"] = function
        except Exception as error:  # The baseline's own trouble must not cost the row.
            row["note"] = f"torch.compile failed: {records.failure(error).splitlines()[0]}"
    if device.type == "cuda":
        row["peak_bytes"] = {name: _peak(function, values, device) for name, function in functions.items()}
    inputs = [case.make(seed) for seed in range(2 if smoke else rotation(case.bytes, device))]
    times = device_times(functions, inputs, device, seconds=0 if smoke else 0.5 * len(functions))
    row["rotation"] = len(inputs)
    row["seconds"] = records.spreads(times)
    median = {name: spread["median"] for name, spread in row["seconds"].items()}
    row["speedup"] = {name: median[name] / median["fastdm"] for name in median if name != "fastdm"}
    row["gb_per_s"] = case.bytes / median["fastdm"] / 1e9
    if copy_peak:
        row["percent_of_copy"] = 1e11 * row["gb_per_s"] / copy_peak
        if row["percent_of_copy"] > 100:
            row["note"] = "a copy also reads the lines that it overwrites; this mostly reads, or stays in the cache"
    return row


def check(case: Case, values: Arguments) -> Row:
    """error and tolerance, both ‖difference‖ / ‖exact‖; of ops that give the same bits the share that differs."""
    ours, eager = (_tensors(function(*values)) for function in (case.run, case.eager))
    if case.exact:
        wrong = sum(int((a != b).sum()) for a, b in zip(ours, eager, strict=True))
        error = wrong / sum(a.numel() for a in ours)
        return {"error": error, "tolerance": 0.0, "correct": error == 0}
    wide = [v.detach().double().requires_grad_(v.requires_grad) if v.is_floating_point() else v for v in values]
    found: Row = {"error": 0.0, "tolerance": 0.0, "correct": True}
    for number, (a, b, c) in enumerate(zip(ours, eager, _tensors(case.eager(*wide)), strict=True)):
        (own, own_median), (others, median_of_others) = (_errors(x, c) for x in (a, b))
        least = max(case.rounding, torch.finfo(a.dtype).eps)
        allowed = max(2 * others, least)
        if case.relu and number:
            found |= {"median_error": own_median, "median_tolerance": max(2 * median_of_others, least)}
            allowed = max(allowed, 2 * math.sqrt(2 * case.relu * _DENSITY))
            found["correct"] &= own_median <= found["median_tolerance"]
        found["correct"] &= own <= allowed  # False for NaN as well.
        found |= {"error": max(found["error"], own), "tolerance": max(found["tolerance"], allowed)}
    return found


def _errors(found: Tensor, exact: Tensor) -> tuple[float, float]:
    """‖difference‖ / ‖exact‖ of the whole, and the median of that of each image."""
    difference = found.double() - exact
    parts = difference.flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1) if exact.ndim > 1 else exact.new_zeros(1)
    return float(difference.norm() / exact.norm()), float(parts.median())


def _tensors(result: Any) -> Sequence[Tensor]:
    return [tensor.detach() for tensor in (result if isinstance(result, tuple) else (result,))]


def _peak(function: Callable[..., object], values: Arguments, device: torch.device) -> int:
    """Bytes that a call takes on the device besides its arguments, at most."""
    before = machine.restart_peak(device)
    function(*values)
    return machine.peak(device) - before


def _implementation(op: str, device: torch.device) -> str:
    """Which form of the op runs here: reference, native or triton."""
    return dispatch.first_form(op, device)


# --- table and plots -------------------------------------------------------------------------------------------------


def _slower(row: Row) -> str:
    slow = [f"{1 / x:.2f}× the time of {name}" for name, x in row.get("speedup", {}).items() if x < 1]
    return " and ".join(slow)


def _bandwidth(result: Result) -> Any:
    """Achieved bandwidth by size, under the line of the copy."""
    rows = [row for row in result["rows"] if "gb_per_s" in row]
    if not rows:
        return None
    figure, (axes,) = plots.figure(result)
    plots.points(axes, rows, lambda row: row["bytes"], lambda row: row["gb_per_s"])
    if copy := records.peaks(result["machine"]).get("copy"):
        axes.axhline(copy / 1e9, color=plots.LINE, lw=1, label="copy")
    plots.label(axes, "bytes that must move", "GB/s")
    return figure


def _roofline(result: Result) -> Any:
    """FLOP/s by FLOPs per byte, of the kernels and of the whole iteration, under both peaks."""
    rows = [row for row in result["rows"] if "gb_per_s" in row and "flops" in row]
    limits = records.peaks(result["machine"])
    if not rows or not {"copy", "matmul bf16"} <= limits.keys():
        return None
    figure, (axes,) = plots.figure(result)

    def rate(row: Row) -> float:
        return float(row["flops"] / row["seconds"]["fastdm"]["median"] / 1e12)

    plots.points(axes, rows, lambda row: row["flops"] / row["bytes"], rate)
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
    return figure


SUITE = Suite(
    "kernels",
    "Kernels",
    "Every op compared with eager PyTorch and torch.compile of it, in µs: median (p20–p80), cold cache, forward unless "
    "said. Bytes are the least that must move.",
    ("csrc", "kernels", "bench/harness/op_cases.py"),
    [
        ("op", cells.text("name")),
        ("form", cells.text("implementation")),
        ("µs", cells.spread("fastdm", 1e-6)),
        ("GB/s", cells.number("gb_per_s", "{:,.3g}")),
        ("% of copy", cells.number("percent_of_copy", "{:.0f}")),
        ("× eager", cells.number("speedup.eager", "{:.2f}")),
        ("× compile", cells.number("speedup.compile", "{:.2f}")),
        ("error", cells.error),
        ("median error", cells.median_error),
        ("memory, MB", cells.number("peak_bytes.fastdm", "{:.0f}", 1e6)),
        ("note", cells.text("note")),
    ],
    slower=_slower,
    plots={"bandwidth": _bandwidth, "roofline": _roofline},
)


def main() -> None:
    parser = arguments.parser(__doc__, device=True, seconds=600.0)
    parser.add_argument("--only", nargs="+", help="ops, such as dsa")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out, whose compilation is slow")
    options = parser.parse_args()
    device = arguments.device_of(options)
    copy_peak = records.peaks(machine.describe(device)).get("copy")
    recorder = Recorder(SUITE, {"smoke": options.smoke, "compile": not options.no_compile}, options.device)
    chosen = (case for case in cases(device, options.smoke) if case.op in (options.only or [case.op]))
    for case in within(chosen, options.seconds):
        how = partial(measure, case, device, copy_peak, options.smoke, not options.no_compile)
        recorder.add({"name": case.name, "op": case.op}, how)


if __name__ == "__main__":
    main()
