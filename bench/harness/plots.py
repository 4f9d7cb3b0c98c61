"""What the suites' plots are drawn with; matplotlib is imported when the first is drawn."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from bench.harness.records import Result, Row, value

_STYLE: dict[Any, Any] = {"axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True}
_STYLE |= {"axes.grid": True, "grid.color": "#e5e7eb", "legend.frameon": False, "font.size": 9}
_STYLE |= {"figure.constrained_layout.use": True, "savefig.dpi": 110}
OURS, THEIRS, OTHER, LINE = "#0f766e", "#9ca3af", "#d97706", "#374151"


class Series(NamedTuple):
    """A bar for each row: the number that it holds under a key. text: what stands behind its end."""

    label: str
    key: str
    color: str | Callable[[Row], str]
    text: Callable[[Row], str] | None = None


def figure(result: Result, columns: int = 1, size: tuple[float, float] = (6.5, 3.6)) -> tuple[Any, list[Any]]:
    """A figure with axes side by side; the title says where the figures come from."""
    import matplotlib.figure

    matplotlib.rcParams.update(_STYLE)
    drawn = matplotlib.figure.Figure(figsize=size)
    axes = drawn.subplots(1, columns, squeeze=False)
    about = result["machine"]
    title = about["device"] if about["device"] != "cpu" else f"{about['cpu']}, {about['cores']} cores"
    drawn.suptitle(title, fontsize="medium")
    return drawn, list(axes[0])


def bars(
    result: Result,
    rows: Sequence[Row],
    series: Sequence[Series],
    label: str,
    *,
    unit: float = 1.0,
    log: bool = False,
    row_inches: float = 0.5,
) -> Any:
    """A figure of horizontal bars, grouped by row, or None: without the rows and series that hold no number."""
    rows = [row for row in rows if any(value(row, one.key) is not None for one in series)]
    series = [one for one in series if any(value(row, one.key) is not None for row in rows)]
    if not rows:
        return None
    drawn, (axes,) = figure(result, size=(6.5, 0.9 + row_inches * len(rows)))
    width = 0.8 / len(series)
    for number, (title, key, color, text) in enumerate(series):
        shift = width * (number - (len(series) - 1) / 2)
        places = {place + shift: row for place, row in enumerate(rows) if value(row, key) is not None}
        lengths = [value(row, key) / unit for row in places.values()]
        colors = color if isinstance(color, str) else [color(row) for row in places.values()]
        made = axes.barh([*places], lengths, 0.93 * width, color=colors, label=title)
        if text:
            axes.bar_label(made, [text(row) for row in places.values()], padding=3, fontsize=7)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(label)
    axes.margins(x=0.3 if any(one.text for one in series) else 0.05)
    if len(series) > 1:
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    if log:
        axes.set_xscale("log")
    return drawn


def label(axes: Any, x: str, y: str, scale: str = "log") -> None:
    axes.set(xscale=scale, yscale=scale, xlabel=x, ylabel=y)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
