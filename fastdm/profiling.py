"""Where an iteration's time goes: a trace, a memory snapshot, kinds of work, costliest ops, what bounds the run."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity

from fastdm.data.pool import Dataset
from fastdm.errors import FastDMError
from fastdm.loop import arithmetic, build_step
from fastdm.settings import Settings
from fastdm.step import Step

WARM_UP = 2


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
    costliest as (name, seconds per iteration, calls per iteration), by their own time; launches: ATen ops and kernels
    of the package per iteration; files: what was written."""

    device: str
    graph: bool
    seconds: float
    device_seconds: float
    split: dict[str, float]
    ops: tuple[tuple[str, float, float], ...]
    launches: float
    peak_bytes: int
    files: tuple[str, ...]

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
                + ("device-bound, and faster kernels would help." if busy > 0.8 else "host-bound: the device waits.")
            )
        whole = sum(self.split.values())
        parts = ", ".join(f"{100 * seconds / whole:.0f} % {kind}" for kind, seconds in self.split.items())
        name, seconds, _ = self.ops[0]
        return (
            f"{bound} The ops' time is {parts}; the costliest op is {name}, {100 * seconds / whole:.0f} %. "
            f"{self.launches:.0f} ops are called per iteration, however many classes a chunk has."
        )


def profile(
    dataset: Dataset,
    settings: Settings,
    device: torch.device,
    folder: Path,
    *,
    iterations: int = 3,
    chunk_memory: int | None = None,
) -> Profile:
    """Run a few iterations under torch.profiler.

    Writes to `folder`: trace.json (Chrome's trace format: chrome://tracing, ui.perfetto.dev), profile.json (the
    result) and, on a GPU, memory.pickle (pytorch.org/memory_viz).
    """
    if iterations < 1:
        raise FastDMError(f"iterations is {iterations}; profile at least 1")
    folder.mkdir(parents=True, exist_ok=True)
    on_gpu = device.type == "cuda"

    def synchronise() -> None:
        if on_gpu:
            torch.cuda.synchronize(device)

    settings = settings.resolve(dataset, device)
    with arithmetic(settings, device) as dtype:
        step, _ = build_step(dataset, settings, device, dtype, chunk_memory)
        for iteration in range(WARM_UP):
            step(iteration)
        synchronise()
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(device)
            torch.cuda.memory._record_memory_history()
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
            for iteration in range(iterations):
                step(iteration)
            synchronise()

        # The profiler saw the ops one by one; `condense` runs them as a graph where that can be had.
        graph = on_gpu and _captured(step)
        start = time.perf_counter()
        for iteration in range(iterations):
            step(iteration)
        synchronise()
        seconds = (time.perf_counter() - start) / iterations

    step.close()
    files = [folder / "trace.json", folder / "profile.json"]
    profiler.export_chrome_trace(str(files[0]))
    if on_gpu:
        files.append(folder / "memory.pickle")
        torch.cuda.memory._dump_snapshot(str(files[-1]))
        torch.cuda.memory._record_memory_history(enabled=None)

    averages: list[Any] = list(profiler.key_averages())
    ops = [event for event in averages if event.device_type == DeviceType.CPU]

    def own_seconds(event: Any) -> float:
        return float(event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6 / iterations

    ops.sort(key=own_seconds, reverse=True)
    split: dict[str, float] = {}
    for event in ops:
        kind = _kind(event.key)
        split[kind] = split.get(kind, 0.0) + own_seconds(event)
    # A kernel's time is its own event's, and that of the op which launched it.
    device_seconds = sum(own_seconds(event) for event in averages if event.device_type != DeviceType.CPU)
    result = Profile(
        device=str(device),
        graph=graph,
        seconds=seconds,
        device_seconds=device_seconds,
        split=dict(sorted(split.items(), key=lambda item: -item[1])),
        ops=tuple((event.key, own_seconds(event), event.count / iterations) for event in ops[:10]),
        launches=sum(event.count for event in ops if event.key.startswith(("aten::", "fastdm::"))) / iterations,
        peak_bytes=torch.cuda.max_memory_allocated(device) if on_gpu else _peak_resident(),
        files=tuple(map(str, files)),
    )
    files[1].write_text(json.dumps({**result.__dict__, "verdict": result.verdict()}, indent=2) + "\n")
    return result


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
