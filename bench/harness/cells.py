"""Tables in Markdown out of rows and lines that describe their columns."""

import re
from collections.abc import Sequence

from bench.harness.records import Row, Spread, Table, value

_SECONDS = {"s": 1.0, "ms": 1e-3, "µs": 1e-6}


def table(described: Table, rows: Sequence[Row]) -> str:
    """The rows under columns such as "ms | fastdm | ms; × public | ratio.public | .1f", without those that are empty.

    A column is "header | key | format"; without a key, the header is it. format: see `cell`. What makes a table from
    the rows may stand in place of the columns.
    """
    if not isinstance(described, str):
        return described(rows)
    columns: dict[str, list[str]] = {}
    for part in re.split("[;\n]", described.strip()):
        header, key, form = ([word.strip() for word in part.split("|")] + ["", ""])[:3]
        columns[header] = [cell(row, key or header, form) for row in rows]
    shown = [(header, "---", *texts) for header, texts in columns.items() if any(texts)]
    return "\n".join(f"| {' | '.join(line)} |" for line in zip(*shown, strict=True))


def cell(row: Row, key: str, form: str = "") -> str:
    """What a row holds under a key, or under "peak_mib.public" in a dict of it; nothing where there is none.

    form: none for text; s, ms or µs for the spread of a row's seconds, or why there are none, and "median ms" for its
    median alone; "spread" for one of other numbers; "±" for a number and its deviation; "unit" for a number in the
    row's unit; else that of a number, followed by "/1e9" where it is divided. An error stands with its tolerance.
    """
    kind, _, unit = form.rpartition(" ")
    found = value(row, key)
    if unit in _SECONDS:
        if spread := value(row, f"seconds.{key}"):
            return spread_text(spread | {"n": 1} if kind == "median" else spread, _SECONDS[unit])
        return "wrong result" if row.get("correct") is False else "failed" if "failure" in row else ""
    if found is None:
        return ""
    if isinstance(found, bool):
        return "yes" if found else "no"
    if key.endswith("error") and (tolerance := row.get(f"{key.removesuffix('error')}tolerance")) is not None:
        return f"{found:.1e} {'≤' if found <= tolerance else '>'} {tolerance:.1e}"
    if form == "":
        return str(found).replace("|", "\\|")
    if form == "spread":
        return spread_text(found)
    if form == "±":
        return f"{found:.1f} ± {row[f'{key}_std']:.1f}"
    if form == "unit":
        return f"{found:.3g} {row['unit']}"
    form, _, divisor = form.partition("/")
    text = (form if "{" in form else f"{{:{form}}}").format(found / float(divisor or 1))
    return re.sub(r"e\+0?", "e", text)


def spread_text(values: Spread, unit: float = 1.0) -> str:
    middle, low, high = (
        f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
        for number in (values.get(key, 0) / unit for key in ("median", "p20", "p80"))
    )
    return middle if values["n"] <= 1 else f"{middle} ({low}–{high})"
