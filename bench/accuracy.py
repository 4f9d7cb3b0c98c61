"""Accuracy at small budgets, next to the initial images and the public code; and precisions, seed by seed.

    python -m bench.accuracy --data_path data [--only CIFAR10-1 …] [--seeds 0]
    python -m bench.accuracy --data_path data --precisions fp32 bf16 [--seeds 0 1 2 …]

The seed decides initial images, networks, draws and augmentation, so that only rounding distinguishes the precisions of
one seed. Every row carries the command that condenses and evaluates the same.
"""

import dataclasses
import itertools
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import fastdm
from bench.harness import arguments, cells, plots
from bench.harness.records import STEP, Recorder, Result, Row, Suite

BATCH_REAL = 64
NUM_EVAL = 3
EPOCHS = 300


@dataclasses.dataclass(frozen=True)
class Case:
    """public: what the public code reached with the same budget (one condensed set, 3 networks × 300 epochs), %."""

    dataset: str
    ipc: int
    iterations: int
    public: float

    @property
    def command(self) -> str:
        return (
            f"fastdm condense --dataset {self.dataset} --ipc {self.ipc} --Iteration {self.iterations} "
            f"--batch_real {BATCH_REAL} --num_exp 1 --num_eval {NUM_EVAL} --epoch_eval_train {EPOCHS}"
        )


CASES = [
    Case("FashionMNIST", 1, 100, 70.6),
    Case("FashionMNIST", 10, 300, 81.9),
    Case("CIFAR10", 1, 200, 25.7),
]


def measure(case: Case, data_path: Path, seed: int, precision: Any, epochs: int, device: str, initial: bool) -> Row:
    """Condense, and evaluate the result and, if asked for, the images it started from."""
    dataset = fastdm.open_dataset(case.dataset, data_path=data_path)
    losses: list[float] = []
    moments: list[float] = []

    def after(iteration: int, loss: float, images: object) -> None:
        losses.append(loss)
        moments.append(time.perf_counter())

    settings: dict[str, Any] = {"ipc": case.ipc, "batch_real": BATCH_REAL, "precision": precision}
    condense = partial(fastdm.condense, dataset, **settings, seed=seed, device=device)
    condensed = condense(iterations=case.iterations, callback=after)
    row: Row = {
        "precision": condensed.settings["precision"],
        # The first iteration ends after the step was built, compiled or recorded.
        "seconds_per_iteration": round((moments[-1] - moments[0]) / max(1, len(moments) - 1), 4),
        "loss_first_25": round(statistics.fmean(losses[:25]), 3),
        "loss_last_25": round(statistics.fmean(losses[-25:]), 3),
        "losses": [round(loss, 4) for loss in losses],
    }
    sets = {"condensed": condensed} | ({"initial": condense(iterations=0)} if initial else {})
    for what, images in sets.items():
        evaluation = fastdm.evaluate(images, dataset, num_eval=NUM_EVAL, epochs=epochs, seed=seed, device=device)
        row[f"{what}_accuracy"] = round(100 * evaluation.mean["ConvNet"], 2)
        row[f"{what}_std"] = round(100 * evaluation.std["ConvNet"], 2)
    return row


# --- tables and plots ------------------------------------------------------------------------------------------------


def _bars(result: Result) -> Any:
    rows = [row for row in result["rows"] if "condensed_accuracy" in row]
    if not rows:
        return None
    kinds = {
        "initial": ("random real images", plots.THEIRS),
        "public": ("public code", plots.OTHER),
        "condensed": ("fastdm", plots.OURS),
    }
    series = [
        plots.Series(
            label, [row[f"{kind}_accuracy"] for row in rows], color, (), [row.get(f"{kind}_std", 0) for row in rows]
        )
        for kind, (label, color) in kinds.items()
    ]
    return plots.bars(result, [row["name"] for row in rows], series, "test accuracy, %", row_inches=0.75)[0]


def _seeds(result: Result) -> Any:
    """Loss against iteration of every seed, and accuracy seed by seed."""
    done = [row for row in result["rows"] if "condensed_accuracy" in row]
    if not done:
        return None
    figure, (losses, accuracies) = plots.figure(result, 2, (8, 3))
    colors = {"fp32": plots.OURS, "bf16": plots.OTHER, "tf32": plots.LINE}
    for shift, name in enumerate(dict.fromkeys(row["precision"] for row in done)):
        rows = [row for row in done if row["precision"] == name]
        for row in rows:
            losses.plot(row["losses"], color=colors[name], lw=0.7, alpha=0.7)
        places = [row["seed"] + 0.15 * shift for row in rows]
        means, deviations = ([row[key] for row in rows] for key in ("condensed_accuracy", "condensed_std"))
        accuracies.errorbar(places, means, deviations, fmt="o", ms=4, color=colors[name], label=name)
    losses.set(xlabel="iteration", ylabel="loss / classes")
    plots.label(accuracies, "seed", "test accuracy, %", "linear")
    return figure


def _last_quarter(row: Row) -> str:
    losses = row.get("losses", [])
    return f"{statistics.fmean(losses[-max(1, len(losses) // 4) :]):.2f}" if losses else ""


_COLUMNS = cells.columns(
    """
    set | name; precision; seed; start; condensed; difference | difference | +.2f; public code | public_accuracy | .1f
    mean loss, last quarter | last_quarter; s per iteration | seconds_per_iteration | .3g; command
    """,
    start=cells.plus_minus("initial_accuracy", "initial_std"),
    condensed=cells.plus_minus("condensed_accuracy", "condensed_std"),
    last_quarter=_last_quarter,
    command=lambda row: f"`{row['command']}`" if "command" in row else "",
)
_QUOTED = ("set", "start", "condensed", "public code", "s per iteration", "command")
_ROOMS = (*STEP, "evaluation")
BUDGETS = Suite(
    "accuracy",
    "Accuracy",
    "Test accuracy in % (mean and standard deviation over networks) of the condensed set, of the random real images "
    "that it started from, and of what the public code reached with the same budget.",
    _ROOMS,
    _COLUMNS,
    quote=lambda rows: cells.table([column for column in _COLUMNS if column[0] in _QUOTED], rows),
    plots={"bars": _bars},
)
PRECISIONS = Suite(
    "precision",
    "Precision",
    "The same condensation in several precisions, seed by seed: test accuracy in % (mean and standard deviation over "
    "networks), and its difference from that of the first precision.",
    _ROOMS,
    _COLUMNS,
    plots={"seeds": _seeds},
)


def main() -> None:
    parser = arguments.parser(__doc__, device=True, data=True)
    parser.add_argument("--only", nargs="+", help="such as CIFAR10-1: data set and ipc")
    parser.add_argument("--precisions", nargs="+", help="compare them: the first case, twelve seeds if none are given")
    parser.add_argument("--seeds", nargs="+", type=int)
    options = parser.parse_args()
    comparing = bool(options.precisions)
    seeds = options.seeds or (range(12) if comparing else [0])
    cases = [case for case in CASES if f"{case.dataset}-{case.ipc}" in (options.only or [f"{case.dataset}-{case.ipc}"])]
    epochs = 1 if options.smoke else EPOCHS
    settings = {"smoke": options.smoke, "batch_real": BATCH_REAL, "num_eval": NUM_EVAL, "epochs": epochs}
    recorder = Recorder(PRECISIONS if comparing else BUDGETS, settings, options.device)
    for case, seed in itertools.product(cases[:1] if comparing else cases, seeds):
        case = dataclasses.replace(case, iterations=2) if options.smoke else case
        first: Row = {}
        for precision in options.precisions or [None]:
            name = f"{case.dataset} ipc {case.ipc}, {case.iterations} iterations"
            row: Row = {"name": name, "seed": seed}
            row |= {} if comparing else {"command": case.command, "public_accuracy": case.public}
            how = partial(measure, case, options.data_path, seed, precision, epochs, options.device, not comparing)
            recorder.add(row, how)
            first = first or row
            if row is not first and "condensed_accuracy" in row and "condensed_accuracy" in first:
                row["difference"] = round(row["condensed_accuracy"] - first["condensed_accuracy"], 2)
                recorder.save()


if __name__ == "__main__":
    main()
