"""The plots of bench.kernels."""

from typing import Any

from bench.harness import plots, records
from bench.harness.records import Result


def bandwidth(result: Result) -> Any:
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


def roofline(result: Result) -> Any:
    """FLOP/s by FLOPs per byte, of the kernels and of the whole iteration, under both peaks."""
    rows = [row for row in result["rows"] if "gb_per_s" in row and "flops" in row]
    limits = records.peaks(result["machine"])
    if not rows or not {"copy", "matmul bf16"} <= limits.keys():
        return None
    figure, (axes,) = plots.figure(result)
    plots.points(
        axes,
        rows,
        lambda row: row["flops"] / row["bytes"],
        lambda row: row["flops"] / row["seconds"]["fastdm"]["median"] / 1e12,
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
    return figure
