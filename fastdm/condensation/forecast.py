"""Predict what a condensation takes before anything is read: the bytes of every part, and the time."""

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import torch

from fastdm.condensation.build import build_networks, check_shared, plan_step
from fastdm.condensation.calibration import Rate
from fastdm.condensation.plan import MemoryPlan
from fastdm.condensation.settings import Settings
from fastdm.condensation.shards import balanced, class_work
from fastdm.condensation.work import count_work, flops_of
from fastdm.data.packed.reading import fits_memory
from fastdm.data.pool import Dataset, Pool
from fastdm.errors import FastDMError
from fastdm.evaluation.protocol import Protocol
from fastdm.networks.architectures import build_network
from fastdm.networks.own import build_own
from fastdm.networks.trained import NetworkPool

Place = Literal["device", "host"]


@dataclass(frozen=True)
class Part:
    """The bytes that one part takes, where (on a GPU or on its host), and the source of that number."""

    name: str
    bytes: int
    place: Place
    source: str


@dataclass(frozen=True)
class Forecast:
    """The memory of the process that needs the most of it, and the times of the process that takes the longest.

    classes: how many of them that process condenses. plan: the memory plan of its step. parts: what is in memory at the
    peak, and where. memory: free bytes on the device. read_bytes: bytes of real images read in an iteration.

    rate: where the times come from, None if there are none. seconds: the time of an iteration; serial: the share of it
    that more processes do not shorten. total_seconds: the time of all iterations; evaluation_seconds: the time of one
    evaluation, training and testing, by one process; None without an evaluation.
    """

    device: str
    ranks: int
    classes: int
    plan: MemoryPlan
    parts: tuple[Part, ...]
    memory: int
    read_bytes: int
    rate: str | None = None
    seconds: float | None = None
    serial: float | None = None
    total_seconds: float | None = None
    evaluation_seconds: float | None = None

    def bytes(self, place: Place) -> int:
        """The bytes of all parts in that place."""
        return sum(part.bytes for part in self.parts if part.place == place)

    def summary(self) -> dict[str, Any]:
        """The whole forecast, as JSON takes it."""
        parts = [
            {"part": part.name, **{key: getattr(part, key) for key in ("bytes", "place", "source")}}
            for part in self.parts
        ]
        own = {name: value for name, value in vars(self).items() if name not in ("plan", "parts")}
        totals = {"device_bytes": self.bytes("device"), "host_bytes": self.bytes("host")}
        plan = {"chunk_classes": self.plan.chunk_classes, "residence": self.plan.residence}
        return {**own, **totals, **plan, "parts": parts}


def forecast(
    dataset: Dataset,
    settings: Settings,
    device: torch.device,
    rate: Rate | None,
    *,
    memory: int,
    process_bytes: int = 0,
    ranks: int = 1,
    protocol: Protocol | None = None,
    pool: NetworkPool | None = None,
    chunk_memory: int | None = None,
    saves: bool = True,
    name: str | None = None,
) -> Forecast:
    """Forecast the condensation of a data set by resolved settings; only the shape of the data set is needed.

    device: need not be present. rate: how fast the device is; None leaves out the times. memory: free bytes on the
    device. process_bytes: what a process takes before it condenses anything. ranks: how many processes share the
    classes, each on a device of its own or, on a CPU, with its share of the memory. protocol: how the set is
    evaluated, None if it is not. pool: as in `condense`; only the shape of its weights is needed. saves: whether
    checkpoints are written. name: what to call the device.

    Raises FastDMError for what will not fit, for more ranks than classes, and for a network with BatchNorm on several
    ranks.
    """
    if not 1 <= ranks <= dataset.num_classes:
        raise FastDMError(f"ranks is {ranks}; it must be at least 1 and at most {dataset.num_classes}, one per class")
    dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
    work_of = class_work(dataset, settings)
    shares = [dataset.train.classes(first, stop) for first, stop in pairwise(balanced(work_of, ranks))]
    own = max(shares, key=lambda share: (len(share), share.num_classes))
    busiest = max(shares, key=lambda share: int(work_of[share.first_class :][: share.num_classes].sum()))
    networks = build_networks(dataset, settings, torch.device("meta"), dtype, pool)
    if ranks > 1:
        check_shared(networks, settings)
    free = memory - networks.bytes if device.type != "cpu" else memory // ranks
    plan = plan_step(networks, own, settings, device, dtype, chunk_memory, free)
    work = count_work(networks, busiest, settings, dtype)
    found = Forecast(
        device=name or str(device),
        ranks=ranks,
        classes=own.num_classes,
        plan=plan,
        parts=_parts(
            plan,
            settings,
            pool,
            process_bytes,
            held=_held(plan, own, device, memory // ranks),
            result=4 * dataset.num_classes * settings.ipc * math.prod(dataset.image_shape),
            saves=saves,
        ),
        memory=memory,
        read_bytes=work.read,
    )
    if rate is None:
        return found
    # Processes on the CPU share it: together they are no faster.
    whole = work if device.type != "cpu" else count_work(networks, dataset.train, settings, dtype)
    seconds = rate.iteration(whole)
    return replace(
        found,
        rate=rate.source,
        seconds=seconds,
        serial=rate.fixed() / seconds,
        total_seconds=seconds * settings.iterations,
        evaluation_seconds=None if protocol is None else _evaluation_seconds(dataset, settings, protocol, rate),
    )


def _held(plan: MemoryPlan, real: Pool, device: torch.device, memory: int) -> tuple[Place, int]:
    """Where the step computes, and how many bytes of the pool of real images are kept there.

    A GPU that streams them keeps none. Neither does a machine whose memory cannot hold the file: it reads the file
    directly.
    """
    if device.type != "cpu":
        return "device", 0 if plan.residence == "streamed" else plan.pool_bytes
    on_disk = real.backing is not None and not fits_memory(plan.pool_bytes, memory)
    return "host", 0 if on_disk else plan.pool_bytes


def _parts(
    plan: MemoryPlan,
    settings: Settings,
    pool: NetworkPool | None,
    process_bytes: int,
    *,
    held: tuple[Place, int],
    result: int,
    saves: bool,
) -> tuple[Part, ...]:
    """The parts of a plan, and what else is in the host's memory.

    held: where the pool of real images is, and how many bytes of it; result: bytes of the whole condensed set.
    """
    pool_bytes = 0 if pool is None or settings.networks == "random" else pool.weights.nbytes
    one = plan.images_bytes // 2
    place, pool_held = held
    counted = "counted from shapes"
    found = [
        Part("pool of real images", pool_held, place, counted),
        Part("synthetic images", one, place, counted),
        Part("optimiser (momentum)", one, place, counted),
        Part("chunk of classes", plan.chunk_bytes, place, "counted layer by layer, as the step is planned"),
        Part("networks", plan.networks_bytes - pool_bytes, place, counted),
        Part("pool of trained networks", pool_bytes, place, counted),
        Part("graph of the iteration", plan.graph_bytes, place, counted),
        Part("libraries", plan.library_bytes, place, "an allowance for cuDNN and cuBLAS"),
        Part("process", process_bytes, "host", "measured: this process after two small iterations"),
        Part("copy for a checkpoint", plan.images_bytes if saves else 0, "host", counted),
        Part("result", result, "host", counted),
        Part("picture and its pixels", result // 2 if saves else 0, "host", counted),
    ]
    if place == "device":
        found += [
            Part("pool of trained networks, on the host", pool_bytes, "host", counted),
            Part("pinned buffers of images read ahead", plan.ahead_bytes, "host", counted),
        ]
    return tuple(part for part in found if part.bytes)


def _evaluation_seconds(dataset: Dataset, settings: Settings, protocol: Protocol, rate: Rate) -> float:
    """The time of all trainings (forward, and backward to the weights and to the inputs of layers) and of testing."""
    images = dataset.num_classes * settings.ipc * settings.partition**2
    trained = images * protocol.all_epochs
    tested = 0 if dataset.test is None else len(dataset.test) * protocol.checks
    channels, *size = dataset.image_shape
    flops = 0.0
    for network in protocol.networks:
        built = (
            build_own(network, 0, "meta")
            if callable(network)
            else build_network(
                network,
                channels=channels,
                num_classes=dataset.num_classes,
                image_size=(size[0], size[1]),
                drawn=False,
                device="meta",
            )
        )
        flops += flops_of(built, dataset.image_shape) * (3 * trained + tested)
    return protocol.num_eval * flops / rate.flops()
