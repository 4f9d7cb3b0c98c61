"""What is timed by the clock of the host: pytest-benchmark on the calls that replace the public code's, and a step.

    python -m bench.host [options of pytest and pytest-benchmark, such as --benchmark-autosave or -k step]

Each round runs the public form first, so that both meet the same weather; a case whose results differ is not timed.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import fastdm
from bench import cpu_step, public_loop, results
from bench.timer import in_turns
from bench.workloads import CIFAR10, CPU
from fastdm.augmentation import DSA_STRATEGY

Call = Callable[[], object]
Check = dict[str, Any]
WARM_UP = 2


@dataclasses.dataclass(frozen=True)
class Case:
    """make: the package's call and the public one, the error of the former's result, what it may be, and "correct"."""

    name: str
    make: Callable[[], tuple[Call, Call, Check]]
    rounds: int = 20


def within(error: float, tolerance: float) -> Check:
    return {"error": error, "tolerance": tolerance, "correct": error <= tolerance}


def augment(mode: str) -> tuple[Call, Call, Check]:
    """The augmentation of one class, as its users call it."""
    images = torch.randn(256, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    param = fastdm.ParamDiffAug()
    param.aug_mode = mode
    seeds = iter(range(10**9))

    def ours(seed: int) -> Tensor:
        return fastdm.DiffAugment(images, DSA_STRATEGY, seed, param)

    def public(seed: int) -> Tensor:
        return public_loop.diff_augment(images, DSA_STRATEGY, seed, mode)

    error = max(float((ours(seed) - public(seed)).abs().max()) for seed in range(12))
    return lambda: ours(next(seeds)), lambda: public(next(seeds)), within(error, 2.5e-5)


def draw() -> tuple[Call, Call, Check]:
    """256 distinct images of each of ten classes; the public code permutes each class. The error counts repetitions."""
    pool = CIFAR10.dataset(CPU).train
    steps = iter(range(10**9))
    repeated = sum(len(row) - len(row.unique()) for row in pool.draw(0, 0, 256))
    sizes = pool.class_sizes.tolist()
    return lambda: pool.draw(0, next(steps), 256), lambda: [torch.randperm(n)[:256] for n in sizes], within(repeated, 0)


def gather() -> tuple[Call, Call, Check]:
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
    return ours, lambda: normalised[index], within(error, 4 * 2 * torch.finfo(torch.float32).eps)


def step() -> tuple[Call, Call, Check]:
    """An iteration of CIFAR-10, 10 images per class, 256 real ones; for the error see bench/cpu_step.py."""
    iterations = iter(range(10**9))
    ours, public = cpu_step.fast_step("CIFAR10", 10), cpu_step.public_iteration("CIFAR10", 10)
    return lambda: ours(next(iterations)), lambda: public(next(iterations)), cpu_step.check("CIFAR10", 10)


CASES = [
    Case("DiffAugment, 256 images, mode S", lambda: augment("S")),
    Case("DiffAugment, 256 images, mode M", lambda: augment("M")),
    Case("draw of 256 images from each of 10 classes", draw),
    Case("2,560 real images in float32", gather),
    Case("iteration of CIFAR-10, ipc 10", step, rounds=5),
]


@pytest.fixture(scope="module")
def rows() -> Iterator[list[dict[str, Any]]]:
    """What the cases found; saved when all have run."""
    found: list[dict[str, Any]] = []
    yield found
    if found:
        print(f"\nsaved {results.save('host', found, {'warm_up': WARM_UP})}")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_time(case: Case, benchmark: Any, rows: list[dict[str, Any]]) -> None:
    ours, public, check = case.make()
    assert check["correct"], check
    seconds = in_turns(benchmark, case.rounds, warm_up=WARM_UP, fastdm=ours, public=public)
    if benchmark.disabled:
        return
    times = {name: results.spread(values) for name, values in seconds.items()}
    ratio = times["public"]["median"] / times["fastdm"]["median"]
    benchmark.extra_info["times public"] = ratio
    rows.append({"name": case.name, **check, "seconds": times, "ratio": ratio})


def main() -> int:
    return pytest.main(["-p", "no:cacheprovider", "--benchmark-columns=median,iqr,rounds", __file__, *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
