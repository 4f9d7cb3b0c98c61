"""The timers call what they should, as often and in the order they should."""

import time
from types import SimpleNamespace

import pytest
import torch

from bench.harness import timer
from bench.harness.timer import device_times, host_times, numbered, rotation, within

CPU = torch.device("cpu")


def test_the_host_timer_takes_turns() -> None:
    calls: list[str] = []

    def call(name: str) -> None:
        calls.append(name)
        time.sleep(0.03)  # longer than the shortest sample, so that a sample is one call

    times = host_times({"a": lambda: call("a"), "b": lambda: call("b")}, CPU, rounds=3, warm_up=2)
    assert calls[4:] == ["a", "b"] * 3
    assert all(len(values) == 3 and min(values) >= 0.03 for values in times.values())


def test_without_a_warm_up_a_sample_is_one_call() -> None:
    calls: list[int] = []
    host_times({"a": lambda: calls.append(1)}, CPU, rounds=2, warm_up=0)
    assert len(calls) == 2


def test_a_sample_of_a_short_function_is_a_mean_over_many_calls() -> None:
    calls = []
    (values,) = host_times({"a": lambda: calls.append(1)}, CPU, rounds=2).values()
    assert len(calls) > 100
    assert max(values) < 1e-3


def test_the_device_timer_goes_through_all_inputs() -> None:
    seen: list[int] = []
    times = device_times({"a": seen.append}, [(1,), (2,), (3,)], CPU, rounds=2)
    assert seen == [1, 2, 3] * 3  # once for warming up
    assert len(times["a"]) == 2


def test_a_rotation_exceeds_the_cache() -> None:
    assert rotation(1 << 20, CPU) << 20 >= 48 << 20
    assert rotation(1 << 30, CPU) == 2


def test_numbers_go_on_from_the_first() -> None:
    seen: list[int] = []
    run = numbered(seen.append, 2)
    for _ in range(3):
        run()
    assert seen == [2, 3, 4]


def test_nothing_begins_without_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 2.0, 3.0])
    monkeypatch.setattr(timer, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    assert [*within(range(10), 2.5)] == [0, 1]
