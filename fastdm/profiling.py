"""Where an iteration's time goes: a trace, a memory snapshot, kinds of work, costliest ops, what bounds the run."""

import json
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity

from fastdm.build import arithmetic, build_step
from fastdm.data.pool import Dataset
from fastdm.errors import FastDMError
from fastdm.files import make_folder
from fastdm.settings import Settings
from fastdm.step import Step

WARM_UP = 2
COSTLIEST = 10

_KINDS = {
    "convolution": ("conv", "mkldnn", "cudnn"),
    "norm, activation, pooling": ("norm", "relu", "threshold", "pool"),
    "augmentation": ("dsa",),
    "random draws": ("uniform", "draw"),
    "class means and loss": ("class_mean", "segment_reduce", "addmm"),
}
"""Kinds of work, by what the names of their ops contain; the first that fits counts."""


@dataclass(frozen=True)
class Profile:
    """seconds: wall-clock per iteration as `condense` runs it, without the profiler; graph: whether that is a CUDA
    graph; device_seconds: of kernels per iteration (0 on a CPU); split: seconds per iteration by kind of work; ops: the
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

    def facts(self) -> dict[str, Any]:
        """All of it, the verdict included, as JSON takes it."""
        return {**self.__dict__, "verdict": self.verdict()}

    def verdict(self) -> str:
        """One paragraph on what bounds the run."""
        if self.device == "cpu":
            bound = (
                f"This run computes on the CPU, {self.seconds:.3f} s an iteration: what its ops cost is what it costs."
            )
        else:
            busy = self.device_seconds / self.seconds
            how = "as one CUDA graph" if self.graph else "without a CUDA graph"
            bound = (
                f"The device works {100 * min(busy, 1):.0f} % of an iteration's {1000 * self.seconds:.2f} ms, which "
                f"runs {how}: the run is "
                + ("device-bound, and faster kernels would help. " if busy > 0.8 else "host-bound: the device waits. ")
                + f"{self.launches:.0f} kernels are launched per iteration, however many classes a chunk has."
            )
        whole = sum(self.split.values())
        parts = ", ".join(f"{100 * seconds / whole:.0f} % {kind}" for kind, seconds in self.split.items())
        name, seconds, _ = self.ops[0]
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
    """Run a few iterations under torch.profiler; writes what `Recording.write` does, and profile.json, to `folder`."""
    if iterations < 1:
        raise FastDMError(f"iterations is {iterations}; profile at least 1")
    make_folder(folder)
    on_gpu = device.type == "cuda"

    settings = settings.resolve(dataset, device)
    with arithmetic(settings, device) as dtype:
        step, _ = build_step(dataset, settings, device, dtype, chunk_memory)
        with closing(step):
            for iteration in range(WARM_UP):
                step(iteration)
            with Recording(device) as recording:
                for iteration in range(iterations):
                    step(iteration)
            # The profiler saw the ops one by one; `condense` runs them as a graph where that can be had.
            graph = on_gpu and _captured(step)
            start = time.perf_counter()
            for iteration in range(iterations):
                step(iteration)
            _synchronise(device)
            seconds = (time.perf_counter() - start) / iterations

    ops, kernels = recording.ops(iterations), recording.kernels(iterations)
    split: dict[str, float] = {}
    for name, own_seconds, _ in ops:
        kind = _kind(name)
        split[kind] = split.get(kind, 0.0) + own_seconds
    into = folder / "profile.json"
    result = Profile(
        device=str(device),
        graph=graph,
        seconds=seconds,
        device_seconds=sum(seconds for _, seconds, _ in kernels),
        split=dict(sorted(split.items(), key=lambda item: -item[1])),
        ops=tuple(ops[:COSTLIEST]),
        launches=sum(calls for _, _, calls in kernels),
        peak_bytes=recording.peak_bytes,
        files=tuple(map(str, (*recording.write(folder), into))),
    )
    into.write_text(json.dumps(result.facts(), indent=2) + "\n")
    return result


def check_chosen(chosen: range, total: int, save_path: str | Path | None) -> None:
    """Raise FastDMError for iterations that a run of `total` cannot record."""
    if save_path is None:
        raise FastDMError("profile needs a save_path, under which it writes the trace")
    if not (chosen and chosen.step == 1 and chosen.start >= 0 and chosen.stop <= total):
        raise FastDMError(f"profile is {chosen}; it must lie within the run's iterations, {range(total)}")


def recorded(iterations: range, chosen: range, step: Step, folder: Path, say: Callable[[str], None]) -> Iterator[int]:
    """The iterations, of which the chosen ones run op by op under torch.profiler.

    After them the trace is written to `folder`, and the costliest ops are said. A resumed run is past some or all.
    """
    first, last = (min(max(end, iterations.start), iterations.stop) for end in (chosen.start, chosen.stop))
    yield from range(iterations.start, first)
    if first < last:
        with Recording(step.images.device) as recording, step.uncaptured():
            yield from range(first, last)
        say(f"wrote {', '.join(map(str, recording.write(folder)))}; the costliest ops of an iteration:")
        for name, seconds, calls in recording.ops(last - first)[:COSTLIEST]:
            say(f"{1000 * seconds:9.2f} ms in {calls:5.0f} calls of {name}")
    yield from range(last, iterations.stop)


class Recording:
    """What torch.profiler sees within the block, and on a GPU the history of the memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._on_gpu = device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._on_gpu else [])]
        self._profiler = torch.profiler.profile(activities=activities, profile_memory=True)
        self.peak_bytes = 0

    def __enter__(self) -> "Recording":
        if self._on_gpu:
            _synchronise(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            torch.cuda.memory._record_memory_history()
        self._profiler.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _synchronise(self._device)
        self._profiler.__exit__(kind, error, trace)
        if self._on_gpu:
            self._snapshot = torch.cuda.memory._snapshot()
            torch.cuda.memory._record_memory_history(enabled=None)
        self.peak_bytes = torch.cuda.max_memory_allocated(self._device) if self._on_gpu else _peak_resident()

    def write(self, folder: Path) -> list[Path]:
        """trace.json (Chrome's trace format: chrome://tracing, ui.perfetto.dev) and, on a GPU, memory.pickle
        (pytorch.org/memory_viz)."""
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / "trace.json"]
        self._profiler.export_chrome_trace(str(files[0]))
        if self._on_gpu:
            files.append(folder / "memory.pickle")
            files[1].write_bytes(pickle.dumps(self._snapshot))
        return files

    def ops(self, iterations: int) -> list[tuple[str, float, float]]:
        """(name, seconds by itself, calls) of every op, per iteration, the costliest first; on a GPU the seconds are
        those of the kernels that it launches."""
        return self._costs(iterations, of_device=False)

    def kernels(self, iterations: int) -> list[tuple[str, float, float]]:
        """The same of every kernel, copy and fill on a GPU."""
        return self._costs(iterations, of_device=True)

    def _costs(self, iterations: int, of_device: bool) -> list[tuple[str, float, float]]:
        averages: list[Any] = list(self._profiler.key_averages())
        events = [event for event in averages if (event.device_type != DeviceType.CPU) == of_device]
        costs = [(e.key, self._own_seconds(e) / iterations, e.count / iterations) for e in events]
        return sorted(costs, key=lambda cost: -cost[1])

    def _own_seconds(self, event: Any) -> float:
        return float(event.self_device_time_total if self._on_gpu else event.self_cpu_time_total) / 1e6


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _captured(step: Step) -> bool:
    try:
        step.capture()
    except RuntimeError:
        return False
    return True


def _kind(op: str) -> str:
    """Which kind of work an op does."""
    for kind, parts in _KINDS.items():
        if any(part in op for part in parts):
            return kind
    return "all else"


def _peak_resident() -> int:
    """Largest resident memory of this process so far, in bytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
