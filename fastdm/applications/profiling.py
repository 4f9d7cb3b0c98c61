"""Where an iteration's time goes: a trace, a memory snapshot, kinds of work, costliest ops, what bounds the run."""

import json
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch

from fastdm.condensation.build import build_step
from fastdm.condensation.settings import Settings
from fastdm.condensation.shards import shard
from fastdm.condensation.step import Step
from fastdm.data.pool import Dataset
from fastdm.errors import FastDMError
from fastdm.runs.recording import COSTLIEST, Recording, synchronise
from fastdm.runs.run import MESSAGES
from fastdm.system.device import precision_context
from fastdm.system.files import make_folder, writing
from fastdm.system.ranks import shared

FILE = "profile.json"
WARM_UP = 2

_KINDS = {
    "convolution": ("conv", "mkldnn", "cudnn"),
    "norm, activation, pooling": ("norm", "relu", "threshold", "pool"),
    "augmentation": ("dsa",),
    "random draws": ("uniform", "draw"),
    "class means and loss": ("class_mean", "classmean", "segment_reduce", "cross_entropy", "addmm"),
    "update of the pixels": ("sgd",),
}
"""Kinds of work, by what the names of their ops contain in lower case; the first that fits counts."""


@dataclass(frozen=True)
class Profile:
    """Of several ranks, the times are those of the one that takes longest, and the ops those of the first one.

    seconds: wall-clock per iteration as `condense` runs it, without the profiler; graph: whether that is a CUDA
    graph; waiting_seconds: of them, waiting for real images that are not read yet; device_seconds: of kernels per
    iteration (0 on a CPU); split: seconds per iteration by kind of work; ops: the
    costliest as (name, seconds per iteration, calls per iteration), by their own time; launches: kernels per iteration
    (0 on a CPU); files: what was written."""

    device: str
    graph: bool
    seconds: float
    device_seconds: float
    split: dict[str, float]
    ops: tuple[tuple[str, float, float], ...]
    launches: float
    peak_bytes: int
    files: tuple[str, ...]
    waiting_seconds: float = 0.0
    ranks: int = 1

    def summary(self) -> dict[str, Any]:
        """All of it, the verdict included, as JSON takes it."""
        return {**self.__dict__, "verdict": self.verdict()}

    def verdict(self) -> str:
        """One paragraph on what bounds the run."""
        if not (whole := sum(self.split.values())):
            return (
                f"An iteration takes {1000 * self.seconds:.2f} ms. The profiler recorded no times of kernels: as a "
                "rule the driver lets only administrators profile (see NVIDIA's page on ERR_NVGPUCTRPERM)."
            )
        if self.device == "cpu":
            bound = f"This run computes on the CPU: an iteration takes {self.seconds:.3f} s, the time of its ops."
        else:
            busy = self.device_seconds / self.seconds
            how = "as one CUDA graph" if self.graph else "without a CUDA graph"
            bound = (
                f"The device works {100 * min(busy, 1):.0f} % of an iteration's {1000 * self.seconds:.2f} ms, which "
                f"runs {how}: the run is "
                + ("device-bound, and faster kernels would help. " if busy > 0.8 else "host-bound: the device waits. ")
                + f"{self.launches:.0f} kernels are launched per iteration, however many classes a chunk has."
            )
        parts = ", ".join(f"{100 * seconds / whole:.0f} % {kind}" for kind, seconds in self.split.items())
        name, seconds, _ = self.ops[0]
        waiting = self.waiting_seconds / self.seconds
        bound += f" It waits for real images during {100 * waiting:.1f} % of an iteration."
        if self.ranks > 1:
            bound = f"Of {self.ranks} ranks, that which takes longest: {bound}"
        return f"{bound} The ops' time is {parts}; the costliest op is {name}, {100 * seconds / whole:.0f} %."


def profile(
    dataset: Dataset,
    settings: Settings,
    device: torch.device,
    folder: Path,
    *,
    iterations: int = 3,
    chunk_memory: int | None = None,
) -> Profile:
    """Run a few iterations under torch.profiler; writes what `Recording.write` does, and profile.json, to `folder`.

    Ranks run their own classes each, at the same time, as in `condense`; the first one writes.
    """
    if iterations < 1:
        raise FastDMError(f"iterations is {iterations}; profile at least 1")
    settings = settings.resolve(dataset, device)
    with shared() as ranks:
        if ranks.first:
            make_folder(folder)
        with precision_context(settings.precision, device, deterministic=settings.deterministic) as dtype:
            part = shard(dataset, settings, ranks).part
            step, _ = build_step(dataset, settings, device, dtype, chunk_memory, part=part)
            numbers = count()  # one after the other: else what was read ahead would be lost
            with closing(step):
                _run(step, numbers, WARM_UP)
                with Recording(device, folder / MESSAGES) as recording:
                    _run(step, numbers, iterations)
                # The profiler saw the ops one by one; `condense` runs them as a graph where possible.
                graph = device.type == "cuda" and not step.capture()
                ranks.exchange(None)  # they begin together
                _run(step, numbers, WARM_UP)
                times = _times(step, numbers, device, iterations)
        seconds, waiting = max(ranks.exchange(times))
        result = _result(recording, iterations, folder, device, writes=ranks.first)
        result = replace(result, graph=graph, seconds=seconds, waiting_seconds=waiting, ranks=ranks.size)
        if ranks.first:
            with writing(folder / FILE) as temporary:
                temporary.write_text(json.dumps(result.summary(), indent=2) + "\n", encoding="utf-8")
    return result


def _run(step: Step, numbers: Iterator[int], iterations: int) -> None:
    for iteration in islice(numbers, iterations):
        step(iteration)


def _times(step: Step, numbers: Iterator[int], device: torch.device, iterations: int) -> tuple[float, float]:
    """Seconds of an iteration, and how many of them it waits for real images."""
    synchronise(device)
    start, waited = time.perf_counter(), step.waited
    _run(step, numbers, iterations)
    synchronise(device)
    return (time.perf_counter() - start) / iterations, (step.waited - waited) / iterations


def _result(recording: Recording, iterations: int, folder: Path, device: torch.device, *, writes: bool) -> Profile:
    """What was recorded, without what `condense` takes; writes: the trace, too."""
    ops, kernels = recording.ops(iterations), recording.kernels(iterations)
    split: dict[str, float] = {}
    for name, own_seconds, _ in ops:
        kind = _kind(name)
        split[kind] = split.get(kind, 0.0) + own_seconds
    return Profile(
        device=str(device),
        graph=False,
        seconds=0.0,
        device_seconds=sum(seconds for _, seconds, _ in kernels),
        split=dict(sorted(split.items(), key=lambda item: -item[1])),
        ops=tuple(ops[:COSTLIEST]),
        launches=sum(calls for _, _, calls in kernels),
        peak_bytes=recording.peak_bytes,
        files=tuple(map(str, (*recording.write(folder), folder / FILE))) if writes else (),
    )


def _kind(op: str) -> str:
    """Which kind of work an op does."""
    for kind, parts in _KINDS.items():
        if any(part in op.lower() for part in parts):
            return kind
    return "all else"
