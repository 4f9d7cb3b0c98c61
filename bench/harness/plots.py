"""What the suites' plots are drawn with; matplotlib is imported when the first is drawn."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from bench.harness import records
from bench.harness.records import Result, Row

OURS, THEIRS, OTHER, LINE = "#0f766e", "#9ca3af", "#d97706", "#374151"


class Series(NamedTuple):
    """A bar for each row. label: says what the bars are; texts, errors: behind and around the ends of the bars."""

    label: str
    values: Sequence[float]
    color: str | Sequence[str]
    texts: Sequence[str] = ()
    errors: Sequence[float] | None = None


def figure(result: Result, columns: int = 1, size: tuple[float, float] = (6.5, 3.6)) -> tuple[Any, list[Any]]:
    """A figure with axes side by side; the title says where the figures come from."""
    drawn, axes = _pyplot().subplots(1, columns, figsize=size, squeeze=False)
    about = result["machine"]
    title = about["device"] if about["device"] != "cpu" else f"{about['cpu']}, {about['cores']} cores"
    drawn.suptitle(title, fontsize="medium")
    return drawn, list(axes[0])


def bars(
    result: Result, names: Sequence[str], series: Sequence[Series], label: str, *, row_inches: float = 0.5
) -> tuple[Any, Any]:
    """A figure of horizontal bars, grouped by row, and its axes."""
    drawn, (axes,) = figure(result, size=(6.5, 0.9 + row_inches * len(names)))
    width = 0.8 / len(series)
    for number, (title, values, color, texts, errors) in enumerate(series):
        places = [place + width * (number - (len(series) - 1) / 2) for place in range(len(names))]
        around = {"xerr": errors, "error_kw": {"lw": 0.8}} if errors else {}
        axes.barh(places, values, 0.93 * width, color=color, label=title, **around)
        for place, length, words in zip(places, values, texts, strict=False):
            axes.annotate(f" {words}", (length, place), va="center", fontsize=7)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(label)
    axes.margins(x=0.3 if any(one.texts for one in series) else 0.05)
    if len(series) > 1:
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return drawn, axes


def label(axes: Any, x: str, y: str, scale: str = "log") -> None:
    axes.set(xscale=scale, yscale=scale, xlabel=x, ylabel=y)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))


def bandwidth(result: Result) -> Any:
    """Achieved bandwidth by size, under the line of the copy."""
    rows = [row for row in result["rows"] if "gb_per_s" in row]
    if not rows:
        return None
    drawn, (axes,) = figure(result)
    _points(axes, rows, lambda row: row["bytes"], lambda row: row["gb_per_s"])
    if copy := records.peaks(result["machine"]).get("copy"):
        axes.axhline(copy / 1e9, color=LINE, lw=1, label="copy")
    label(axes, "bytes that must move", "GB/s")
    return drawn


def roofline(result: Result) -> Any:
    """FLOP/s by FLOPs per byte, of the kernels and of the whole iteration, under both peaks."""
    rows = [row for row in result["rows"] if "gb_per_s" in row and "flops" in row]
    limits = records.peaks(result["machine"])
    if not rows or not {"copy", "matmul bf16"} <= limits.keys():
        return None
    drawn, (axes,) = figure(result)
    _points(
        axes,
        rows,
        lambda row: row["flops"] / row["bytes"],
        lambda row: row["flops"] / row["seconds"]["fastdm"]["median"] / 1e12,
    )
    for stage in records.same_machine(result["machine"], "waterfall"):
        if "tflop_per_s" in stage:
            place = (stage["flops"] / stage["least_bytes"], stage["tflop_per_s"])
            color = OURS if stage["name"].startswith("fastdm") else THEIRS
            axes.scatter(*place, marker="*", s=60, color=color)
            axes.annotate(stage["name"], place, xytext=(5, -3), textcoords="offset points", fontsize=6)
    copy, matmul = limits["copy"] / 1e12, limits["matmul bf16"] / 1e12
    ridge = matmul / copy
    axes.plot([0.1, ridge, 20 * ridge], [0.1 * copy, matmul, matmul], color=LINE, lw=1)
    label(axes, "FLOPs per byte that must move", "TFLOP/s")
    return drawn


def _points(axes: Any, rows: Sequence[Row], x: Callable[[Row], float], y: Callable[[Row], float]) -> None:
    """A cloud for every op."""
    for op in dict.fromkeys(row["op"] for row in rows):
        chosen = [row for row in rows if row["op"] == op]
        axes.scatter([x(row) for row in chosen], [y(row) for row in chosen], s=18, label=op)


def save(drawn: Any, path: Path) -> None:
    drawn.savefig(path)
    _pyplot().close(drawn)


@cache
def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True})
    plt.rcParams.update({"axes.grid": True, "grid.color": "#e5e7eb", "legend.frameon": False, "font.size": 9})
    plt.rcParams.update({"figure.constrained_layout.use": True, "savefig.dpi": 110})
    return plt
