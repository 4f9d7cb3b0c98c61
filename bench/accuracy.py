"""Accuracy at small budgets, next to the initial images and the public code; and precisions, seed by seed.

    python -m bench.accuracy --data_path data [--only CIFAR10-1 …] [--seeds 0]
    python -m bench.accuracy precision --data_path data [--precisions fp32 bf16] [--seeds 0 1 2 …]

The seed decides initial images, networks, draws and augmentation, so that only rounding distinguishes the precisions of
one seed. Every row carries the command that condenses and evaluates the same.
"""

import dataclasses
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import fastdm
from bench.harness import arguments, cells, plots
from bench.harness.records import Recorder, Result, Row, Suite

BATCH_REAL = 64
NUM_EVAL = 3
EPOCHS = 300
SMOKE = {"iterations": 2, "epochs": 1}


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


def measure(
    case: Case, data_path: Path, seed: int, precision: Any, epochs: int, device: str, initial: bool = True
) -> Row:
    """Condense, and evaluate the result and, if asked for, the images it started from."""
    dataset = fastdm.open_dataset(case.dataset, data_path=data_path)
    losses: list[float] = []
    moments: list[float] = []

    def after(iteration: int, loss: float, images: object) -> None:
        losses.append(loss)
        moments.append(time.perf_counter())

    settings: dict[str, Any] = {"ipc": case.ipc, "batch_real": BATCH_REAL, "seed": seed, "device": device}
    settings["precision"] = precision
    condensed = fastdm.condense(dataset, iterations=case.iterations, callback=after, **settings)
    row: Row = {
        "precision": condensed.settings["precision"],
        "seed": seed,
        # The first iteration ends after the step was built, compiled or recorded.
        "seconds_per_iteration": round((moments[-1] - moments[0]) / max(1, len(moments) - 1), 4),
        "loss_first_25": round(statistics.fmean(losses[:25]), 3),
        "loss_last_25": round(statistics.fmean(losses[-25:]), 3),
        "losses": [round(loss, 4) for loss in losses],
    }
    sets = {"condensed": condensed}
    if initial:
        sets["initial"] = fastdm.condense(dataset, iterations=0, **settings)
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
    series = [
        plots.Series(
            label,
            [row[f"{key}_accuracy"] for row in rows],
            color,
            errors=[row.get(f"{key}_std", 0) for row in rows],
        )
        for label, key, color in (
            ("random real images", "initial", plots.THEIRS),
            ("public code", "public", plots.OTHER),
            ("fastdm", "condensed", plots.OURS),
        )
    ]
    return plots.bars(result, [row["name"] for row in rows], series, "test accuracy, %", row_inches=0.75)[0]


def _seeds(result: Result) -> Any:
    """Loss against iteration of every seed, and accuracy seed by seed."""
    colors = {"fp32": plots.OURS, "bf16": plots.OTHER, "tf32": plots.LINE}
    figure, (losses, accuracies) = plots.figure(result, 2, (8, 3))
    done = [row for row in result["rows"] if "condensed_accuracy" in row]
    seeds = sorted({row["seed"] for row in done})
    for shift, name in enumerate(dict.fromkeys(row["precision"] for row in done)):
        rows = [row for row in done if row["precision"] == name]
        for row in rows:
            losses.plot(row["losses"], color=colors[name], lw=0.7, alpha=0.7, label=name if row is rows[0] else None)
        accuracies.errorbar(
            [seeds.index(row["seed"]) + 0.15 * shift for row in rows],
            [row["condensed_accuracy"] for row in rows],
            [row["condensed_std"] for row in rows],
            fmt="o",
            ms=4,
            color=colors[name],
            label=name,
        )
    losses.set_xlabel("iteration")
    losses.set_ylabel("loss / classes")
    losses.legend()
    accuracies.set_xticks(range(len(seeds)), seeds)
    accuracies.set_xlabel("seed")
    accuracies.set_ylabel("test accuracy, %")
    accuracies.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _last_quarter(row: Row) -> str:
    losses = row.get("losses", [])
    return f"{statistics.fmean(losses[-max(1, len(losses) // 4) :]):.2f}" if losses else ""


_ROOMS = ("csrc", "kernels", "augmentation", "data", "networks", "objectives", "condensation", "evaluation", "system")
_CONDENSED = cells.plus_minus("condensed_accuracy", "condensed_std")
SUITE = Suite(
    "accuracy",
    "Accuracy",
    "Test accuracy in % (mean and standard deviation over networks) of the condensed set, of the random real images "
    "that it started from, and of what the public code reached with the same budget.",
    _ROOMS,
    [
        ("set", cells.text("name")),
        ("start", cells.plus_minus("initial_accuracy", "initial_std")),
        ("condensed", _CONDENSED),
        ("public code", cells.number("public_accuracy", "{:.1f}")),
        ("s per iteration", cells.number("seconds_per_iteration")),
        ("command", cells.code("command")),
    ],
    plots={"bars": _bars},
)
PRECISION = Suite(
    "precision",
    "Precision",
    "The same condensation in several precisions, seed by seed: test accuracy in % (mean and standard deviation over "
    "networks), and its difference from that of the first precision.",
    _ROOMS,
    [
        ("precision", cells.text("precision")),
        ("seed", cells.text("seed")),
        ("accuracy", _CONDENSED),
        ("difference", cells.number("difference", "{:+.2f}")),
        ("mean loss, last quarter", _last_quarter),
        ("s per iteration", cells.number("seconds_per_iteration")),
    ],
    plots={"seeds": _seeds},
)


def compare_precisions(recorder: Recorder, options: Any, case: Case, epochs: int) -> None:
    for seed in options.seeds or range(12):
        first: Row = {}
        for precision in options.precisions:
            row: Row = {"name": f"{precision}, seed {seed}", "dataset": case.dataset, "ipc": case.ipc}
            how = partial(measure, case, options.data_path, seed, precision, epochs, options.device, initial=False)
            recorder.add(row, how)
            first = first or row
            if row is not first and {"condensed_accuracy"} <= row.keys() & first.keys():
                row["difference"] = round(row["condensed_accuracy"] - first["condensed_accuracy"], 2)
                recorder.save()


def main() -> None:
    parser = arguments.parser(__doc__, device=True, data=True)
    parser.add_argument("what", nargs="?", choices=("budgets", "precision"), default="budgets")
    parser.add_argument("--only", nargs="+", help="such as CIFAR10-1: data set and ipc")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--seeds", nargs="+", type=int, help="default: 0; twelve to compare precisions")
    options = parser.parse_args()
    epochs = SMOKE["epochs"] if options.smoke else EPOCHS
    settings = {"smoke": options.smoke, "batch_real": BATCH_REAL, "num_eval": NUM_EVAL, "epochs": epochs}
    chosen = [
        case for case in CASES if f"{case.dataset}-{case.ipc}" in (options.only or [f"{case.dataset}-{case.ipc}"])
    ]
    if options.smoke:
        chosen = [dataclasses.replace(case, iterations=SMOKE["iterations"]) for case in chosen]
    if options.what == "precision":
        settings |= {"iterations": chosen[0].iterations}
        compare_precisions(Recorder(PRECISION, settings, options.device), options, chosen[0], epochs)
        return
    recorder = Recorder(SUITE, settings, options.device)
    for case in chosen:
        for seed in options.seeds or [0]:
            name = f"{case.dataset} ipc {case.ipc}, {case.iterations} iterations"
            row: Row = {"name": name, "command": case.command, "public_accuracy": case.public}
            recorder.add(row, partial(measure, case, options.data_path, seed, None, epochs, options.device))


if __name__ == "__main__":
    main()
