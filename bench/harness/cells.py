"""Cells of the tables: functions from a row to Markdown, and the table that they make."""

import re
from collections.abc import Callable, Sequence

from bench.harness.records import Column, Row

Cell = Callable[[Row], str]


def text(key: str) -> Cell:
    return lambda row: str(row.get(key, "")).replace("|", "\\|")


def code(key: str) -> Cell:
    return lambda row: f"`{row[key]}`" if row.get(key) else ""


def number(key: str, form: str = "{:.3g}", unit: float = 1.0) -> Cell:
    return lambda row: trimmed(form.format(row[key] / unit)) if row.get(key) is not None else ""


def nested(key: str, name: str, form: str = "{:.2f}", unit: float = 1.0) -> Cell:
    """An entry of a dict, such as the speed-up over eager PyTorch."""
    return lambda row: form.format(row[key][name] / unit) if name in row.get(key, {}) else ""


def spread(name: str, unit: float) -> Cell:
    """Median (p20–p80); the reason in its place where there is none."""

    def cell(row: Row) -> str:
        if name in row.get("seconds", {}):
            return spread_text(row["seconds"][name], unit)
        if row.get("correct") is False:
            return "wrong result"
        return "failed" if "failure" in row else ""

    return cell


def median(name: str, unit: float) -> Cell:
    """The median alone."""
    return lambda row: significant(row["seconds"][name]["median"] / unit) if name in row.get("seconds", {}) else ""


def plus_minus(mean: str, deviation: str) -> Cell:
    return lambda row: f"{row[mean]:.1f} ± {row[deviation]:.1f}" if mean in row else ""


def error(row: Row, of: str = "") -> str:
    """An error and its tolerance. of: which one, as "median_"; empty where the row has none."""
    if f"{of}tolerance" not in row:
        return text(f"{of}error")(row)
    value, tolerance = row[f"{of}error"], row[f"{of}tolerance"]
    return f"{value:.1e} {'≤' if value <= tolerance else '>'} {tolerance:.1e}"


def median_error(row: Row) -> str:
    return error(row, "median_")


def spread_text(values: dict[str, float], unit: float = 1.0) -> str:
    middle, low, high = (significant(values.get(key, 0) / unit) for key in ("median", "p20", "p80"))
    return middle if values["n"] <= 1 else f"{middle} ({low}–{high})"


def significant(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def trimmed(word: str) -> str:
    return re.sub(r"e\+0?", "e", word)


def table(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """Markdown, without the columns that are empty in every row."""
    shown = [(head, cell) for head, cell in columns if any(cell(row) for row in rows)]
    lines = [[head for head, _ in shown], ["---"] * len(shown)]
    lines += [[cell(row) for _, cell in shown] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
