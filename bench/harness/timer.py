"""Two timers that interleave what they compare: of the device for kernels, of the host for whole calls."""

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import count
from multiprocessing import get_context
from typing import Any, TypeVar
from unittest import mock

import torch

from bench.harness.records import Row, spreads

T = TypeVar("T")

ROUNDS = 20  # samples that a spread is made of, if time allows
_ROTATION = 64  # inputs at most
_CACHES = 3  # times the last cache that a rotation is long
_CPU_CACHE = 48 << 20
_HEAD_START = 200_000  # cycles of the device, some 100 µs: longer than the host takes to launch a graph


def rotation(bytes_per_call: int, device: torch.device) -> int:
    """How many sets of inputs make a rotation that leaves the cache cold."""
    cache = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else _CPU_CACHE
    return min(_ROTATION, 2 + _CACHES * cache // max(1, bytes_per_call))


def device_times(
    functions: Mapping[str, Callable[..., object]],
    inputs: Sequence[tuple[Any, ...]],
    device: torch.device,
    *,
    rounds: int = ROUNDS,
    seconds: float = 1.0,
) -> dict[str, list[float]]:
    """Seconds per call of each function over a rotation of inputs (see `rotation`), so that every call finds the cache
    cold: a sample per round, of at least two rounds, else of at most about `seconds`.

    On a GPU the rotation is one CUDA graph, whose replay carries no time of the host, or, where the calls cannot be
    recorded, the host is kept ahead of the device by a wait on the device itself. On a CPU the clock times it.
    """
    runs = {name: _rotating(function, inputs, device) for name, function in functions.items()}
    samples = _interleaved(runs, rounds, seconds)
    return {name: [sample / len(inputs) for sample in found] for name, found in samples.items()}


def host_times(
    functions: Mapping[str, Callable[[], object]],
    device: torch.device,
    *,
    rounds: int = ROUNDS,
    seconds: float = 10.0,
    warm_up: int = 3,
    sample: float = 0.02,
) -> dict[str, list[float]]:
    """Seconds per call of each function by the clock, the device's work included; at least two rounds, else at most
    about `seconds` in all.

    A sample is the mean over so many calls in a row that it takes `sample` seconds. Before the samples, every function
    is called `warm_up` times, the last of which gives that number; without any, a sample is one call.
    """
    runs, numbers = {}, {}
    for name, function in functions.items():
        taken = [math.inf, *(timed(function, 1, device) for _ in range(warm_up))]
        numbers[name] = max(1, int(sample / taken[-1]))
        runs[name] = partial(timed, function, numbers[name], device)
    samples = _interleaved(runs, rounds, seconds)
    return {name: [sample / numbers[name] for sample in found] for name, found in samples.items()}


def race(functions: Mapping[str, Callable[[], object]], device: torch.device, over: tuple[str, str], **how: Any) -> Row:
    """A row: seconds of functions that take turns (see `host_times`), and the ratio of two medians, the first by the
    second."""
    seconds = spreads(host_times(functions, device, **how))
    return {"seconds": seconds, "ratio": seconds[over[0]]["median"] / seconds[over[1]]["median"]}


def timed(function: Callable[[], object], number: int, device: torch.device) -> float:
    """Seconds of so many calls in a row by the clock, the device's work included."""
    synchronize = torch.get_device_module(device).synchronize
    synchronize(device)
    start = time.perf_counter()
    for _ in range(number):
        function()
    synchronize(device)
    return time.perf_counter() - start


def _interleaved(runs: Mapping[str, Callable[[], float]], rounds: int, seconds: float) -> dict[str, list[float]]:
    """What each run returns, one after the other in every round, so that all see the same machine load."""
    samples: dict[str, list[float]] = {name: [] for name in runs}
    start = time.perf_counter()
    for number in range(rounds):
        for name, run in runs.items():
            samples[name].append(run())
        if number >= 1 and time.perf_counter() - start > seconds:
            break
    return samples


def _rotating(
    function: Callable[..., object], inputs: Sequence[tuple[Any, ...]], device: torch.device
) -> Callable[[], float]:
    """A call that runs the function over all inputs and returns the seconds that took."""

    def everything() -> list[object]:
        # The results stay alive until the end, so that no call writes over cached lines of the one before it.
        return [function(*arguments) for arguments in inputs]

    if device.type != "cuda":
        everything()
        return partial(timed, everything, 1, device)

    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def elapsed(run: Callable[[], object], wait_cycles: int) -> float:
        torch.cuda.synchronize(device)
        # The device waits while the host launches: on an idle device the launch itself would be timed.
        torch.cuda._sleep(wait_cycles)
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize(device)
        return float(begin.elapsed_time(end)) / 1000

    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(2):
            everything()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            everything()
    except RuntimeError:  # Something in it waits for the device.
        return partial(elapsed, everything, int(2e9 * timed(everything, 1, device)))
    graph.replay()
    return partial(elapsed, graph.replay, _HEAD_START)


def numbered(call: Callable[[int], T], first: int = 0) -> Callable[[], T]:
    """Calls an iteration with the numbers that follow."""
    numbers = count(first)
    return lambda: call(next(numbers))


def within(items: Iterable[T], seconds: float) -> Iterator[T]:
    """The items, as long as time is left when the next one begins."""
    start = time.perf_counter()
    for item in items:
        if time.perf_counter() - start > seconds:
            print("out of time", flush=True)
            return
        yield item


def apart(function: Callable[..., Any], *args: Any, **environment: str) -> Any:
    """The result of a function in a fresh process with these environment variables."""
    with mock.patch.dict(os.environ, environment), ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let PyTorch use so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
