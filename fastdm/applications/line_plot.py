"""Curves with their spread as a PNG file, for papers and pages."""

from collections.abc import Sequence
from pathlib import Path

from fastdm.applications.report.svg import Line
from fastdm.errors import FastDMError
from fastdm.system.files import writing

_DPI = 300


def check_matplotlib() -> None:
    """Raise FastDMError where there is nothing to draw with."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise FastDMError("figures as PNG are drawn by matplotlib: pip install 'fastdm[report]'") from error


def write_lines(
    path: Path, x_label: str, y_label: str, lines: Sequence[Line], *, marker: str = "", whole: bool = False
) -> None:
    """Draw the lines, each with its band; whole: there are only whole numbers on the x axis."""
    check_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.add_subplot(xlabel=x_label, ylabel=y_label)
    for line in lines:
        axes.fill_between(line.x, line.low, line.high, alpha=0.2, linewidth=0, color=f"C{line.number}")
        axes.plot(line.x, line.mean, marker=marker, color=f"C{line.number}", label=line.name)
    if whole:
        axes.set_xticks(sorted({x for line in lines for x in line.x}))
    if len(lines) > 1:
        axes.legend(frameon=False)
    with writing(path) as temporary:
        figure.savefig(temporary, dpi=_DPI, format="png")
