"""Seconds and memory of one iteration on a CPU: `fastdm.step.Step` beside the public loop.

    python -m bench.cpu_step                              # every case
    python -m bench.cpu_step --dataset CIFAR10 --ipc 1 10

Both condense random pixels of the data set's shape in float32, alternating in one process per row; the public loop as
its users run it: one class after the other, a new network and a permutation of each class per iteration. A row's ratio
is withheld unless the step's change of the images agrees with the same step in float64 through PyTorch's own layers.
Peak memory is that of a fresh process of each. A second process per case has glibc's malloc keep large blocks.
"""

import argparse
import ctypes
import json
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from bench import public_loop, results
from fastdm.augmentation import DSA_STRATEGY
from fastdm.condensation.build import build_step
from fastdm.condensation.settings import Settings
from fastdm.condensation.step import Step
from fastdm.data.pool import Dataset, Pool
from fastdm.system.device import chosen_backend

# name: classes, images per class, shape, real images per class and iteration.
DATASETS: dict[str, tuple[int, int, tuple[int, int, int], int]] = {
    "CIFAR10": (10, 5000, (3, 32, 32), 256),
    "FashionMNIST": (10, 6000, (1, 28, 28), 256),
    "TinyImageNet": (200, 500, (3, 64, 64), 32),  # 256 would take the public loop ten minutes an iteration
    **{f"scaling-{classes}": (classes, 16, (3, 16, 16), 16) for classes in (10, 50, 200, 1000)},
}
CASES = [
    *(("CIFAR10", ipc) for ipc in (1, 10, 50)),
    ("FashionMNIST", 10),
    *((name, 1) for name in DATASETS if name.startswith("scaling")),
    ("TinyImageNet", 1),  # takes longest
]
SCALING_CHUNK = 64 << 20  # bytes: memory must not grow with the classes beyond their images
TOLERANCE = 5e-3
"""Of the error of a change of the images, in norm and of its own length. Winograd's F(4×4, 3×3) errs by some ten times
a float32 sum's rounding, 3e-6 of the unit variance of normalised activations, so that 2 · 3e-6 · φ(0) of them come to
the other side of a ReLU, where a gradient entry is wrong by itself: √(3 · 2.4e-6) = 2.7e-3 in three layers. Allowed is
twice that; plain PyTorch, whose sums err less, meets such values more rarely, but meets them too."""
MEDIAN_TOLERANCE = 2e-5
"""Of the median over the images of the error of each one's change, of its own length. Most images (nine of ten in the
worst of the cases) have no activation on the other side of a ReLU, so that only rounding is left. A convolution adds
3e-6 to the features, independently in each image, and 3e-6 to the gradient on its way back. The gradient starts at a
difference of means over images, in which 3/4 of the features' deviation is left (the rest all images share), so that
their error counts 4/3. The first convolution is not Winograd's, and errs far less: in four layers it makes
√3 · 3e-6 · √(1 + (4/3)²) = 8.7e-6. Allowed is twice that, rounded up."""
SPIN_COUNT = "1000"  # as `import fastdm` sets it, for both loops
CPU = torch.device("cpu")


def random_dataset(name: str) -> Dataset:
    classes, per_class, shape, _ = DATASETS[name]
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (classes * per_class, *shape), dtype=torch.uint8, generator=generator)
    pool = Pool(images, torch.arange(classes + 1) * per_class)
    names = tuple(f"class {c}" for c in range(classes))
    return Dataset("random", pool, None, names, (0.5,) * shape[0], (0.25,) * shape[0])


def settings_of(name: str, ipc: int, dataset: Dataset, **changes: Any) -> Settings:
    values = {"batch_real": DATASETS[name][3], "strategy": DSA_STRATEGY, "precision": "fp32", **changes}
    return Settings(ipc=ipc, **values).resolve(dataset, CPU)


def fast_step(name: str, ipc: int, dtype: torch.dtype = torch.float32, **changes: Any) -> Step:
    dataset = random_dataset(name)
    chunk_memory = SCALING_CHUNK if name.startswith("scaling") else None
    return build_step(dataset, settings_of(name, ipc, dataset, **changes), CPU, dtype, chunk_memory)[0]


def public_iteration(name: str, ipc: int) -> Callable[[int], None]:
    """The public loop with its float32 pool; the argument seeds its iteration."""
    classes, per_class, (channels, height, _), batch = DATASETS[name]
    dataset = random_dataset(name)
    pool = dataset.train.images.float().div_(255).sub_(0.5).div_(0.25)
    synthetic = torch.randn(classes * ipc, *dataset.image_shape, requires_grad=True)
    optimiser = torch.optim.SGD([synthetic], lr=1.0, momentum=0.5)
    depth = 4 if height == 64 else 3

    def real() -> Iterator[Tensor]:
        for c in range(classes):
            yield pool[c * per_class + torch.randperm(per_class)[:batch]]

    def iterate(iteration: int) -> None:
        network = public_loop.ConvNet(channels, classes, height, depth=depth)

        def augment(images: Tensor, c: int) -> Tensor:
            return public_loop.diff_augment(images, DSA_STRATEGY, seed=iteration * classes + c)

        public_loop.iteration(network, real(), synthetic, ipc, optimiser, augment)

    return iterate


def check(name: str, ipc: int) -> dict[str, Any]:
    """How far the first change of the images is from the same step through PyTorch's own layers in float64, on a few
    real images."""
    changes = []
    for backend, dtype in (("reference", torch.float64), ("auto", torch.float32)):
        with chosen_backend(backend):
            step = fast_step(name, ipc, dtype, batch_real=4)
            step(0)
        changes.append(step.velocity.double())
    exact, ours = changes
    return compared(ours, exact)


def compared(ours: Tensor, exact: Tensor) -> dict[str, Any]:
    """Both errors of a change of the images, float64, with what they may be; whether they are within."""
    difference = (ours - exact).flatten(1)
    error = float(difference.norm() / exact.norm())
    median = float((difference.norm(dim=1) / exact.flatten(1).norm(dim=1)).median())
    return {
        "error": error,
        "tolerance": TOLERANCE,
        "median_error": median,
        "median_tolerance": MEDIAN_TOLERANCE,
        "correct": error <= TOLERANCE and median <= MEDIAN_TOLERANCE,
    }


def raise_malloc_thresholds() -> None:
    """Have glibc keep blocks of any size instead of giving them back to the system."""
    libc = ctypes.CDLL(None)
    m_mmap_threshold, m_trim_threshold = -3, -1
    libc.mallopt(m_mmap_threshold, 1 << 30)
    libc.mallopt(m_trim_threshold, -1)


def time_in_turn(name: str, ipc: int, iterations: int, limit: float) -> dict[str, list[float]]:
    """Seconds of each iteration after one of warm-up; fewer iterations, at least 2, once `limit` seconds have gone."""
    loops: dict[str, Callable[[int], Any]] = {"fastdm": fast_step(name, ipc)}
    if not name.startswith("scaling"):
        loops["public"] = public_iteration(name, ipc)
    seconds: dict[str, list[float]] = {loop: [] for loop in loops}
    begin = time.perf_counter()
    for iteration in range(iterations + 1):
        if iteration > 2 and time.perf_counter() - begin > limit:
            break
        for loop, run in loops.items():
            start = time.perf_counter()
            run(iteration)
            if iteration > 0:
                seconds[loop].append(time.perf_counter() - start)
    return seconds


def child(task: str, name: str, ipc: int, iterations: int, limit: float) -> Any:
    """What a process of its own does."""
    if task == "time raised":
        raise_malloc_thresholds()
    if task.startswith("time"):
        return time_in_turn(name, ipc, iterations, limit)
    if task == "check":
        return check(name, ipc)
    run = fast_step(name, ipc) if task == "memory fastdm" else public_iteration(name, ipc)
    for iteration in range(2):
        run(iteration)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_process(task: str, name: str, ipc: int, iterations: int, limit: float) -> Any:
    command = [sys.executable, "-m", "bench.cpu_step", "--child", task, "--dataset", name, "--ipc", str(ipc)]
    command += ["--iterations", str(iterations), "--limit", str(limit)]
    environment = {"GOMP_SPINCOUNT": SPIN_COUNT, **os.environ}
    output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def measure(name: str, ipc: int, iterations: int, limit: float) -> Iterator[dict[str, Any]]:
    """One row per way of allocating."""
    classes, _, shape, batch = DATASETS[name]
    scaling = name.startswith("scaling")
    errors = in_process("check", name, ipc, iterations, limit)
    memory = {
        loop: round(in_process(f"memory {loop}", name, ipc, iterations, limit))
        for loop in ("fastdm", *(() if scaling else ("public",)))
    }
    for malloc in ("default",) if scaling else ("default", "raised"):
        row: dict[str, Any] = {"name": f"{name} ipc {ipc}", "malloc": malloc}
        row |= {"classes": classes, "shape": shape, "batch_real": batch, "ipc": ipc}
        row |= errors
        row["peak_mib"] = memory
        if row["correct"]:
            seconds = in_process(f"time {malloc}", name, ipc, iterations, limit)
            row["load"] = round(os.getloadavg()[0], 2)
            row["seconds"] = {loop: results.spread(values) for loop, values in seconds.items()}
            if not scaling:
                row["ratio"] = row["seconds"]["public"]["median"] / row["seconds"]["fastdm"]["median"]
        yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=list(DATASETS), nargs="+", help="only these")
    parser.add_argument("--ipc", type=int, nargs="+", help="only these images per class")
    parser.add_argument("--iterations", type=int, default=7, help="timed iterations of each loop")
    parser.add_argument("--limit", type=float, default=120, help="seconds after which a row stops at 2 iterations")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no case after so many")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        (name,), (ipc,) = options.dataset, options.ipc
        print(json.dumps(child(options.child, name, ipc, options.iterations, options.limit)))
        return
    cases = CASES
    if options.dataset:
        cases = [(name, ipc) for chosen in options.dataset for name, ipc in CASES if name == chosen]
    if options.ipc:
        cases = [(name, ipc) for name in dict.fromkeys(name for name, _ in cases) for ipc in options.ipc]
    rows: list[dict[str, Any]] = []
    settings = {"precision": "fp32", "iterations": options.iterations, "gomp_spincount": SPIN_COUNT}
    begin = time.monotonic()
    for name, ipc in cases:
        if time.monotonic() - begin > options.seconds:
            print(f"no time left for {name} ipc {ipc}", flush=True)
            continue
        for row in measure(name, ipc, options.iterations, options.limit):
            rows.append(row)
            print(json.dumps(row), flush=True)
            results.save("cpu_step", rows, settings)


if __name__ == "__main__":
    main()
