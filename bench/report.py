"""All records on one page: bench/RESULTS.md with tables and plots, and the figures that README.md quotes.

README.md quotes a table between the markers `<!-- bench:SUITE -->` and `<!-- /bench:SUITE -->`, which is replaced.
Records that are older than the code they measured are marked as stale in RESULTS.md.
"""

import argparse
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

from bench.harness import cells, machine, records
from bench.harness.machine import REPOSITORY
from bench.harness.records import Result, Row, Suite

README = REPOSITORY / "README.md"
_MODULES = """
accuracy waterfall step calls launches loading peaks evaluation downstream matching kernels compile traffic
fakegpu scale run
"""
SUITES = {
    suite.name: suite
    for module in _MODULES.split()
    for suite in vars(importlib.import_module(f"bench.{module}")).values()
    if isinstance(suite, Suite)
}


def block(suite: Suite, *, quoted: bool = False) -> str:
    """Every record of a suite as Markdown: where it comes from, and its table. quoted: as README.md shows it."""
    parts = []
    for result in suite.load():
        rows = result["rows"]
        about = result["machine"]
        where = about["cpu"] if about["device"] == "cpu" else f"{about['device']} ({about['cpu']})"
        cores = f"{about['cores']} core{'s' if about['cores'] > 1 else ''}"
        versions = f"torch {about['versions']['torch']}, commit {result['commit']}, {result['date'][:10]}"
        parts.append(f"{where}, {cores}, {versions}: `{result['command']}`")
        if quoted:
            right = [row for row in rows if row.get("correct", True) and "failure" not in row]
            parts.append(cells.table(suite.quoted or suite.table, right))
            continue
        if changed := records.changed(suite, result):
            parts.append(f"**Stale**: since then {', '.join(changed)} changed.")
        if result["settings"].get("smoke"):
            parts.append("**A smoke run**: tiny shapes, whose times mean nothing.")
        parts.append(cells.table(suite.table, rows))
        slower = [(row["name"], _slower(suite, row)) for row in rows]
        failed = [(row["name"], row.get("failure")) for row in rows]
        for title, found in (("Slower than a baseline", slower), ("Failed", failed)):
            if lines := [f"- {name}: {why}" for name, why in found if why]:
                parts.append(f"{title}:\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def _slower(suite: Suite, row: Row) -> str:
    ratios = {baseline: records.value(row, key) or 1.0 for key, baseline in suite.slower.items()}
    return " and ".join(f"{1 / x:.2f}× the time {baseline}" for baseline, x in ratios.items() if x < 1)


def page(pictures: Path) -> str:
    """RESULTS.md: machines, then one section per suite that has records, with the plots that lie in a folder."""
    chapters = [
        "# Results\n\nMade by `python -m bench.report` from the files in `bench/results/`; every table names the "
        "command that takes it anew."
    ]
    if machines := _machines():
        chapters.append(f"## Machines\n\n{machines}")
    for suite in SUITES.values():
        if body := block(suite):
            shown = [
                f"![{picture.stem.replace('--', ', ').replace('_', ' ')}]({pictures.name}/{picture.name})"
                for picture in sorted(pictures.glob(f"{suite.name}-*.png"))
            ]
            chapters.append("\n\n".join([f"## {suite.title}", suite.text, *shown, body]))
    return "\n\n".join(chapters) + "\n"


def _machines() -> str:
    known: dict[tuple[str, str], list[Result]] = {}
    for suite in SUITES.values():
        for result in suite.load():
            known.setdefault((result["machine"]["cpu"], result["machine"]["device"]), []).append(result)
    rows: list[Row] = []
    for results in known.values():
        about, loads = results[0]["machine"], [result["machine"]["load"] for result in results]
        shown = {
            "driver": f"{about['driver']}, {about['cuda']}" if "driver" in about else "",
            "versions": ", ".join(f"{name} {version}" for name, version in about["versions"].items()),
            "load": f"{min(loads)}–{max(loads)}",
            "suites": ", ".join(result["suite"] for result in results),
        }
        rows.append(about | shown)
    return cells.table(
        "device; processor | cpu; cores; memory, GiB | memory_gib; driver, CUDA | driver; versions; load; suites", rows
    )


def draw(folder: Path) -> Iterator[Path]:
    """Draw what there are records for, in place of all plots of before; yields the files."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    for suite in SUITES.values():
        for result in suite.load():
            where = "-".join(machine.slug(result["machine"][key]) for key in ("device", "cpu"))
            for kind, drawing in suite.plots.items():
                if (drawn := drawing(result)) is not None:
                    path = folder / f"{suite.name}-{kind}--{where}.png"
                    drawn.savefig(path)
                    yield path


def quoted(readme: str) -> str:
    """The README with every block between markers replaced by what the records say."""

    def replace(match: re.Match[str]) -> str:
        if match[1] not in SUITES:
            raise ValueError(f"README.md quotes bench:{match[1]}; there are {', '.join(SUITES)}")
        body = block(SUITES[match[1]], quoted=True)
        return f"<!-- bench:{match[1]} -->\n{body}\n<!-- /bench:{match[1]} -->" if body else match[0]

    return re.sub(r"<!-- bench:(\w+) -->\n.*?<!-- /bench:\1 -->", replace, readme, flags=re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=REPOSITORY / "bench", help="folder for RESULTS.md and plots/")
    to = parser.parse_args().to
    pictures = to / "plots"
    if importlib.util.find_spec("matplotlib") is None:
        print("no plots: matplotlib is not installed")
    else:
        for picture in draw(pictures):
            print(picture)
    (to / "RESULTS.md").write_text(page(pictures))
    print(to / "RESULTS.md")
    if to == REPOSITORY / "bench":
        README.write_text(quoted(README.read_text()))


if __name__ == "__main__":
    main()
