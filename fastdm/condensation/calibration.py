"""How fast this machine computes an iteration, measured in seconds; or a GPU that is not here, by a model."""

import statistics
import time
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from fastdm.condensation.build import build_networks, build_step
from fastdm.condensation.settings import Settings
from fastdm.condensation.work import Work, count_work
from fastdm.data.pool import Dataset, Pool
from fastdm.errors import FastDMError
from fastdm.networks.trained import NetworkPool
from fastdm.system.device import precision_context, resident_memory
from fastdm.system.gpus import Gpu

SHARE_OF_PEAK = 0.5
SHARE_OF_BANDWIDTH = 0.8
"""What a model takes convolutions and all else to reach of what a GPU's maker states."""

FIXED_SECONDS = 1e-4
"""What a model takes every process to need in an iteration whatever its classes: to start the graph, and to draw a
network."""

FEWEST_REPEATS = 2


class Rate(Protocol):
    """How long work takes on a device. source: where that is known from, in words."""

    @property
    def source(self) -> str: ...

    def iteration(self, work: Work) -> float:
        """Seconds of an iteration."""
        ...

    def fixed(self) -> float:
        """Seconds of it that every process needs, whatever its classes."""
        ...

    def flops(self) -> float:
        """FLOPs per second, all in all, while it computes."""
        ...


@dataclass(frozen=True)
class Measured:
    """A line through two measured iterations, of up to `classes` classes: seconds = start + FLOPs · each."""

    start: float
    each: float
    classes: int
    flops_per_second: float
    where: str

    @property
    def source(self) -> str:
        return f"measured on {self.where}, on random images of up to {self.classes} classes"

    def iteration(self, work: Work) -> float:
        return self.start + self.each * work.flops

    def fixed(self) -> float:
        return self.start

    def flops(self) -> float:
        return self.flops_per_second


@dataclass(frozen=True)
class Modelled:
    """A GPU at a share of its peaks: convolutions at half of the FLOPs, then all that they give at four fifths of the
    bandwidth."""

    gpu: Gpu
    flops_per_second: float

    @property
    def source(self) -> str:
        peak, bandwidth = self.flops_per_second / 1e12, self.gpu.bandwidth / 1e12
        return (
            f"a model, not measured: {self.gpu.name} at {SHARE_OF_PEAK:.0%} of {peak:.0f} TFLOP/s and "
            f"{SHARE_OF_BANDWIDTH:.0%} of {bandwidth:g} TB/s"
        )

    def iteration(self, work: Work) -> float:
        computing = work.flops / (SHARE_OF_PEAK * self.flops_per_second)
        return FIXED_SECONDS + computing + work.moved / (SHARE_OF_BANDWIDTH * self.gpu.bandwidth)

    def fixed(self) -> float:
        return FIXED_SECONDS

    def flops(self) -> float:
        return SHARE_OF_PEAK * self.flops_per_second


def calibrate(
    dataset: Dataset,
    settings: Settings,
    device: torch.device,
    pool: NetworkPool | None = None,
    *,
    seconds: float = 10.0,
    chunk_memory: int | None = None,
) -> Measured:
    """Time iterations on random images of the data set's shape: of one class, of two, four, … while the time lasts.

    settings: resolved. seconds: about how long it takes, unless one class takes longer.
    """
    if pool is not None and pool.weights.is_meta:  # of a pool, too, only the shape is known
        pool = replace(pool, weights=torch.randn(1, 2, pool.weights.shape[2]) / 16)
    end = time.perf_counter() + seconds
    found: list[tuple[int, float, float]] = []
    classes = 1
    while True:
        began = time.perf_counter()
        taken, flops = _time(dataset, settings, device, pool, classes, chunk_memory, end)
        found.append((classes, taken, flops))
        cost = time.perf_counter() - began
        if classes == dataset.num_classes or time.perf_counter() + 2 * cost > end:
            break
        classes = min(2 * classes, dataset.num_classes)
    start, each = _line([(flops, taken) for _, taken, flops in found])
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else _threads()
    return Measured(start, each, classes, found[-1][2] / found[-1][1], where)


def process_bytes() -> int:
    """What a process takes that computes on the CPU, whatever it computes: this one, after two small iterations, since
    libraries come into memory when they are first needed."""
    cpu = torch.device("cpu")
    tiny = Dataset(
        "tiny",
        Pool(torch.zeros(4, 3, 16, 16, dtype=torch.uint8), torch.tensor([0, 2, 4])),
        None,
        ("0", "1"),
        (0.5,) * 3,
        (0.25,) * 3,
    )
    settings = Settings(ipc=1, batch_real=2, network="ConvNetD1", init="noise").resolve(tiny, cpu)
    with precision_context(settings.precision, cpu) as dtype:
        step, _ = build_step(tiny, settings, cpu, dtype)
        with closing(step):
            for iteration in range(2):
                step(iteration)
    return resident_memory()


def _threads() -> str:
    count = torch.get_num_threads()
    return f"this CPU with {count} thread{'s' if count > 1 else ''}"


def _time(
    dataset: Dataset,
    settings: Settings,
    device: torch.device,
    pool: NetworkPool | None,
    classes: int,
    chunk_memory: int | None,
    end: float,
) -> tuple[float, float]:
    """Seconds of an iteration on so many classes, the median, and its FLOPs."""
    sizes = dataset.train.class_sizes.clamp(max=settings.batch_real)[:classes]
    random = _random_dataset(dataset, sizes)
    few = replace(settings, init="noise")
    with precision_context(few.precision, device, deterministic=few.deterministic) as dtype:
        networks = build_networks(dataset, few, torch.device("meta"), dtype, pool)
        work = count_work(networks, random.train, few, dtype)
        step, _ = build_step(random, few, device, dtype, chunk_memory, pool)
        with closing(step):
            step(0)
            if device.type == "cuda":
                step.capture()
                step(0)
            taken: list[float] = []
            while len(taken) < FEWEST_REPEATS or (time.perf_counter() < end and len(taken) < 5):
                before = time.perf_counter()
                step(len(taken) + 1).item()
                taken.append(time.perf_counter() - before)
    return statistics.median(taken), work.flops


def _random_dataset(dataset: Dataset, sizes: torch.Tensor) -> Dataset:
    """Random images of the shape of a data set, so many of each class."""
    generator = torch.Generator().manual_seed(0)
    shape = (int(sizes.sum()), *dataset.image_shape)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    names = dataset.class_names[: len(sizes)]
    return Dataset(dataset.name, Pool(images, offsets), None, names, dataset.mean, dataset.std)


def _line(points: list[tuple[float, float]]) -> tuple[float, float]:
    """Start and slope through the last two points, neither of them below 0."""
    (last, slow) = points[-1]
    if len(points) == 1:
        return 0.0, slow / last
    (before, quick) = points[-2]
    each = (slow - quick) / (last - before)
    start = slow - each * last
    return (0.0, slow / last) if each <= 0 or start < 0 else (start, each)


def modelled(gpu: Gpu, settings: Settings) -> Modelled:
    """The model of a GPU in the precision of resolved settings."""
    if settings.precision is None:
        raise FastDMError("a model needs a precision: fp32, tf32 or bf16")
    return Modelled(gpu, gpu.flops[settings.precision])
