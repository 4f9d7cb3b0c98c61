"""Test accuracy at budgets for trying out: random images, DM, and each addition to it; and precisions, seed by seed.

    python -m bench.accuracy --data_path data [--only FashionMNIST-1 CIFAR10-10-long …] [--rungs dm partition …]
    python -m bench.accuracy --data_path data --precisions fp32 bf16 [--seeds 0 1 2 …]

Initial images, networks, draws and augmentation of a condensed set follow from its seed. A run replaces the rows that
it measures and keeps the others of this machine, each with the commit that it comes from. Seconds on a CPU are those of
the processor, over all threads, so that what else it is doing does not count.

validation: a tenth of every class is held out of the training images and tested on in place of the test images; that is
where weights and learning rates are chosen.
"""

import dataclasses
import itertools
import re
import statistics
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

import fastdm
from bench.baselines.public_step import PublicStep
from bench.harness import arguments, cells, machine, plots
from bench.harness.records import STEP, Result, Row, Rows, Suite, record
from fastdm.data.pool import Dataset, Pool
from fastdm.networks.trained import NetworkPool

T = TypeVar("T")

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
    "partition, mmd": MODE_M | {"partition": 2, "objective": "mmd"},
    "partition, cov": MODE_M | {"partition": 2, "objective": "cov"},
    "pool": TRAINED | {"ce_weight": 0.0},
    "trained": TRAINED,
    "trained, weight 10": TRAINED | {"ce_weight": 10.0},
    "trained, no cutmix": TRAINED,
    "trained, mmd": TRAINED | {"objective": "mmd"},
    "trained, cov": TRAINED | {"objective": "cov"},
}
"""Settings of each, besides the budget; a partition of 2 is the recipe's too. No cutmix: when training the pool."""
GIVEN = ["lr_img", "ce_weight"]
"""Settings that options may give in place of a rung's, one at a time."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A data set and a budget: of condensation, of the two networks of the pool, and of the evaluation.

    public: what DM's public code reached with the same budget (one condensed set, protocol "dm"), %; for that of the
    paper, what its table 1 says.
    """

    name: str
    iterations: int
    pool_epochs: int
    batch_real: int = 64
    epochs: int = 300
    public: float | None = None

    @property
    def dataset(self) -> str:
        return self.name.split("-")[0]

    @property
    def ipc(self) -> int:
        return int(self.name.split("-")[1])

    @property
    def title(self) -> str:
        return f"{self.dataset} ipc {self.ipc}, {self.iterations} iterations"


CASES = [
    Case("FashionMNIST-1-short", 100, 2, public=70.6),
    Case("FashionMNIST-1", 500, 2),
    Case("FashionMNIST-10", 300, 2, public=81.9),
    Case("CIFAR10-1-short", 200, 3, public=25.7),
    Case("CIFAR10-10", 400, 3),
]
LONG = [Case(f"{name}-long", 1500, 8, 128, 1000) for name in ("FashionMNIST-1", "FashionMNIST-10", "CIFAR10-1")]
LONG += [Case("CIFAR10-10-long", 1500, 8, 128, 1000), *(Case(f"CIFAR10-{ipc}-5000", 5000, 8) for ipc in (1, 10))]
LONG += [Case(f"CIFAR10-{ipc}-paper", 20_000, 0, 256, 1000, dm) for ipc, dm in ((1, 26.0), (10, 48.9), (50, 63.0))]
LONG += [Case(f"CIFAR10-{ipc}-full", 10_000, 20, 128, 1000) for ipc in (1, 10, 50)]
"""Only where they are asked for: up to hours on two cores; the last, DM's own budget and one for trained networks, are
for a GPU."""


def held_out(dataset: Dataset, every: int = 10) -> Dataset:
    """The data set with every tenth training image of a class as its test image, and out of the training images."""
    sizes = dataset.train.class_sizes
    is_out = torch.cat([torch.arange(int(size)) % every == 0 for size in sizes])

    def part(chosen: torch.Tensor) -> Pool:
        counts = [int(one.sum()) for one in chosen.split(sizes.tolist())]
        return Pool(dataset.train.read(chosen.nonzero().flatten()), torch.tensor([0, *itertools.accumulate(counts)]))

    return dataclasses.replace(dataset, train=part(~is_out), test=part(is_out))


def timed(call: Callable[[], T], device: torch.device) -> tuple[T, float]:
    """What a call returns, and the seconds that the processor worked, over all threads; on a GPU those that passed."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    begin = clock()
    return call(), round(clock() - begin, 1)


def public_seconds(case: Case, dataset: Dataset, device: torch.device, iterations: int = 5) -> float:
    """What the iterations of DM's public code take for this budget, from some of them after a first."""
    step = PublicStep(dataset, fastdm.Settings(ipc=case.ipc, batch_real=case.batch_real), device)
    step(0)
    _, seconds = timed(lambda: [step(number) for number in range(1, 1 + iterations)], device)
    return round(seconds / iterations * case.iterations, 1)


def _mean(values: Sequence[float], digits: int) -> float:
    return round(statistics.fmean(values), digits)


def measure(case: Case, dataset: Dataset, rung: str, how: dict[str, Any], options: Namespace, seed: int) -> Row:
    """Condense as the rung does (how: its settings), and evaluate under each protocol, also along the iterations."""
    row: Row = {}
    condensed: Any = fastdm.random_selection(dataset, case.ipc, seed)
    checked: dict[int, torch.Tensor] = {}
    if rung != "random":
        losses: list[float] = []
        checks = {case.iterations * check // options.checks for check in range(1, options.checks)}

        def after(iteration: int, loss: float, images: torch.Tensor) -> None:
            losses.append(loss)
            if len(losses) in checks:
                checked[len(losses)] = images.detach().cpu().clone()

        budget: dict[str, Any] = {"iterations": case.iterations, "batch_real": case.batch_real, "seed": seed} | how
        condense = partial(fastdm.condense, dataset, case.ipc, device=options.device, callback=after, **budget)
        condensed, row["condensation_seconds"] = timed(condense, options.device)
        if rung == "dm" and checks:
            row["public_seconds"] = public_seconds(case, dataset, options.device)
        row |= {name: condensed.settings[name] for name in ("precision", "lr_img", "ce_weight")}
        if losses:
            row |= {"loss_first_25": _mean(losses[:25], 3), "loss_last_25": _mean(losses[-25:], 3)}
            size = -(-len(losses) // 100)
            row["losses"] = [_mean(losses[start : start + size], 4) for start in range(0, len(losses), size)]

    def evaluate(images: Any, networks: int, protocol: str) -> Any:
        name, _, precision = protocol.partition("_")
        how: dict[str, Any] = {"protocol": name, "precision": precision or None, "seed": seed, "device": options.device}
        return fastdm.evaluate(images, dataset, epochs=case.epochs, num_eval=networks, **how)

    for protocol in options.protocols:
        found, row[f"{protocol}_seconds"] = timed(partial(evaluate, condensed, NETWORKS, protocol), options.device)
        ((network, mean),) = found.mean.items()
        row |= {protocol: round(100 * mean, 2), f"{protocol}_std": round(100 * found.std[network], 2)}
        if checked:
            sets = {done: dataclasses.replace(condensed, images=images) for done, images in checked.items()}
            curve = {done: evaluate(images, 1, protocol).mean[network] for done, images in sets.items()}
            row[f"{protocol}_curve"] = {str(done): round(100 * accuracy, 2) for done, accuracy in curve.items()}
    return row


def trained(case: Case, dataset: Dataset, cutmix: bool, options: Namespace) -> tuple[NetworkPool, Row]:
    """Two networks trained on the data set, kept in a file; and what they reach and took."""
    kind = "-held-out" * options.validation + "-no-cutmix" * (not cutmix)
    path = options.pools / f"{case.dataset}-{case.pool_epochs}{kind}.safetensors"
    seconds = path.with_suffix(".seconds")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        pool = NetworkPool.load(path)
    else:
        how: dict[str, Any] = {"device": options.device, "save_path": path, "resume": True}
        train = partial(fastdm.train_pool, dataset, networks=2, epochs=case.pool_epochs, cutmix=cutmix, **how)
        pool, spent = timed(train, options.device)
        seconds.write_text(str(spent))
    accuracies = " ".join(f"{100 * value:.1f}" for value in pool.accuracies)
    return pool, {"pool_accuracies": accuracies, "pool_seconds": float(seconds.read_text())}


# --- tables and plots ------------------------------------------------------------------------------------------------


def _means(rows: Sequence[Row]) -> list[Row]:
    """A row for each budget and rung: means over seeds, deviations over those or else over the networks of the one.

    Only of rungs with their own settings, and of the test images.
    """
    means: list[Row] = []
    shown = [row for row in rows if not row["validation"] and all(row.get(f"given_{name}") is None for name in GIVEN)]
    shown.sort(
        key=lambda row: (
            [int(word) if word.isdigit() else word for word in re.split(r"(\d+)", row["name"])],
            [*RUNGS].index(row["rung"]),
        )
    )
    for (name, rung), group in itertools.groupby(shown, lambda row: (row["name"], row["rung"])):
        seeds = [*group]
        mean: Row = {"name": name, "rung": rung, "seeds": len(seeds)}
        for key in ("idc", "dm", "public", "pool_seconds", "condensation_seconds"):
            if found := [row[key] for row in seeds if row.get(key) is not None]:
                mean[key] = statistics.fmean(found)
                single = next((row[f"{key}_std"] for row in seeds if f"{key}_std" in row), 0.0)
                mean[f"{key}_std"] = statistics.stdev(found) if len(found) > 1 else single
        means.append(mean)
    return means


def _quoted(rows: Sequence[Row]) -> str:
    """A line for each budget: "idc / dm" of the rungs of `_QUOTED`, and the seconds for them."""
    lines = []
    for name, group in itertools.groupby(_means(rows), lambda row: row["name"]):
        found = {row["rung"]: row for row in group}
        public = found.get("dm", {}).get("public")
        lines.append({"name": name, "public": public} | {rung: _quoted_cell(row) for rung, row in found.items()})
    columns = [f"{header} | {rung}" for header, rung in _QUOTED.items()]
    return cells.table("; ".join(["set | name", *columns, "public code, dm | public | .1f"]), lines)


def _quoted_cell(row: Row) -> str:
    accuracies = " / ".join(cells.cell(row, protocol, "±") or "–" for protocol in ("idc", "dm"))
    taken = [row[key] for key in ("pool_seconds", "condensation_seconds") if key in row]
    seconds = " + ".join(f"{value:,.0f}" if value >= 10 else f"{value:.1f}" for value in taken)
    about = [f"{row['seeds']} sets"] * (row["seeds"] > 1) + [f"{seconds} s"] * bool(taken)
    return "<br>".join([accuracies, ", ".join(about)] if about else [accuracies])


def _dots(result: Result) -> Any:
    """Accuracy under "idc" of each rung, for each budget."""
    means = [row for row in _means(result["rows"]) if "idc" in row]
    if not means:
        return None
    figure, (axes,) = plots.figure(result, size=(8, 0.9 + 0.25 * len(RUNGS)))
    for name, group in itertools.groupby(means, lambda row: row["name"]):
        rows = [*group]
        axes.plot([row["idc"] for row in rows], [row["rung"] for row in rows], "o", ms=5, label=name)
    axes.invert_yaxis()
    axes.set_xlabel("test accuracy, %")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _curves(result: Result) -> Any:
    """Accuracy against iterations and against seconds; dashed, what these iterations take in DM's public code."""
    drawn = [(row, protocol) for row in result["rows"] for protocol in ("idc", "dm") if f"{protocol}_curve" in row]
    if not drawn:
        return None
    figure, (iterations, seconds) = plots.figure(result, 2, (9, 3.6))
    for row, protocol in drawn:
        curve, last = row[f"{protocol}_curve"], int(row["name"].split()[-2])
        done, accuracies = [*map(int, curve), last], [*curve.values(), row[protocol]]
        (line,) = iterations.plot(done, accuracies, "o-", ms=4)
        label = f"{row['name']}, {row['rung']}, {protocol}"
        for key, style, whose in (("condensation_seconds", "o-", ""), ("public_seconds", "o--", ": public code")):
            if key in row:
                taken = [number * row[key] / last for number in done]
                seconds.plot(taken, accuracies, style, ms=4, color=line.get_color(), label=label + whose)
    plots.label(seconds, "seconds", "test accuracy, %", "linear")
    iterations.set(xlabel="iteration", ylabel="test accuracy, %")
    return figure


def _sweeps(result: Result) -> Any:
    """Accuracy on held-out images against a learning rate and a weight of the cross-entropy, seed by seed."""
    held = [row for row in result["rows"] if row["validation"] and "idc" in row]
    if not held:
        return None
    figure, (rates, weights) = plots.figure(result, 2, (9, 3))
    for axes, key, other, x in ((rates, *GIVEN, "lr_img"), (weights, *reversed(GIVEN), "weight of the cross-entropy")):
        usual = {row["name"]: statistics.mode(r[other] for r in held if r["name"] == row["name"]) for row in held}
        rows = sorted((row for row in held if row[other] == usual[row["name"]]), key=lambda row: row[key])
        for name, seed in sorted({(row["name"], row["seed"]) for row in rows}):
            own = [row for row in rows if (row["name"], row["seed"]) == (name, seed)]
            xs = sorted({row[key] for row in own})
            means = [statistics.fmean(row["idc"] for row in own if row[key] == x) for x in xs]  # of a run and another
            axes.plot(xs, means, "o-", ms=4, label=f"{name}, seed {seed}")
        values = sorted({row[key] for row in rows})
        axes.set(xlabel=x, ylabel="held-out accuracy, %", xscale="log")
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.minorticks_off()
    weights.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _seeds(result: Result) -> Any:
    """Loss against iteration of every seed, and accuracy seed by seed."""
    done = [row for row in result["rows"] if "dm" in row]
    if not done:
        return None
    figure, (losses, accuracies) = plots.figure(result, 2, (8, 3))
    colors = {"fp32": plots.OURS, "bf16": plots.OTHER, "tf32": plots.LINE}
    for shift, name in enumerate(dict.fromkeys(row["precision"] for row in done)):
        rows = [row for row in done if row["precision"] == name]
        for row in rows:
            losses.plot(row["losses"], color=colors[name], lw=0.7, alpha=0.7)
        places = [row["seed"] + 0.15 * shift for row in rows]
        means, deviations = ([row[key] for row in rows] for key in ("dm", "dm_std"))
        accuracies.errorbar(places, means, deviations, fmt="o", ms=4, color=colors[name], label=name)
    losses.set(xlabel="iteration", ylabel="loss / classes")
    plots.label(accuracies, "seed", "test accuracy, %", "linear")
    return figure


def _table(rows: Sequence[Row]) -> str:
    columns = f"""
    set | name; images | rung; seed; real images per class | batch_real; epochs; held out | validation
    lr | lr_img | g; weight of CE | ce_weight | g; {_ACCURACY}
    loss, first 25 | loss_first_25 | .2f; last 25 | loss_last_25 | .2f; pool, % | pool_accuracies; {_SECONDS}
    public code, s | public_seconds | ,.1f
    evaluation, s | idc_seconds | ,.1f
    """
    return cells.table(
        columns, [row | {key: row.get(key) or None for key in ("validation", "ce_weight")} for row in rows]
    )


def _precision_table(rows: Sequence[Row]) -> str:
    """With the differences from the first precision of a seed, and of networks trained in bfloat16."""
    columns = """
    set | name; precision; seed; dm | dm | ±; difference | difference | +.2f; mean loss, last quarter | quarter | .2f
    condensation, s | condensation_seconds | ,.1f; evaluation, s | dm_seconds | ,.1f
    trained in bf16 | dm_bf16 | ±; difference | trained_difference | +.2f; s | dm_bf16_seconds | ,.1f
    """
    done = [row for row in rows if "dm" in row]
    shown, firsts = [], {row["seed"]: row for row in reversed(done)}
    for row in done:
        losses, first = row["losses"], firsts[row["seed"]]
        shown.append(row | {"quarter": statistics.fmean(losses[-max(1, len(losses) // 4) :])})
        if row is not first:
            shown[-1]["difference"] = row["dm"] - first["dm"]
        if "dm_bf16" in row:
            shown[-1]["trained_difference"] = row["dm_bf16"] - row["dm"]
    return cells.table(columns, shown)


_ACCURACY = "idc | idc | ±; dm | dm | ±; public code, dm | public | .1f"
_KEYS = ("name", "rung", "seed", "validation", "batch_real", "epochs", "pool_epochs", "given_lr_img", "given_ce_weight")
_SECONDS = "pool, s | pool_seconds | ,.1f; condensation, s | condensation_seconds | ,.1f"
_QUOTED = {"random": "random", "DM": "dm", "DM, partition": "partition", "recipe": "trained"}
_TEXT = (
    f"Test accuracy in % of one condensed set per row, mean and standard deviation over {NETWORKS} networks at the "
    "last epoch"
)
BUDGETS = Suite(
    "accuracy",
    "Accuracy",
    f"{_TEXT}, under the protocols of IDC and of DM; and what DM's public code reached with the same budget, and would "
    "take for it here. Seconds of the processor, over all threads.",
    (*STEP, "synthetic", "evaluation", "applications"),
    _table,
    quoted=_quoted,
    plots={"dots": _dots, "curves": _curves, "sweeps": _sweeps},
    keys=_KEYS,
)
PRECISIONS = Suite(
    "precision",
    "Precision",
    f"DM in several precisions, seed by seed. {_TEXT}, and its difference from that in the first precision; and where "
    "these networks are trained in bfloat16, with its difference from that in float32.",
    (*STEP, "evaluation"),
    _precision_table,
    plots={"seeds": _seeds},
)


def budgets(options: Namespace) -> Rows:
    given = [{name: value} for name in GIVEN for value in getattr(options, name)] or [{}]
    for case in options.cases:
        dataset = fastdm.open_dataset(case.dataset, data_path=options.data_path)
        dataset = held_out(dataset) if options.validation else dataset
        for seed, rung, change in itertools.product(options.seeds or [0], options.rungs, given):
            how = RUNGS[rung] | change
            about: Row = {}
            if "recipe" in how:
                how["pool"], about = trained(case, dataset, "no cutmix" not in rung, options)
            row: Row = {"name": case.title, "rung": rung, "seed": seed, "validation": options.validation}
            row |= {"batch_real": case.batch_real, "epochs": case.epochs}
            row |= {"pool_epochs": case.pool_epochs if about else None}
            row |= {f"given_{name}": change.get(name) for name in GIVEN}
            row |= {"commit": machine.commit(), "public": case.public if rung == "dm" else None} | about
            yield row, partial(measure, case, dataset, rung, how, options, seed)


def precisions(options: Namespace) -> Rows:
    (case, *_), options.protocols = options.cases, ["dm", "dm_bf16"]
    dataset = fastdm.open_dataset(case.dataset, data_path=options.data_path)
    for seed, precision in itertools.product(options.seeds or range(12), options.precisions):
        row = {"name": case.title, "precision": precision, "seed": seed}
        yield row, partial(measure, case, dataset, "dm", {"precision": precision}, options, seed)


def main() -> None:
    parser = arguments.parser(__doc__, "--device", "--data_path")
    names = [case.name for case in CASES + LONG]
    usual = [case.name for case in CASES]
    parser.add_argument("--only", nargs="+", default=usual, choices=names, metavar="CASE", help=", ".join(names))
    parser.add_argument("--rungs", nargs="+", default=list(RUNGS), choices=list(RUNGS), metavar="RUNG")
    parser.add_argument("--precisions", nargs="+", help="compare them by DM's first case; twelve seeds by default")
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--protocols", nargs="+", default=["idc", "dm"], choices=["idc", "dm"])
    for name in GIVEN:
        parser.add_argument(f"--{name}", type=float, nargs="+", default=[], help="a row for each, in the rung's place")
    parser.add_argument("--checks", type=int, default=1, help="evaluations along the iterations, the last included")
    parser.add_argument("--validation", action="store_true", help="hold out training images, and test on them")
    parser.add_argument("--pools", type=Path, default=Path("result/pools"), help="folder that keeps trained networks")
    options = parser.parse_args()
    chosen = [case for case in CASES + LONG if case.name in options.only]
    options.cases = [Case("digits-1", 2, 1, epochs=1)] if options.smoke else chosen
    suite, rows = (PRECISIONS, precisions) if options.precisions else (BUDGETS, budgets)
    record(suite, options, rows, networks=NETWORKS)


if __name__ == "__main__":
    main()
