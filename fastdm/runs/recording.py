"""What torch.profiler sees of chosen iterations of a run."""

import pickle
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity

from fastdm.errors import FastDMError
from fastdm.system.streams import stderr_to

COSTLIEST = 10


def check_chosen(chosen: range, total: int, save_path: str | Path | None) -> None:
    """Raise FastDMError for iterations that a run of `total` cannot record."""
    if save_path is None:
        raise FastDMError("profile needs a save_path, under which it writes the trace")
    if not isinstance(chosen, range):
        raise FastDMError(f"profile is a {type(chosen).__name__}; it must be a range, such as range(100, 103)")
    if not (chosen and chosen.step == 1 and chosen.start >= 0 and chosen.stop <= total):
        within = f"must lie within the run's iterations, 0-{total - 1}" if total else "has no iterations to choose from"
        asked = f"{chosen.start}-{chosen.stop - 1}"
        order = "" if chosen else ", the first before the last"
        raise FastDMError(f"profile is {asked}; it {within}{order}")


def recorded(
    iterations: range,
    chosen: range,
    within: Callable[[], AbstractContextManager[None]],
    device: torch.device,
    folder: Path,
    say: Callable[[str], None],
    messages: Path | None = None,
) -> Iterator[int]:
    """The iterations, of which the chosen ones run under torch.profiler, within `within()`.

    After them the trace is written to `folder`, and the costliest ops are reported. A resumed run may be past them.
    messages: a file for what the profiler prints, if that is not to go to the terminal.
    """
    first, last = (min(max(end, iterations.start), iterations.stop) for end in (chosen.start, chosen.stop))
    yield from range(iterations.start, first)
    if first < last:
        with within(), Recording(device, messages) as recording:
            yield from range(first, last)
        say(f"wrote {', '.join(map(str, recording.write(folder)))}; the costliest ops of an iteration:")
        for name, seconds, calls in recording.ops(last - first)[:COSTLIEST]:
            say(f"{1000 * seconds:9.2f} ms in {calls:5.0f} calls of {name}")
    yield from range(last, iterations.stop)


class Recording:
    """What torch.profiler sees within the block, and on a GPU the history of the memory.

    messages: a file for what the profiler prints, if that is not to go to the terminal.
    """

    def __init__(self, device: torch.device, messages: Path | None = None) -> None:
        self._device = device
        self._messages = messages
        self._on_gpu = device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._on_gpu else [])]
        self._profiler = torch.profiler.profile(activities=activities, profile_memory=True)
        self.peak_bytes = 0

    def __enter__(self) -> "Recording":
        if self._on_gpu:
            synchronise(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            torch.cuda.memory._record_memory_history()
        with stderr_to(self._messages):
            self._profiler.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        synchronise(self._device)
        with stderr_to(self._messages):
            self._profiler.__exit__(kind, error, trace)
        if self._on_gpu:
            self._snapshot = torch.cuda.memory._snapshot()
            torch.cuda.memory._record_memory_history(enabled=None)
        self.peak_bytes = peak_memory(self._device)

    def write(self, folder: Path) -> list[Path]:
        """trace.json (Chrome's trace format: chrome://tracing, ui.perfetto.dev) and, on a GPU, memory.pickle
        (pytorch.org/memory_viz)."""
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / "trace.json"]
        with stderr_to(self._messages):
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


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device) -> int:
    """The most memory so far, in bytes: of tensors on a GPU, of this process on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_resident()


def peak_resident() -> int:
    """Largest resident memory of this process so far, in bytes.

    Not getrusage's, which begins with that of the process that started this one.
    """
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])
