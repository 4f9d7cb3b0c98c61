"""Accuracy at small budgets: the condensed set beside the same initial images and the public code's figures.

    python -m bench.accuracy --data_path data [--only CIFAR10-1 …]

Every row carries the command that condenses and evaluates the same.
"""

import argparse
import dataclasses
import statistics
import time
from pathlib import Path
from typing import Any

import torch

import fastdm
from bench import results

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
    def name(self) -> str:
        return f"{self.dataset} ipc {self.ipc}, {self.iterations} iterations"

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


def measure(case: Case, data_path: Path, seed: int, epochs: int, device: str) -> dict[str, Any]:
    dataset = fastdm.open_dataset(case.dataset, data_path=data_path)
    losses: list[float] = []
    settings: dict[str, Any] = {"ipc": case.ipc, "batch_real": BATCH_REAL, "seed": seed, "device": device}
    initial = fastdm.condense(dataset, iterations=0, **settings)
    start = time.perf_counter()
    condensed = fastdm.condense(
        dataset, iterations=case.iterations, callback=lambda _, loss, __: losses.append(loss), **settings
    )
    seconds = time.perf_counter() - start
    row: dict[str, Any] = {
        "name": case.name,
        "command": case.command,
        "seed": seed,
        "precision": condensed.settings["precision"],
        "seconds_per_iteration": round(seconds / case.iterations, 4),
        "loss_first_25": round(statistics.fmean(losses[:25]), 3),
        "loss_last_25": round(statistics.fmean(losses[-25:]), 3),
        "public_accuracy": case.public,
    }
    for what, images in (("initial", initial), ("condensed", condensed)):
        evaluation = fastdm.evaluate(images, dataset, num_eval=NUM_EVAL, epochs=epochs, seed=seed, device=device)
        row[f"{what}_accuracy"] = round(100 * evaluation.mean["ConvNet"], 2)
        row[f"{what}_std"] = round(100 * evaluation.std["ConvNet"], 2)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_path", type=Path, default=Path("data"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="such as CIFAR10-1: data set and ipc")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--iterations", type=int, help="in place of the cases' own: whether it runs, not how well")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    arguments = parser.parse_args()
    rows = []
    for case in CASES:
        if arguments.iterations is not None:
            case = dataclasses.replace(case, iterations=arguments.iterations)
        if arguments.only and f"{case.dataset}-{case.ipc}" not in arguments.only:
            continue
        rows.append(measure(case, arguments.data_path, arguments.seed, arguments.epochs, arguments.device))
        print(rows[-1], flush=True)
        settings = {"batch_real": BATCH_REAL, "num_eval": NUM_EVAL, "epochs": arguments.epochs}
        path = results.save("accuracy", rows, settings, arguments.device)
    print(f"saved {path}")


if __name__ == "__main__":
    main()
