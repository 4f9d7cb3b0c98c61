"""Cells of the tables: functions from a row to Markdown, and the table that they make."""

import re
from collections.abc import Callable, Sequence

from bench.harness.records import Column, Row, Spread, value

Cell = Callable[[Row], str]


def text(key: str) -> Cell:
    return lambda row: str(row.get(key, "")).replace("|", "\\|")


def number(key: str, form: str = "{:.3g}", unit: float = 1.0) -> Cell:
    """key: of the row or, as "peak_mib.public", of a dict in it."""

    def cell(row: Row) -> str:
        found = value(row, key)
        return "" if found is None else re.sub(r"e\+0?", "e", form.format(found / unit))

    return cell


def spread(name: str, unit: float) -> Cell:
    """Median (p20–p80) of a row's seconds; the reason in its place where there are none."""

    def cell(row: Row) -> str:
        if name in row.get("seconds", {}):
            return spread_text(row["seconds"][name], unit)
        return "wrong result" if row.get("correct") is False else "failed" if "failure" in row else ""

    return cell


def plus_minus(mean: str, deviation: str) -> Cell:
    return lambda row: f"{row[mean]:.1f} ± {row[deviation]:.1f}" if mean in row else ""


def error(row: Row, of: str = "") -> str:
    """An error and its tolerance. of: which one, as "median_"; empty where the row has none."""
    if f"{of}tolerance" not in row:
        return text(f"{of}error")(row)
    found, tolerance = row[f"{of}error"], row[f"{of}tolerance"]
    return f"{found:.1e} {'≤' if found <= tolerance else '>'} {tolerance:.1e}"


def median_error(row: Row) -> str:
    return error(row, "median_")


def spread_text(values: Spread, unit: float = 1.0) -> str:
    middle, low, high = (significant(values.get(key, 0) / unit) for key in ("median", "p20", "p80"))
    return middle if values["n"] <= 1 else f"{middle} ({low}–{high})"


def significant(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """Markdown, without the columns that are empty in every row."""
    shown = [(head, cell) for head, cell in columns if any(cell(row) for row in rows)]
    lines = [[head for head, _ in shown], ["---"] * len(shown), *([cell(row) for _, cell in shown] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
