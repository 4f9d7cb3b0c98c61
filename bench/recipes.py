"""Accuracy of each addition to DM at small budgets: partition, a pool of trained networks, cross-entropy.

    python -m bench.recipes --data_path data [--only FashionMNIST-1 CIFAR10-10-long …] [--rungs dm partition …]
                            [--seeds 0 1 2] [--protocols idc dm] [--lr_img 0.1] [--ce_weight 10] [--checks 4]
                            [--validation]

A seed decides one condensed set: initial images, networks, draws. Its accuracy is that of the last epoch, mean and
standard deviation over networks; random images of the same number, under the same protocol, are the rung "random".
A run replaces the rows that it measures and keeps the others of this machine, each with the commit that it comes from.
Seconds are those of the processor, over all threads, so that what else it is doing does not count.

validation: a tenth of every class is held out of the training images and tested on in place of the test images; that is
where weights and learning rates are chosen.
"""

import argparse
import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

import fastdm
from bench.harness import arguments, cells, machine, plots
from bench.harness.records import STEP, Recorder, Result, Row, Suite, same_machine
from fastdm.data.pool import Dataset, Pool
from fastdm.networks.trained import NetworkPool

NETWORKS = 3

MODE_M = {"strategy": "color_crop_cutout", "aug_mode": "M"}
TRAINED = {"recipe": "trained"}
RUNGS: dict[str, dict[str, Any]] = {
    "random": {},
    "dm": {},
    "dm, mode M": MODE_M,
    "dm, mode M, clamp": MODE_M | {"clamp": True},
    "initial canvases": MODE_M | {"partition": 2, "iterations": 0},
    "partition alone": {"partition": 2, "clamp": False},
    "partition": MODE_M | {"partition": 2},
    "pool": TRAINED | {"ce_weight": 0.0},
    "trained": TRAINED,
    "trained, weight 10": TRAINED | {"ce_weight": 10.0},
    "trained, no cutmix": TRAINED,
}
"""Settings of each, besides the budget; a partition of 2 is the recipe's too. No cutmix: when training the pool."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A data set and a budget: of condensation, of the two networks of the pool, and of the evaluation."""

    dataset: str
    ipc: int
    iterations: int
    pool_epochs: int
    batch_real: int = 64
    epochs: int = 300
    suffix: str = ""

    @property
    def name(self) -> str:
        return f"{self.dataset}-{self.ipc}{self.suffix}"


GIVEN = ("lr_img", "ce_weight")
"""Settings that options may give in place of a rung's."""
CASES = [Case("FashionMNIST", 1, 500, 2), Case("FashionMNIST", 10, 300, 2), Case("CIFAR10", 10, 400, 3)]
LONG = [Case(dataset, ipc, 1500, 8, 128, 1000, "-long") for dataset in ("FashionMNIST", "CIFAR10") for ipc in (1, 10)]
"""Hours on two cores: only where they are asked for."""


def held_out(dataset: Dataset, every: int = 10) -> Dataset:
    """The data set with every tenth training image of a class as its test image, and out of the training images."""
    offsets = dataset.train.class_offsets
    classes = [torch.arange(int(first), int(last)) for first, last in itertools.pairwise(offsets)]

    def part(choose: Callable[[torch.Tensor], torch.Tensor]) -> Pool:
        rows = [choose(places) for places in classes]
        ends = torch.tensor([0, *(len(places) for places in rows)]).cumsum(0)
        return Pool(dataset.train.read(torch.cat(rows)), ends)

    train = part(lambda places: places[torch.arange(len(places)) % every != 0])
    return dataclasses.replace(dataset, train=train, test=part(lambda places: places[::every]))


class Timed:
    """Seconds that the processor worked, over all threads."""

    def __enter__(self) -> "Timed":
        self._begin = time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = round(time.process_time() - self._begin, 1)


def measure(
    case: Case, dataset: Dataset, rung: str, settings: Mapping[str, Any], seed: int, options: argparse.Namespace
) -> Row:
    row: Row = {}
    condensed: Any = fastdm.random_selection(dataset, case.ipc, seed)
    checked: dict[int, torch.Tensor] = {}
    if rung != "random":
        losses: list[float] = []
        how: dict[str, Any] = {"iterations": case.iterations, "batch_real": case.batch_real} | dict(settings)
        how |= {name: getattr(options, name) for name in GIVEN if getattr(options, name) is not None}
        checks = {case.iterations * check // options.checks for check in range(1, options.checks)}

        def after(iteration: int, loss: float, images: torch.Tensor) -> None:
            losses.append(loss)
            if len(losses) in checks:
                checked[len(losses)] = images.detach().cpu().clone()

        with Timed() as spent:
            condensed = fastdm.condense(dataset, case.ipc, seed=seed, device=options.device, callback=after, **how)
        row["condensation_seconds"] = spent.seconds
        row |= {name: condensed.settings[name] for name in ("precision", "lr_img", "ce_weight")}
        if losses:
            row["loss_first_25"] = round(statistics.fmean(losses[:25]), 3)
            row["loss_last_25"] = round(statistics.fmean(losses[-25:]), 3)
    for protocol in options.protocols:
        evaluate = partial(
            fastdm.evaluate,
            dataset=dataset,
            epochs=options.epochs or case.epochs,
            protocol=protocol,
            seed=seed,
            device=options.device,
        )
        with Timed() as spent:
            evaluation = evaluate(condensed, num_eval=NETWORKS)
        ((network, mean),) = evaluation.mean.items()
        row[protocol] = round(100 * mean, 2)
        row[f"{protocol}_std"] = round(100 * evaluation.std[network], 2)
        row[f"{protocol}_seconds"] = spent.seconds
        if checked:
            earlier = {done: dataclasses.replace(condensed, images=images) for done, images in checked.items()}
            curve = {done: evaluate(images, num_eval=1).mean[network] for done, images in earlier.items()}
            row[f"{protocol}_curve"] = {done: round(100 * accuracy, 2) for done, accuracy in curve.items()}
    return row


def _bars(result: Result) -> Any:
    """Accuracy under "idc", mean over seeds, of each rung and budget."""
    rows = [row for row in result["rows"] if "idc" in row and _plain(row)]
    budgets = list(dict.fromkeys(row["name"] for row in sorted(rows, key=_place)))
    rungs = [rung for rung in RUNGS if any(row["rung"] == rung for row in rows)]
    if not rows:
        return None

    def mean(rung: str, name: str) -> float:
        found = [row["idc"] for row in rows if (row["rung"], row["name"]) == (rung, name)]
        return statistics.fmean(found) if found else float("nan")

    colors = [plots.OURS, plots.OTHER, plots.LINE, plots.THEIRS]
    series = [
        plots.Series(name, [mean(rung, name) for rung in rungs], color)
        for name, color in zip(budgets, itertools.cycle(colors), strict=False)
    ]
    return plots.bars(result, rungs, series, "test accuracy, %", row_inches=0.2 * (len(budgets) + 1))[0]


def _quote(rows: Sequence[Row]) -> str:
    """A line for each budget and rung: means over seeds, deviations over those or else over the networks of the one."""
    lines: list[Row] = []
    shown = [row for row in rows if _plain(row)]
    for (name, rung), group in itertools.groupby(sorted(shown, key=_place), lambda row: (row["name"], row["rung"])):
        seeds = [*group]
        line: Row = {"name": name, "rung": rung, "seeds": len(seeds)}
        for protocol in ("idc", "dm"):
            found = [row[protocol] for row in seeds if protocol in row]
            if found:
                line[protocol] = statistics.fmean(found)
                line[f"{protocol}_std"] = statistics.stdev(found) if len(found) > 1 else seeds[0][f"{protocol}_std"]
        for key in ("pool_seconds", "condensation_seconds"):
            if found := [row[key] for row in seeds if key in row]:
                line[key] = statistics.fmean(found)
        lines.append(line)
    return cells.table(_QUOTED, lines)


def _plain(row: Row) -> bool:
    """Whether a row is of a rung's own settings and of the test images."""
    return not row["validation"] and all(row.get(f"given_{name}") is None for name in GIVEN)


def _place(row: Row) -> tuple[str, int]:
    return row["name"], [*RUNGS].index(row["rung"])


_SPECIAL: dict[str, cells.Cell] = {
    "idc": cells.plus_minus("idc", "idc_std"),
    "dm": cells.plus_minus("dm", "dm_std"),
    "validation": lambda row: "yes" if row["validation"] else "",
    "ce_weight": lambda row: f"{row['ce_weight']:g}" if row.get("ce_weight") else "",
}
_SECONDS = "pool, s | pool_seconds | .0f; condensation, s | condensation_seconds | .0f"
_QUOTED = cells.columns(f"set | name; images | rung; sets | seeds; idc; dm; {_SECONDS}", **_SPECIAL)
_COLUMNS = cells.columns(
    f"""
    set | name; images | rung; seed; real images per class | batch_real; epochs; held out | validation; lr | lr_img | g
    weight of CE | ce_weight; idc; dm; loss, first 25 | loss_first_25 | .2f; last 25 | loss_last_25 | .2f
    pool, % | pool_accuracies; {_SECONDS}; evaluation, s | idc_seconds | .0f
    """,
    **_SPECIAL,
)
SUITE = Suite(
    "recipes",
    "Additions to DM",
    f"Test accuracy in % of one condensed set per row, mean and standard deviation over {NETWORKS} networks at the "
    "last epoch, under the protocols of IDC and of DM. Seconds of the processor, over all threads.",
    (*STEP, "synthetic", "evaluation", "applications"),
    _COLUMNS,
    quote=_quote,
    plots={"bars": _bars},
)


def main() -> None:
    parser = arguments.parser(__doc__, device=True, data=True)
    names = [case.name for case in CASES + LONG]
    parser.add_argument("--only", nargs="+", default=[case.name for case in CASES], choices=names, metavar="CASE")
    parser.add_argument("--rungs", nargs="+", default=list(RUNGS), choices=list(RUNGS), metavar="RUNG")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--protocols", nargs="+", default=["idc", "dm"], choices=["idc", "dm"])
    parser.add_argument("--iterations", type=int, help="in place of the case's")
    parser.add_argument("--epochs", type=int, help="of the evaluation, in place of the case's")
    parser.add_argument("--lr_img", type=float, help="in place of the default")
    parser.add_argument("--ce_weight", type=float, help="in place of the rung's")
    parser.add_argument(
        "--checks", type=int, default=1, help="evaluate so often along the iterations; one network each"
    )
    parser.add_argument("--validation", action="store_true", help="hold out training images, and test on them")
    parser.add_argument("--pools", type=Path, default=Path("result/pools"), help="folder that keeps trained networks")
    options = parser.parse_args()
    cases = [case for case in CASES + LONG if case.name in options.only]
    if options.smoke:
        cases, options.epochs = [Case("digits", 1, 2, 1)], 1
    if options.iterations is not None:
        cases = [dataclasses.replace(case, iterations=options.iterations) for case in cases]

    recorder = Recorder(SUITE, {"networks": NETWORKS, "smoke": options.smoke}, options.device)
    recorder.rows += same_machine(machine.describe(options.device), SUITE.name)
    for case in cases:
        dataset = fastdm.open_dataset(case.dataset, data_path=options.data_path)
        dataset = held_out(dataset) if options.validation else dataset
        for seed, rung in itertools.product(options.seeds, options.rungs):
            how, about = RUNGS[rung], {}
            if "recipe" in how:
                pool, about = trained(case, dataset, "no cutmix" not in rung, options)
                how = how | {"pool": pool}
            row: Row = {
                "name": f"{case.dataset} ipc {case.ipc}, {case.iterations} iterations",
                "rung": rung,
                "seed": seed,
                "validation": options.validation,
                "batch_real": case.batch_real,
                "epochs": options.epochs or case.epochs,
                "pool_epochs": case.pool_epochs if about else None,
            }
            row |= {f"given_{name}": getattr(options, name) for name in GIVEN}
            recorder.rows = [earlier for earlier in recorder.rows if any(earlier.get(key) != row[key] for key in row)]
            row |= {"commit": machine.commit()} | about
            recorder.add(row, partial(measure, case, dataset, rung, how, seed, options))


def trained(case: Case, dataset: Dataset, cutmix: bool, options: argparse.Namespace) -> tuple[NetworkPool, Row]:
    """Two networks trained on the data set, kept in a file; and what they reach and took."""
    kind = "-held-out" * options.validation + "-no-cutmix" * (not cutmix)
    path = options.pools / f"{case.dataset}-{case.pool_epochs}{kind}.safetensors"
    seconds = path.with_suffix(".seconds")
    path.parent.mkdir(parents=True, exist_ok=True)
    how: dict[str, Any] = {"device": options.device, "cutmix": cutmix, "save_path": path, "resume": True}
    with Timed() as spent:
        pool = fastdm.train_pool(dataset, networks=2, epochs=case.pool_epochs, **how)
    if not seconds.exists():
        seconds.write_text(str(spent.seconds))
    accuracies = " ".join(f"{100 * value:.1f}" for value in pool.accuracies)
    return pool, {"pool_accuracies": accuracies, "pool_seconds": float(seconds.read_text())}


if __name__ == "__main__":
    main()
