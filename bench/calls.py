"""The calls that replace the public code's, and each op once, timed by the clock.

    python -m bench.calls [--smoke]                          # next to the public form, interleaved: the record
    python -m pytest bench/calls.py --benchmark-autosave     # for a developer: pytest-benchmark, with its comparisons

A call whose result differs from the public one's is not timed.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor

import fastdm
from bench.baselines import public_loop
from bench.harness import arguments, cells, records
from bench.harness.op_cases import Case, cases
from bench.harness.records import STEP, Recorder, Row, Suite
from bench.harness.timer import host_times
from bench.harness.workloads import CIFAR10, CPU
from fastdm.augmentation import DSA_STRATEGY
from fastdm.condensation.build import build_step

Call = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class Pair:
    """A call of the package and the public one; error: of the former's result, and what it may be."""

    ours: Call
    public: Call
    error: float
    tolerance: float


def augment(mode: str) -> Pair:
    """The augmentation of one class, as its users call it."""
    images = torch.randn(256, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    param = fastdm.ParamDiffAug()
    param.aug_mode = mode
    seeds = count()

    def ours(seed: int) -> Tensor:
        return fastdm.DiffAugment(images, DSA_STRATEGY, seed, param)

    def public(seed: int) -> Tensor:
        return public_loop.diff_augment(images, DSA_STRATEGY, seed, mode)

    error = max(float((ours(seed) - public(seed)).abs().max()) for seed in range(12))
    # The public code's own float32 sampling grid is 1.2e-5 from float64, in mode M twice.
    return Pair(lambda: ours(next(seeds)), lambda: public(next(seeds)), error, 2.5e-5)


def draw() -> Pair:
    """256 distinct images of each of ten classes; the public code permutes each class. The error counts repetitions."""
    pool = CIFAR10.dataset(CPU).train
    steps = count()
    repeated = sum(len(row) - len(row.unique()) for row in pool.draw(0, 0, 256))
    sizes = pool.class_sizes.tolist()
    return Pair(
        lambda: pool.draw(0, next(steps), 256), lambda: [torch.randperm(n)[:256] for n in sizes], float(repeated), 0.0
    )


def gather() -> Pair:
    """2,560 random images, normalised; the public code keeps the whole set so in float32."""
    dataset = CIFAR10.dataset(CPU)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (dataset.mean, dataset.std))
    pool = dataset.train
    normalised = (pool.images.float() / 255 - mean) / std
    index = pool.draw(0, 0, 256).flatten()
    out = torch.empty(len(index), *dataset.image_shape)

    def ours() -> Tensor:
        return pool.gather(index, dtype=torch.float32, mean=dataset.mean, std=dataset.std, out=out)

    error = float((ours() - normalised[index]).abs().max())
    # A product and a sum, each rounded, of values up to 4.
    return Pair(ours, lambda: normalised[index], error, 4 * 2 * torch.finfo(torch.float32).eps)


CALLS: dict[str, Callable[[], Pair]] = {
    "DiffAugment, 256 images, mode S": partial(augment, "S"),
    "DiffAugment, 256 images, mode M": partial(augment, "M"),
    "draw of 256 images from each of 10 classes": draw,
    "2,560 real images in float32": gather,
}


def measure(make: Callable[[], Pair], seconds: float) -> Row:
    pair = make()
    row: Row = {"error": pair.error, "tolerance": pair.tolerance, "correct": pair.error <= pair.tolerance}
    if row["correct"]:
        times = host_times({"fastdm": pair.ours, "public": pair.public}, CPU, seconds=seconds)
        row["seconds"] = records.spreads(times)
        row["ratio"] = row["seconds"]["public"]["median"] / row["seconds"]["fastdm"]["median"]
    return row


def _step() -> Call:
    """An iteration of CIFAR-10, 10 images per class, 256 real ones."""
    dataset, steps = CIFAR10.dataset(CPU), count()
    step = build_step(dataset, CIFAR10.settings(precision="fp32").resolve(dataset, CPU), CPU, torch.float32)[0]
    return lambda: step(next(steps))


def _prepared(case: Case) -> Call:
    return partial(case.run, *case.make(0))


def singles() -> dict[str, Callable[[], Call]]:
    """Everything that is timed by itself: the calls above, an iteration, and each op on its most used shape."""
    found: dict[str, Callable[[], Call]] = {name: lambda make=make: make().ours for name, make in CALLS.items()}  # type: ignore[misc]
    found["iteration of CIFAR-10, ipc 10"] = _step
    for case in cases(CPU, smoke=False):
        found.setdefault(case.op, partial(_prepared, case))
    return found


def pytest_generate_tests(metafunc: Any) -> None:
    metafunc.parametrize("make", singles().values(), ids=singles())


def test_call(make: Callable[[], Call], benchmark: Any) -> None:
    benchmark(make())


SUITE = Suite(
    "calls",
    "Calls",
    "What replaces a call of the public code, in ms by the clock, median (p20–p80), interleaved with it.",
    (*STEP, "compat"),
    [
        ("call", cells.text("name")),
        ("ms", cells.spread("fastdm", 1e-3)),
        ("public, ms", cells.spread("public", 1e-3)),
        ("× public", cells.number("ratio", "{:.1f}")),
        ("error", cells.error),
        ("median error", cells.median_error),
    ],
    slower=lambda row: f"{1 / row['ratio']:.2f}× the time of the public form" if row.get("ratio", 1) < 1 else "",
)


def main() -> None:
    options = arguments.parser(__doc__, seconds=5.0).parse_args()
    recorder = Recorder(SUITE, {"smoke": options.smoke})
    for name, make in CALLS.items():
        recorder.add({"name": name}, partial(measure, make, 0 if options.smoke else options.seconds))


if __name__ == "__main__":
    main()
