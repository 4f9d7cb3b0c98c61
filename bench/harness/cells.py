"""Tables in Markdown out of rows, and their cells: functions from a row to text."""

import re
from collections.abc import Callable, Sequence
from functools import partial

from bench.harness.records import Column, Row, Spread, value

Cell = Callable[[Row], str]

_SECONDS = {"s": 1.0, "ms": 1e-3, "µs": 1e-6}


def table(described: str | Sequence[Column], rows: Sequence[Row], **special: Cell) -> str:
    """The rows under columns, given or described, without the columns that are empty in every row."""
    every = columns(described, **special) if isinstance(described, str) else described
    shown = [(head, cell) for head, cell in every if any(cell(row) for row in rows)]
    lines = [[head for head, _ in shown], ["---"] * len(shown), *([cell(row) for _, cell in shown] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def columns(described: str, **special: Cell) -> list[Column]:
    """Columns out of lines such as "ms | fastdm | ms; × public | ratio.public | .1f", each "header | key | format".

    Without a key, the header is it. format: none for text; s, ms or µs for the spread of a row's seconds, and "median
    ms" for its median alone; "unit" for a number in the row's unit; else that of a number, followed by "/1e9" where it
    is divided. Errors stand with their tolerance. special: cells by key.
    """
    found: list[Column] = []
    for part in re.split("[;\n]", described.strip()):
        header, key, form = ([word.strip() for word in part.split("|")] + ["", ""])[:3]
        key = key or header
        kind, _, unit = form.rpartition(" ")
        if key in special:
            cell = special[key]
        elif key == "met":
            cell = met
        elif key.endswith("error"):
            cell = partial(error, of=key.removesuffix("error"))
        elif unit in _SECONDS:
            cell = spread(key, _SECONDS[unit], kind == "median")
        elif form == "unit":
            cell = partial(in_unit, key=key)
        elif form:
            form, _, unit = form.partition("/")
            cell = number(key, form if "{" in form else f"{{:{form}}}", float(unit or 1))
        else:
            cell = text(key)
        found.append((header, cell))
    return found


def text(key: str) -> Cell:
    return lambda row: str(row.get(key, "")).replace("|", "\\|")


def number(key: str, form: str = "{:.3g}", unit: float = 1.0) -> Cell:
    """key: of the row or, as "peak_mib.public", of a dict in it."""

    def cell(row: Row) -> str:
        found = value(row, key)
        return "" if found is None else re.sub(r"e\+0?", "e", form.format(found / unit))

    return cell


def in_unit(row: Row, key: str) -> str:
    return f"{row[key]:.3g} {row['unit']}"


def spread(name: str, unit: float, is_median: bool = False) -> Cell:
    """Median (p20–p80) of a row's seconds, or the median alone; the reason in its place where there are none."""

    def cell(row: Row) -> str:
        if found := row.get("seconds", {}).get(name):
            return spread_text(found | {"n": 1} if is_median else found, unit)
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


def met(row: Row) -> str:
    return {True: "yes", False: "no"}.get(row.get("met", ""), "")


def spread_text(values: Spread, unit: float = 1.0) -> str:
    middle, low, high = (
        f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
        for number in (values.get(key, 0) / unit for key in ("median", "p20", "p80"))
    )
    return middle if values["n"] <= 1 else f"{middle} ({low}–{high})"
