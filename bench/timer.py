"""Three timers: of the device for kernels, of the host for whole iterations, and pytest-benchmark for calls. All of
them interleave what they compare.

`device_times` runs a function over a rotation of inputs that together exceed the last cache several times, so that
every call finds the cache cold. Where the calls can be recorded, the rotation is one CUDA graph, and its replay carries
no time of the host; otherwise the host is kept ahead of the device by a wait on the device itself.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

ROUNDS = 20
"""Samples that a spread is made of, if time allows."""

_ROTATION = 64  # inputs at most
_CACHES = 3  # times the last cache that a rotation is long
_CPU_CACHE = 48 << 20
_HOST_SAMPLE = 0.02  # seconds at least


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
    """Seconds per call of each function over the rotation of inputs, one sample per round; at least two rounds, else at
    most about `seconds`.

    On a CPU the rotation is timed by the clock.
    """
    runs = {name: _rotating(function, inputs, device) for name, function in functions.items()}
    samples: dict[str, list[float]] = {name: [] for name in runs}
    start = time.perf_counter()
    for number in range(rounds):
        for name, run in runs.items():
            samples[name].append(run() / len(inputs))
        if number >= 1 and time.perf_counter() - start > seconds:
            break
    return samples


def host_times(
    functions: Mapping[str, Callable[[], object]],
    device: torch.device,
    *,
    rounds: int = ROUNDS,
    seconds: float = 10.0,
    warm_up: int = 2,
) -> dict[str, list[float]]:
    """Seconds per call of each function by the clock, the device's work included; at least two rounds,
    else at most about `seconds` in all.

    A sample of a short function is the mean over several calls in a row.
    """
    numbers = {}
    for name, function in functions.items():
        for _ in range(warm_up):
            function()
        once = _timed(function, 1, device)
        numbers[name] = max(1, int(_HOST_SAMPLE / once))
    samples: dict[str, list[float]] = {name: [] for name in functions}
    start = time.perf_counter()
    for number in range(rounds):
        for name, function in functions.items():
            samples[name].append(_timed(function, numbers[name], device) / numbers[name])
        if number >= 1 and time.perf_counter() - start > seconds:
            break
    return samples


def in_turns(
    benchmark: Any, rounds: int, *, warm_up: int = 1, **candidates: Callable[[], object]
) -> dict[str, list[float]]:
    """Seconds of each candidate, run after one another so that all of them meet the same weather.

    The first is timed by pytest-benchmark's fixture; the others run and are timed in its set-up before every round.
    """
    (first, timed), *others = candidates.items()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}

    def run_others() -> None:
        for name, candidate in others:
            start = time.perf_counter()
            candidate()
            seconds[name].append(time.perf_counter() - start)

    benchmark.pedantic(timed, setup=run_others, rounds=rounds, warmup_rounds=warm_up)
    found = {name: values[warm_up:] for name, values in seconds.items()}
    return found | ({} if benchmark.disabled else {first: list(benchmark.stats.stats.data)})


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _timed(function: Callable[[], object], number: int, device: torch.device) -> float:
    synchronise(device)
    start = time.perf_counter()
    for _ in range(number):
        function()
    synchronise(device)
    return time.perf_counter() - start


def _rotating(
    function: Callable[..., object], inputs: Sequence[tuple[Any, ...]], device: torch.device
) -> Callable[[], float]:
    """A call that runs the function over all inputs and gives the seconds that took."""

    def everything() -> list[object]:
        # The results stay alive until the end, so that no call writes over cached lines of the one before it.
        return [function(*arguments) for arguments in inputs]

    if device.type != "cuda":
        everything()
        return lambda: _timed(everything, 1, device)

    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def elapsed(run: Callable[[], object], wait_cycles: int) -> float:
        torch.cuda.synchronize(device)
        if wait_cycles:
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
        torch.cuda.synchronize(device)
        started = time.perf_counter()
        everything()
        host = time.perf_counter() - started
        return lambda: elapsed(everything, int(2e9 * host))
    graph.replay()
    return lambda: elapsed(graph.replay, 0)
