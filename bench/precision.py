"""Precision against float32: loss trajectories and final accuracies of the same seeds on a real data set.

    python -m bench.precision --data_path data [--precisions fp32 bf16] [--seeds 0 1 2 …]

The seed decides initial images, networks, draws and augmentation, so that only rounding tells the rows of one seed
apart. Accuracy is of 3 networks × 300 epochs; "difference" is its distance from that of the first precision.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import fastdm
from bench import results

DATASET = "FashionMNIST"
IPC = 1
BATCH_REAL = 64
NUM_EVAL = 3
EPOCHS = 300


def measure(dataset: Any, precision: Any, seed: int, iterations: int, device: str) -> dict[str, Any]:
    losses: list[float] = []
    start = time.perf_counter()
    condensed = fastdm.condense(
        dataset,
        ipc=IPC,
        iterations=iterations,
        batch_real=BATCH_REAL,
        seed=seed,
        precision=precision,
        device=device,
        callback=lambda _, loss, __: losses.append(loss),
    )
    seconds = time.perf_counter() - start
    evaluation = fastdm.evaluate(condensed, dataset, num_eval=NUM_EVAL, epochs=EPOCHS, seed=seed, device=device)
    return {
        "name": f"{precision}, seed {seed}",
        "precision": precision,
        "seed": seed,
        "seconds_per_iteration": round(seconds / iterations, 4),
        "accuracy": round(100 * evaluation.mean["ConvNet"], 2),
        "std": round(100 * evaluation.std["ConvNet"], 2),
        "losses": [round(loss, 4) for loss in losses],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_path", type=Path, default=Path("data"))
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(12)))
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    dataset = fastdm.open_dataset(DATASET, data_path=arguments.data_path)
    settings = {
        "dataset": DATASET,
        "ipc": IPC,
        "batch_real": BATCH_REAL,
        "iterations": arguments.iterations,
        "num_eval": NUM_EVAL,
        "epochs": EPOCHS,
    }
    rows = []
    for seed in arguments.seeds:
        for precision in arguments.precisions:
            row = measure(dataset, precision, seed, arguments.iterations, arguments.device)
            rows.append(row)
            if precision != arguments.precisions[0]:
                first = rows[-1 - arguments.precisions.index(precision)]
                row["difference"] = round(row["accuracy"] - first["accuracy"], 2)
            print({name: value for name, value in rows[-1].items() if name != "losses"}, flush=True)
            results.save("precision", rows, settings, arguments.device)


if __name__ == "__main__":
    main()
