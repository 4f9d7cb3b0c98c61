"""All results in one page: bench/RESULTS.md with tables and plots, and the figures that README.md quotes.

python -m bench.report [--to bench]

README.md quotes a table between the markers ``<!-- bench:SUITE -->`` and ``<!-- /bench:SUITE -->``: what stands there
is replaced. Results that are older than the code they measured are marked as stale in RESULTS.md.
"""

import argparse
import dataclasses
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench import results

Row = dict[str, Any]
Column = tuple[str, Callable[[Row], str]]
README = results.REPOSITORY / "README.md"


@dataclasses.dataclass(frozen=True)
class Section:
    """columns: header and cell; a column that is empty for every row is left out. losses: rows that lose, in words.
    render: what makes the table, in place of the columns."""

    title: str
    text: str
    columns: Sequence[Column]
    losses: Callable[[Row], str] | None = None
    render: Callable[[Sequence[Row]], str] | None = None


# --- cells -----------------------------------------------------------------------------------------------------------


def text(key: str) -> Callable[[Row], str]:
    return lambda row: str(row.get(key, "")).replace("|", "\\|")


def code(key: str) -> Callable[[Row], str]:
    return lambda row: f"`{row[key]}`" if row.get(key) else ""


def number(key: str, form: str = "{:.3g}", unit: float = 1.0) -> Callable[[Row], str]:
    return lambda row: _trimmed(form.format(row[key] / unit)) if row.get(key) is not None else ""


def nested(key: str, name: str, form: str = "{:.2f}", unit: float = 1.0) -> Callable[[Row], str]:
    """An entry of a dict, such as the speed-up over eager."""
    return lambda row: form.format(row[key][name] / unit) if name in row.get(key, {}) else ""


def spread(name: str, unit: float) -> Callable[[Row], str]:
    """Median (p20–p80); the reason in its place where there is none."""

    def cell(row: Row) -> str:
        if "failure" in row:
            return "failed"
        if row.get("correct") is False:
            return "wrong result"
        if name not in row.get("seconds", {}):
            return ""
        values = row["seconds"][name]
        median, low, high = (_significant(values[key] / unit) for key in ("median", "p20", "p80"))
        return median if values["n"] == 1 else f"{median} ({low}–{high})"

    return cell


def error(row: Row, of: str = "") -> str:
    """An error beside its tolerance. of: which one, as "median_"; empty where the row has none."""
    if f"{of}tolerance" not in row:
        return text(f"{of}error")(row)
    value, tolerance = row[f"{of}error"], row[f"{of}tolerance"]
    return f"{value:.1e} {'≤' if value <= tolerance else '>'} {tolerance:.1e}"


def median_error(row: Row) -> str:
    return error(row, "median_")


def _significant(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _trimmed(word: str) -> str:
    return re.sub(r"e\+0?", "e", word)


def _plus_minus(what: str) -> Callable[[Row], str]:
    return lambda row: f"{row[f'{what}_accuracy']:.1f} ± {row[f'{what}_std']:.1f}"


def _in_units(key: str) -> Callable[[Row], str]:
    return lambda row: f"{row[key]:.3g} {row['unit']}"


def _ratio(row: Row) -> str:
    ratio = {key: _significant(value) for key, value in row["ratio"].items()}
    return f"{ratio['median']} ({ratio['p20']}–{ratio['p80']})" if "p20" in ratio else ratio["median"]


def _last_quarter(losses: list[float]) -> float:
    return statistics.fmean(losses[-max(1, len(losses) // 4) :])


def _slower_kernel(row: Row) -> str:
    slow = [f"{1 / x:.2f}× the time of {name}" for name, x in row.get("speedup", {}).items() if x < 1]
    return " and ".join(slow)


def _machine_code(rows: Sequence[Row]) -> str:
    """The table that the compile check prints."""
    from fastdm.kernels import compile_check

    return compile_check.table([compile_check.Report.of(row) for row in rows])


def _last_words(row: Row) -> str:
    """Of the log, where they say something: what failed, or how many tests passed."""
    return "" if row["end"] == "done" and row["name"] != "gpu_tests" else text("said")(row)


# --- sections --------------------------------------------------------------------------------------------------------

_STAGES: list[Column] = [
    ("stage", text("name")),
    ("s", number("took_seconds", "{:.0f}")),
    ("end", text("end")),
    ("last words", _last_words),
]
SECTIONS: dict[str, Section] = {
    "accuracy": Section(
        "Accuracy",
        "Test accuracy in % (mean and standard deviation over networks) of the condensed set, beside the random real "
        "images it started from and what the public code reached with the same budget.",
        [
            ("set", text("name")),
            ("start", _plus_minus("initial")),
            ("condensed", _plus_minus("condensed")),
            ("public code", number("public_accuracy", "{:.1f}")),
            ("s per iteration", number("seconds_per_iteration")),
            ("command", code("command")),
        ],
    ),
    "precision": Section(
        "Precision",
        "The same condensation in several arithmetics, seed by seed: test accuracy in % (mean and standard deviation "
        "over networks), and its difference from the first arithmetic's.",
        [
            ("arithmetic", text("precision")),
            ("seed", text("seed")),
            ("accuracy", lambda row: f"{row['accuracy']:.1f} ± {row['std']:.1f}"),
            ("difference", number("difference", "{:+.2f}")),
            ("mean loss, last quarter", lambda row: f"{_last_quarter(row['losses']):.2f}"),
            ("s per iteration", number("seconds_per_iteration")),
        ],
    ),
    "cpu_step": Section(
        "An iteration on a CPU",
        "In ms, median (p20–p80), beside the public loop, in turns in one process. “raised” has glibc's malloc keep "
        "large blocks. Memory is the peak of a process of its own. The errors are those of the first change of the "
        "images, against float64: of the whole, which activations on the other side of a ReLU decide, and the median "
        "of the single images', which rounding does.",
        [
            ("size", text("name")),
            ("malloc", text("malloc")),
            ("classes", text("classes")),
            ("real images per class", text("batch_real")),
            ("ms", spread("fastdm", 1e-3)),
            ("public, ms", spread("public", 1e-3)),
            ("× public", number("ratio", "{:.1f}")),
            ("memory, MiB", nested("peak_mib", "fastdm", "{:,.0f}")),
            ("public, MiB", nested("peak_mib", "public", "{:,.0f}")),
            ("error", error),
            ("median error", median_error),
        ],
    ),
    "torch_compile": Section(
        "torch.compile",
        "What `--compile` makes of networks whose layers the package does not fuse: ms per iteration of CIFAR-10's "
        "size, 10 images per class, median (p20–p80), in turns without and with it; the seconds that a first run "
        "compiles, and the iterations that save as much. The error is the difference of both first changes of the "
        "images.",
        [
            ("network", text("name")),
            ("real images per class", text("batch_real")),
            ("ms", spread("eager", 1e-3)),
            ("compiled, ms", spread("compiled", 1e-3)),
            ("× as fast", number("ratio", "{:.2f}")),
            ("compiling, s", number("compile_seconds", "{:.1f}")),
            ("has paid after", number("paid_after", "{:,.0f} iterations")),
            ("error", error),
        ],
        losses=lambda row: f"{1 / row['ratio']:.2f}× the time without it" if row.get("ratio", 1) < 1 else "",
    ),
    "host": Section(
        "Calls",
        "What replaces a call of the public code, in ms by the clock, median (p20–p80), in turns with it.",
        [
            ("call", text("name")),
            ("ms", spread("fastdm", 1e-3)),
            ("public, ms", spread("public", 1e-3)),
            ("× public", number("ratio", "{:.1f}")),
            ("error", error),
            ("median error", median_error),
        ],
    ),
    "launches": Section(
        "Launches per iteration",
        "Counted by dispatch: ops that do work, which on a GPU are launches of at least one kernel, and the bytes of "
        "all results. The package's count does not depend on the classes of a chunk. “device” is the path of a GPU.",
        [
            ("loop", text("name")),
            ("ops, 10 classes", number("ops_10_classes", "{:,.0f}")),
            ("ops, 100 classes", number("ops_100_classes", "{:,.0f}")),
            ("MB allocated, 10 classes", number("bytes_10_classes", "{:.3g}", 1e6)),
            ("MB allocated, 100 classes", number("bytes_100_classes", "{:.3g}", 1e6)),
        ],
    ),
    "loading": Section(
        "Loading",
        "How many times as fast as what stands in the row's name, median (p20–p80) of runs in turns, and the target; "
        "rows in seconds or GB are limits.",
        [
            ("what", text("name")),
            ("ratio", _ratio),
            ("target", number("target")),
            ("met", lambda row: {True: "yes", False: "no"}.get(row.get("met", ""), "")),
            ("images/s", number("images_per_second", "{:,.0f}")),
            ("baseline, images/s", number("baseline_images_per_second", "{:,.0f}")),
            ("note", text("note")),
        ],
    ),
    "peaks": Section(
        "Peaks",
        "Measured, and what every percentage on this page is of. Bytes of a copy are read and written.",
        [
            ("what", text("name")),
            ("GB/s", number("gb_per_s", "{:,.0f}")),
            ("TFLOP/s", number("tflop_per_s", "{:,.3g}")),
        ],
    ),
    "waterfall": Section(
        "From the public loop to a graph",
        "An iteration of CIFAR-10's size, 10 images per class, in ms: median (p20–p80). The error is that of the "
        "losses against the public loop with equal draws; “compiled bf16” is the baseline to beat. FLOPs are those of "
        "plain convolutions: Winograd's form multiplies less often, and may pass 100 %.",
        [
            ("stage", text("name")),
            ("what", text("what")),
            ("precision", text("precision")),
            ("ms", spread("iteration", 1e-3)),
            ("× public", number("times_public", "{:.1f}")),
            ("× compiled", number("times_compiled_bf16", "{:.2f}")),
            ("TFLOP/s", number("tflop_per_s")),
            ("% of matmul peak", number("percent_of_matmul", "{:.0f}")),
            ("error of the loss", error),
            ("first call, s", number("start_seconds", "{:.1f}")),
        ],
    ),
    "scale": Section(
        "Cost against classes and images",
        "An iteration as `fastdm condense` runs it, in ms, beside the public loop; peak memory beside the plan made "
        "before the first iteration.",
        [
            ("size", text("name")),
            ("precision", text("precision")),
            ("ms", spread("fastdm", 1e-3)),
            ("public, ms", spread("public", 1e-3)),
            ("× public", number("times_public", "{:.1f}")),
            ("% of matmul peak", number("percent_of_matmul", "{:.0f}")),
            ("chunks", text("chunks")),
            ("graph", text("graph")),
            ("peak, GB", number("peak_bytes", "{:.2f}", 1e9)),
            ("planned, GB", number("planned_bytes", "{:.2f}", 1e9)),
        ],
    ),
    "evaluation": Section(
        "Evaluation",
        "Training of networks on a condensed set, and their test.",
        [
            ("size", text("name")),
            ("networks", text("networks")),
            ("epochs", text("epochs")),
            ("test images", number("test_images", "{:,.0f}")),
            ("s", spread("all", 1.0)),
            ("networks × epochs per s", number("networks_epochs_per_s")),
        ],
    ),
    "kernels": Section(
        "Kernels",
        "Every op beside eager PyTorch and torch.compile of it, in µs: median (p20–p80), cold cache, forward unless "
        "said. Bytes are the least that must move.",
        [
            ("op", text("name")),
            ("form", text("implementation")),
            ("µs", spread("fastdm", 1e-6)),
            ("GB/s", number("gb_per_s", "{:,.3g}")),
            ("% of copy", number("percent_of_copy", "{:.0f}")),
            ("× eager", nested("speedup", "eager")),
            ("× compile", nested("speedup", "compile")),
            ("error", error),
            ("memory, MB", nested("peak_bytes", "fastdm", "{:.0f}", 1e6)),
        ],
        losses=_slower_kernel,
    ),
    "compile": Section(
        "What the compiler makes of the kernels",
        "Compiled ahead of time, without the hardware, for the shapes of the presets; what differs between targets "
        "stands in their order, what differs on one behind the others. Loads and stores are instructions · bits, of "
        "global memory.",
        [],
        render=_machine_code,
    ),
    "traffic": Section(
        "Bytes that the kernels move",
        "An element counts once per launch, as with a cache that holds an image; plain PyTorch is the public code's "
        "form, every operation counted as reading its arguments and writing its results once. P: the batch in float32; "
        "X: the input of the op.",
        [
            ("op", text("name")),
            ("read", _in_units("read")),
            ("written", _in_units("written")),
            ("together", _in_units("ours")),
            ("plain PyTorch", _in_units("eager")),
        ],
    ),
    "cpu_report": Section("The CPU run", "The stages of `make bench`.", _STAGES),
    "gpu_report": Section("The GPU run", "The stages of `make gpu-report`.", _STAGES),
}


def table(section: Section, rows: Sequence[Row]) -> str:
    """Markdown. A section without columns shows whatever plain values and spreads its rows hold."""
    if section.render:
        return section.render(rows)
    columns = [(head, cell) for head, cell in section.columns or _all_columns(rows) if any(cell(row) for row in rows)]
    lines = [[head for head, _ in columns], ["---"] * len(columns)]
    lines += [[cell(row) for _, cell in columns] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _all_columns(rows: Sequence[Row]) -> list[Column]:
    columns: dict[str, Column] = {}
    for row in rows:
        for key, value in row.items():
            if key == "seconds":
                columns |= {name: (f"{name}, ms", spread(name, 1e-3)) for name in value}
            elif isinstance(value, bool | str):
                columns[key] = (key.replace("_", " "), text(key))
            elif isinstance(value, int | float):
                columns[key] = (key.replace("_", " "), number(key))
            elif isinstance(value, dict):
                columns |= {
                    f"{key} {name}": (f"{key.replace('_', ' ')} {name}", nested(key, name, "{:.3g}"))
                    for name, entry in value.items()
                    if isinstance(entry, int | float)
                }
    return list(columns.values())


def block(suite: str, stale: bool = False) -> str:
    """Every result of a suite as Markdown: where it comes from, and its table."""
    section = SECTIONS[suite]
    parts = []
    for result in results.load(suite):
        parts.append(_origin(result, stale) + "\n\n" + table(section, result["rows"]))
        slower = section.losses and [
            f"- {row['name']}: {why}" for row in result["rows"] if (why := section.losses(row))
        ]
        if slower:
            parts.append("Slower than a baseline:\n\n" + "\n".join(slower))
        failed = [f"- {row['name']}: {row['failure']}" for row in result["rows"] if "failure" in row]
        if failed:
            parts.append("Failed:\n\n" + "\n".join(failed))
    return "\n\n".join(parts)


def _origin(result: dict[str, Any], stale: bool) -> str:
    about = result["machine"]
    where = about["cpu"] if about["device"] == "cpu" else f"{about['device']} ({about['cpu']})"
    cores = f"{about['cores']} core{'s' if about['cores'] > 1 else ''}"
    origin = f"{where}, {cores}, torch {about['versions']['torch']}, commit {result['commit']}, {result['date'][:10]}: "
    origin += f"`{result['command']}`"
    if stale and (changed := results.changed(result)):
        origin += f"\n\n**Stale**: since then {', '.join(changed)} changed."
    if result["settings"].get("smoke"):
        origin += "\n\n**A smoke run**: tiny shapes, whose times mean nothing."
    return origin


def page(plots: Path) -> str:
    """RESULTS.md: machines, then one section per suite that has results, with the plots that lie in a folder."""
    chapters = [
        "# Results\n\nMade by `python -m bench.report` from the files in `bench/results/`; every table names the "
        "command that takes it anew."
    ]
    if machines := _machines():
        chapters.append(f"## Machines\n\n{machines}")
    for suite, section in SECTIONS.items():
        if body := block(suite, stale=True):
            pictures = [
                f"![{picture.stem.replace('--', ', ').replace('_', ' ')}]({plots.name}/{picture.name})"
                for picture in sorted(plots.glob(f"{suite}-*.png"))
            ]
            chapters.append("\n\n".join([f"## {section.title}", section.text, *pictures, body]))
    return "\n\n".join(chapters) + "\n"


def _machines() -> str:
    known: dict[str, Row] = {}
    for suite in SECTIONS:
        for result in results.load(suite):
            about = result["machine"]
            entry = known.setdefault(f"{about['cpu']}, {about['device']}", {"suites": [], "loads": [], **about})
            entry["suites"].append(suite)
            entry["loads"].append(about["load"])
    columns: list[Column] = [
        ("device", text("device")),
        ("processor", text("cpu")),
        ("cores", text("cores")),
        ("memory, GiB", text("memory_gib")),
        ("driver, CUDA", lambda row: f"{row['driver']}, {row['cuda']}" if "driver" in row else ""),
        ("versions", lambda row: ", ".join(f"{name} {version}" for name, version in row["versions"].items())),
        ("load", lambda row: f"{min(row['loads'])}–{max(row['loads'])}"),
        ("suites", lambda row: ", ".join(row["suites"])),
    ]
    return table(Section("", "", columns), list(known.values())) if known else ""


def quoted(readme: str) -> str:
    """The README with every block between markers replaced by what the results say."""

    def replace(match: re.Match[str]) -> str:
        suite = match[1]
        if suite not in SECTIONS:
            raise ValueError(f"README.md quotes bench:{suite}; there are {', '.join(SECTIONS)}")
        body = block(suite)
        return f"<!-- bench:{suite} -->\n{body}\n<!-- /bench:{suite} -->" if body else match[0]

    return re.sub(r"<!-- bench:(\w+) -->\n.*?<!-- /bench:\1 -->", replace, readme, flags=re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--to", type=Path, default=results.REPOSITORY / "bench", help="folder for RESULTS.md and plots/"
    )
    arguments = parser.parse_args()
    from bench import figures

    plots = arguments.to / "plots"
    for picture in figures.draw(plots):
        print(picture)
    (arguments.to / "RESULTS.md").write_text(page(plots))
    print(arguments.to / "RESULTS.md")
    if arguments.to == results.REPOSITORY / "bench":
        README.write_text(quoted(README.read_text()))


if __name__ == "__main__":
    main()
