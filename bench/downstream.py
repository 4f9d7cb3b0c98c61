"""The paper's downstream tasks at small budgets: continual learning on FashionMNIST, architecture search on digits.

    python -m bench.downstream --data_path data [--keep FOLDER]

--keep: where the commands leave what they write, and continue. The plot that they draw becomes docs/continual.png.
"""

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from bench.harness import arguments, cells, records
from bench.harness.machine import REPOSITORY
from bench.harness.records import STEP, Row, Rows, Suite

COMMANDS = {
    "continual": "fastdm continual --dataset FashionMNIST --steps 5 --ipc 2 --method DM,random,herding --orders 3 "
    "--model ConvNetW32 --iterations 100 --batch_real 64 --num_eval 2 --epoch_eval_train 200 --herding_epochs 1",
    "search": "fastdm search --dataset digits --ipc 10 --depth 1,2 --width 32,64 --networks 12 --model ConvNetW32 "
    "--iterations 150 --batch_real 64 --epoch_eval_train 60 --epoch_whole_set 6",
}
_LITTLE = " --dataset digits --ipc 1 --model ConvNetD1 --iterations 1 --batch_real 8 --epoch_eval_train 1 "
SMOKE = {
    "continual": COMMANDS["continual"] + _LITTLE + "--method DM,random --orders 1 --num_eval 1",
    "search": COMMANDS["search"] + _LITTLE + "--depth 1 --width 32 --networks 2 --epoch_whole_set 1",
}
"""The same with next to no training: the last of several values of a flag counts."""

PLOT = REPOSITORY / "docs" / "continual.png"


def continual_rows(results: Sequence[Row]) -> list[Row]:
    """A row for each method and step: the mean accuracy of each order's networks, in percent."""
    found: dict[tuple[str, int], Row] = {}
    for record in results:
        method, classes = record["method"], record["classes"]
        row = {"name": f"{method}, {classes} classes", "task": "continual", "method": method, "classes": classes}
        orders = found.setdefault((method, classes), row).setdefault("orders", [])
        orders.append(round(100 * statistics.fmean(record["accuracies"]), 2))
    for row in found.values():
        row |= {"mean": round(statistics.fmean(row["orders"]), 2), "std": round(statistics.pstdev(row["orders"]), 2)}
    return [*found.values()]


def search_rows(summary: dict[str, Row], results: Sequence[Row]) -> list[Row]:
    """A row for each proxy, and the whole set: what it is worth, and what every network reached on it, in percent."""
    rows = []
    for proxy, worth in summary.items():
        of_proxy = {each["network"]: each["accuracies"] for each in results if each["proxy"] == proxy}
        networks = {name: round(100 * statistics.fmean(each), 2) for name, each in of_proxy.items()}
        row = {"name": f"proxy: {proxy}", "task": "search", "best": worth["best"], "spearman": worth["spearman"]}
        row |= {"reached": round(100 * worth["accuracy"], 2), "took_seconds": round(worth["seconds"], 1)}
        rows.append(row | {"images": worth["images"], "networks": networks})
    return rows


def _tables(rows: Sequence[Row]) -> str:
    of = {task: [row for row in rows if row.get("task") == task] for task in COMMANDS}
    by_method: dict[str, Row] = {row["method"]: {"method": row["method"]} for row in of["continual"]}
    for row in of["continual"]:
        by_method[row["method"]][str(row["classes"])] = f"{row['mean']:.1f} ± {row['std']:.1f}"
    classes = sorted({row["classes"] for row in of["continual"]})
    columns = "; ".join(["accuracy, %, by classes so far | method", *map(str, classes)])
    tables = {"continual": cells.table(columns, [*by_method.values()])}
    tables["search"] = cells.table(
        """
        proxy | name; best network on it | best; which reaches, % | reached | .1f; rank correlation | spearman | .2f
        s | took_seconds | ,.0f; images | images | ,.0f
        """,
        [row | {"name": row["name"].removeprefix("proxy: ")} for row in of["search"]],
    )
    return "\n\n".join(f"`{COMMANDS[task]}`\n\n{table}" for task, table in tables.items() if table)


SUITE = Suite(
    "downstream",
    "Downstream tasks",
    "Continual learning: the accuracy on the test images of all classes so far, mean and standard deviation over the "
    "orders. Architecture search: how well trainings on each proxy rank 12 networks, compared with the whole set.",
    (*STEP, "synthetic", "evaluation", "applications"),
    _tables,
)


def measure(task: str, folder: Path, data_path: Path, smoke: bool) -> list[Row]:
    """The rows of a task, whose command runs or continues in the folder and leaves its files there."""
    command = (SMOKE if smoke else COMMANDS)[task].split()
    where = ["--data_path", str(data_path), "--save_path", str(folder), "--resume"]
    subprocess.run([sys.executable, "-m", *command, *where], check=True)
    results = json.loads((folder / f"{task}.json").read_text())["results"]
    if task == "continual":
        return continual_rows(results)
    return search_rows(json.loads((folder / "summary.json").read_text()), results)


def rows(options: Namespace) -> Rows:
    with tempfile.TemporaryDirectory() as temporary:
        for task in options.only:
            folder = (options.keep or Path(temporary)) / task
            yield from measure(task, folder, options.data_path, options.smoke)
            if task == "continual" and not options.smoke:
                shutil.copyfile(folder / "continual.png", PLOT)


if __name__ == "__main__":
    parser = arguments.parser(__doc__, "--data_path")
    parser.add_argument("--only", nargs="+", choices=COMMANDS, default=[*COMMANDS])
    parser.add_argument("--keep", type=Path)
    records.record(SUITE, parser.parse_args(), rows)
