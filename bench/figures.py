"""The plots of bench/RESULTS.md: one PNG per suite and machine, named SUITE-….png."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from bench import results

Result = dict[str, Any]

OURS, THEIRS, OTHER, LINE = "#0f766e", "#9ca3af", "#d97706", "#374151"
plt.rcParams.update(
    {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.grid": True,
        "axes.titlesize": "medium",
        "axes.titlelocation": "left",
        "figure.constrained_layout.use": True,
        "font.size": 9,
        "grid.color": "#e5e7eb",
        "legend.frameon": False,
        "savefig.dpi": 110,
    }
)


def draw(folder: Path) -> Iterator[Path]:
    """Draw what there are results for, in place of all plots of before; yields the files."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    for suite, drawers in PLOTS.items():
        for result in results.load(suite):
            device = results.slug(result["machine"]["device"])
            for kind, drawer in drawers.items():
                if drawn := drawer(result):
                    path = folder / f"{suite}-{kind}--{device}-{results.slug(result['machine']['cpu'])}.png"
                    drawn.savefig(path)
                    plt.close(drawn)
                    yield path


def accuracy(result: Result) -> Any:
    rows = result["rows"]
    figure, axes = plt.subplots(figsize=(6.5, 0.9 + 0.75 * len(rows)))
    bars = (
        ("random real images", "initial_accuracy", THEIRS),
        ("public code", "public_accuracy", OTHER),
        ("fastdm", "condensed_accuracy", OURS),
    )
    for shift, (label, key, color) in enumerate(bars):
        places = [place + 0.27 * (shift - 1) for place in range(len(rows))]
        errors = [row.get(key.replace("_accuracy", "_std"), 0) for row in rows]
        values = [row[key] for row in rows]
        axes.barh(places, values, 0.25, xerr=errors, color=color, label=label, error_kw={"lw": 0.8})
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("test accuracy, %")
    axes.grid(axis="y", visible=False)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def waterfall(result: Result) -> Any:
    rows = [row for row in result["rows"] if "seconds" in row]
    if not rows:
        return None
    figure, axes = plt.subplots(figsize=(6.5, 0.8 + 0.36 * len(rows)))
    values = [row["seconds"]["iteration"]["median"] * 1e3 for row in rows]
    colors = [OURS if row["name"].startswith("fastdm") else THEIRS for row in rows]
    axes.barh([row["name"] for row in rows], values, 0.7, color=colors)
    for place, (row, value) in enumerate(zip(rows, values, strict=True)):
        times = f"  {value:.3g} ms"
        if row["name"] != "public" and "times_public" in row:
            times += f", {row['times_public']:.1f}×"
        axes.annotate(times, (value, place), va="center")
    axes.invert_yaxis()
    axes.set_xlim(right=max(values) * 1.3)
    axes.set_xlabel("ms per iteration (and how many times as fast as the public loop)")
    axes.grid(axis="y", visible=False)
    axes.set_title(_where(result))
    return figure


def scale(result: Result) -> Any:
    rows = [row for row in result["rows"] if "seconds" in row]
    if not rows:
        return None
    groups: dict[tuple[int, int], list[Result]] = {}
    for row in rows:
        groups.setdefault((row["classes"], row["size"]), []).append(row)
    lines = {shape: sorted(group, key=lambda row: row["ipc"]) for shape, group in groups.items() if len(group) > 1}

    figure, axes = plt.subplots(1, 2 if lines else 1, figsize=(9 if lines else 5, 3.4), squeeze=False)
    cost = axes[0, 0]
    cost.set_title(_where(result))
    for name, color in (("public", THEIRS), ("fastdm", OURS)):
        timed = [row for row in rows if name in row["seconds"]]
        values = [row["seconds"][name]["median"] * 1e3 for row in timed]
        cost.scatter([row["flops"] for row in timed], values, color=color, label=name)
    for row in rows:
        place = (row["flops"], row["seconds"]["fastdm"]["median"] * 1e3)
        cost.annotate(row["name"], place, xytext=(4, -9), textcoords="offset points", fontsize=6)
    if max(row["flops"] for row in rows) > 3 * min(row["flops"] for row in rows):
        cost.set_xscale("log")
    cost.set_yscale("log")
    cost.set_xlabel("FLOPs of the convolutions per iteration")
    cost.set_ylabel("ms per iteration")
    cost.legend()
    for (classes, size), group in lines.items():
        values = [row["seconds"]["fastdm"]["median"] * 1e3 for row in group]
        axes[0, 1].plot([row["ipc"] for row in group], values, "o-", label=f"{classes} classes, {size}²")
    if lines:
        axes[0, 1].set_xlabel("synthetic images per class")
        axes[0, 1].set_ylabel("ms per iteration")
        axes[0, 1].set_ylim(bottom=0)
        axes[0, 1].legend()
    return figure


def memory(result: Result) -> Any:
    rows = [row for row in result["rows"] if "peak_bytes" in row]
    if not rows:
        return None
    figure, axes = plt.subplots(figsize=(6.5, 0.9 + 0.45 * len(rows)))
    for shift, (label, key, color) in enumerate((("planned", "planned_bytes", THEIRS), ("peak", "peak_bytes", OURS))):
        places = [place + 0.35 * (shift - 0.5) for place in range(len(rows))]
        axes.barh(places, [row[key] / 1e9 for row in rows], 0.33, color=color, label=label)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("GB")
    axes.grid(axis="y", visible=False)
    axes.set_title(_where(result))
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def bandwidth(result: Result) -> Any:
    """Achieved bandwidth by size, under the line of the copy."""
    rows = [row for row in result["rows"] if "gb_per_s" in row]
    if not rows:
        return None
    figure, axes = plt.subplots(figsize=(6.5, 3.6))
    _by_op(axes, rows, lambda row: row["bytes"], lambda row: row["gb_per_s"])
    peaks = [100 * row["gb_per_s"] / row["percent_of_copy"] for row in rows if row.get("percent_of_copy")]
    if peaks:
        axes.axhline(peaks[0], color=LINE, lw=1, label="copy")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("bytes that must move")
    axes.set_ylabel("GB/s")
    axes.set_title(_where(result))
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def roofline(result: Result) -> Any:
    """FLOP/s by FLOPs per byte, of the kernels and of the whole iteration, under both peaks."""
    rows = [row for row in result["rows"] if "gb_per_s" in row and "flops" in row]
    limits = _peaks(result)
    if not rows or not {"copy", "matmul bf16"} <= limits.keys():
        return None
    figure, axes = plt.subplots(figsize=(6.5, 3.6))
    _by_op(
        axes,
        rows,
        lambda row: row["flops"] / row["bytes"],
        lambda row: row["flops"] / row["seconds"]["fastdm"]["median"] / 1e12,
    )
    for stage in _waterfall_of(result):
        intensity = stage["flops"] / stage["least_bytes"]
        ours = stage["name"].startswith("fastdm")
        axes.scatter(intensity, stage["tflop_per_s"], marker="*", s=60, color=OURS if ours else THEIRS)
        axes.annotate(
            stage["name"], (intensity, stage["tflop_per_s"]), xytext=(5, -3), textcoords="offset points", fontsize=6
        )
    copy, matmul = limits["copy"], limits["matmul bf16"]
    ridge = matmul / copy
    axes.plot([0.1, ridge, 20 * ridge], [0.1 * copy / 1e12, matmul / 1e12, matmul / 1e12], color=LINE, lw=1)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("FLOPs per byte that must move")
    axes.set_ylabel("TFLOP/s")
    axes.set_title(_where(result))
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def cpu_step(result: Result) -> Any:
    """Times of both loops, as malloc is by default."""
    rows = [row for row in result["rows"] if len(row.get("seconds", {})) > 1 and row["malloc"] == "default"]
    if not rows:
        return None
    figure, axes = plt.subplots(figsize=(6.5, 0.9 + 0.5 * len(rows)))
    for shift, (name, color) in enumerate((("public", THEIRS), ("fastdm", OURS))):
        places = [place + 0.38 * (shift - 0.5) for place in range(len(rows))]
        values = [row["seconds"][name]["median"] * 1e3 for row in rows]
        axes.barh(places, values, 0.36, color=color, label=name)
        for place, value, row in zip(places, values, rows, strict=True):
            times = f", {row['ratio']:.1f}×" if name == "fastdm" else ""
            axes.annotate(f" {value:,.0f} ms{times}", (value, place), va="center", fontsize=7)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.invert_yaxis()
    axes.set_xscale("log")
    slowest = max(row["seconds"]["public"]["median"] for row in rows) * 1e3
    axes.set_xlim(min(row["seconds"]["fastdm"]["median"] for row in rows) * 1e3 / 5, slowest * 5)
    axes.set_xlabel("ms per iteration")
    axes.grid(axis="y", visible=False)
    axes.set_title(_where(result))
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def classes(result: Result) -> Any:
    """Time and peak memory against the number of classes, at a fixed chunk, and the line of proportion."""
    rows = [row for row in result["rows"] if row["name"].startswith("scaling") and "seconds" in row]
    if len(rows) < 2:
        return None
    figure, (time, memory) = plt.subplots(1, 2, figsize=(8, 3))
    counts = [row["classes"] for row in rows]
    medians = [row["seconds"]["fastdm"]["median"] * 1e3 for row in rows]
    time.plot(counts, medians, "o-", color=OURS, label="fastdm")
    time.plot([0, counts[-1]], [0, medians[-1]], "--", color=LINE, lw=0.8, label="in proportion")
    time.set_ylabel("ms per iteration")
    time.legend()
    memory.plot(counts, [row["peak_mib"]["fastdm"] for row in rows], "o-", color=OURS)
    memory.set_ylabel("peak memory of the process, MiB")
    for axes in (time, memory):
        axes.set_xlabel("classes")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
    figure.suptitle(_where(result), fontsize="medium")
    return figure


def precision(result: Result) -> Any:
    """Loss against iteration of every seed, and accuracy seed by seed."""
    colors = {"fp32": OURS, "bf16": OTHER, "tf32": LINE}
    figure, (losses, accuracies) = plt.subplots(1, 2, figsize=(8, 3))
    seeds = sorted({row["seed"] for row in result["rows"]})
    for shift, name in enumerate(dict.fromkeys(row["precision"] for row in result["rows"])):
        rows = [row for row in result["rows"] if row["precision"] == name]
        for row in rows:
            losses.plot(row["losses"], color=colors[name], lw=0.7, alpha=0.7, label=name if row is rows[0] else None)
        accuracies.errorbar(
            [seeds.index(row["seed"]) + 0.15 * shift for row in rows],
            [row["accuracy"] for row in rows],
            [row["std"] for row in rows],
            fmt="o",
            ms=4,
            color=colors[name],
            label=name,
        )
    losses.set_xlabel("iteration")
    losses.set_ylabel("loss / classes")
    losses.legend()
    accuracies.set_xticks(range(len(seeds)), seeds)
    accuracies.set_xlabel("seed")
    accuracies.set_ylabel("test accuracy, %")
    accuracies.legend(loc="upper left", bbox_to_anchor=(1, 1))
    figure.suptitle(_where(result), fontsize="medium")
    return figure


def loading(result: Result) -> Any:
    """Ratios with their targets; rows without a baseline are limits, and stay in the table."""
    rows = [row for row in result["rows"] if "p20" in row["ratio"]]
    if not rows:
        return None
    figure, axes = plt.subplots(figsize=(8, 0.9 + 0.24 * len(rows)))
    values = [row["ratio"]["median"] for row in rows]
    axes.barh(range(len(rows)), values, 0.7, color=OURS)
    targets = [(row["target"], place) for place, row in enumerate(rows) if row["target"] is not None]
    axes.scatter([x for x, _ in targets], [y for _, y in targets], marker="|", s=90, color=OTHER, label="target")
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=7)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.axvline(1, color=LINE, lw=0.8)
    axes.set_xlabel("times as fast")
    axes.grid(axis="y", visible=False)
    axes.set_title(_where(result))
    axes.legend(loc="lower right")
    return figure


def launches(result: Result) -> Any:
    rows = result["rows"]
    figure, axes = plt.subplots(figsize=(6.5, 0.9 + 0.4 * len(rows)))
    for shift, (classes, color) in enumerate(((10, OURS), (100, OTHER))):
        places = [place + 0.36 * (shift - 0.5) for place in range(len(rows))]
        values = [row[f"ops_{classes}_classes"] for row in rows]
        axes.barh(places, values, 0.34, color=color, label=f"{classes} classes")
        for place, value in zip(places, values, strict=True):
            axes.annotate(f" {value:,}", (value, place), va="center", fontsize=7)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(10, 100_000)
    axes.set_xlabel("ops per iteration")
    axes.grid(axis="y", visible=False)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


PLOTS: dict[str, dict[str, Callable[[Result], Any]]] = {
    "accuracy": {"bars": accuracy},
    "precision": {"seeds": precision},
    "cpu_step": {"times": cpu_step, "classes": classes},
    "launches": {"counts": launches},
    "loading": {"ratios": loading},
    "waterfall": {"times": waterfall},
    "scale": {"cost": scale, "memory": memory},
    "kernels": {"bandwidth": bandwidth, "roofline": roofline},
}


def _by_op(axes: Axes, rows: list[Result], x: Callable[[Result], float], y: Callable[[Result], float]) -> None:
    for op in dict.fromkeys(row["op"] for row in rows):
        points = [row for row in rows if row["op"] == op]
        axes.scatter([x(row) for row in points], [y(row) for row in points], s=18, label=op)


def _where(result: Result) -> str:
    about = result["machine"]
    return str(about["device"] if about["device"] != "cpu" else f"{about['cpu']}, {about['cores']} cores")


def _same_machine(result: Result, suite: str) -> list[Result]:
    keys = ("cpu", "device")
    return [
        row
        for other in results.load(suite)
        if all(other["machine"][key] == result["machine"][key] for key in keys)
        for row in other["rows"]
    ]


def _peaks(result: Result) -> dict[str, float]:
    return {
        row["name"]: row.get("gb_per_s", 0) * 1e9 or row["tflop_per_s"] * 1e12 for row in _same_machine(result, "peaks")
    }


def _waterfall_of(result: Result) -> list[Result]:
    return [row for row in _same_machine(result, "waterfall") if "tflop_per_s" in row]
