"""Where the time of an iteration goes: a trace, a memory snapshot, the costliest ops, and what bounds the run."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from fastdm.data.pool import Dataset
from fastdm.errors import FastDMError
from fastdm.loop import arithmetic, build_step
from fastdm.settings import Settings

WARM_UP = 2


@dataclass(frozen=True)
class Profile:
    """seconds: wall-clock per iteration, without the profiler; device_seconds: of kernels per iteration (0 on a CPU);
    ops: the costliest as (name, seconds per iteration, calls per iteration), by their own time; launches: ATen ops and
    kernels of the package per iteration; files: what was written."""

    device: str
    seconds: float
    device_seconds: float
    ops: tuple[tuple[str, float, float], ...]
    launches: float
    peak_bytes: int
    files: tuple[str, ...]

    def verdict(self) -> str:
        """One paragraph on what bounds the run."""
        name, seconds, _ = self.ops[0]
        share = seconds / max(self.device_seconds or self.seconds, 1e-12)
        if self.device == "cpu":
            bound = (
                f"This run computes on the CPU, {self.seconds:.3f} s an iteration: what its ops cost is what it costs."
            )
        else:
            busy = self.device_seconds / self.seconds
            bound = (
                f"The device works {100 * busy:.0f} % of an iteration's {1000 * self.seconds:.2f} ms: the run is "
                + ("device-bound, and faster kernels would help." if busy > 0.8 else "host-bound: the device waits.")
            )
        return (
            f"{bound} The costliest op is {name}, {100 * share:.0f} % of it. {self.launches:.0f} ops are called per "
            "iteration, a number that does not grow with the classes of a chunk."
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
        start = time.perf_counter()
        for iteration in range(iterations):
            step(iteration)
        synchronise()
        seconds = (time.perf_counter() - start) / iterations

        if on_gpu:
            torch.cuda.reset_peak_memory_stats(device)
            torch.cuda.memory._record_memory_history()
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
            for iteration in range(iterations):
                step(iteration)
            synchronise()

    step.close()
    files = [folder / "trace.json", folder / "profile.json"]
    profiler.export_chrome_trace(str(files[0]))
    if on_gpu:
        files.append(folder / "memory.pickle")
        torch.cuda.memory._dump_snapshot(str(files[-1]))
        torch.cuda.memory._record_memory_history(enabled=None)

    averages: list[Any] = list(profiler.key_averages())

    def own_seconds(event: Any) -> float:
        return float(event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6 / iterations

    averages.sort(key=own_seconds, reverse=True)
    result = Profile(
        device=str(device),
        seconds=seconds,
        device_seconds=sum(map(own_seconds, averages)) if on_gpu else 0.0,
        ops=tuple((event.key, own_seconds(event), event.count / iterations) for event in averages[:10]),
        launches=sum(event.count for event in averages if event.key.startswith(("aten::", "fastdm::"))) / iterations,
        peak_bytes=torch.cuda.max_memory_allocated(device) if on_gpu else _peak_resident(),
        files=tuple(map(str, files)),
    )
    files[1].write_text(json.dumps({**result.__dict__, "verdict": result.verdict()}, indent=2) + "\n")
    return result


def _peak_resident() -> int:
    """Largest resident memory of this process so far, in bytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
