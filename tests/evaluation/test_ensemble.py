"""Trainings side by side."""

import threading
from collections.abc import Callable
from typing import NoReturn

import pytest
import torch

from fastdm.evaluation.ensemble import side_by_side

CPU = torch.device("cpu")


def test_results_come_in_the_order_of_the_jobs() -> None:
    threads = torch.get_num_threads()
    assert side_by_side(lambda job, after_step: job * job, range(5), CPU, None) == [0, 1, 4, 9, 16]
    assert torch.get_num_threads() == threads


def test_the_first_error_ends_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Job 0 trains until it is stopped, for the error of job 1; the jobs that wait for a thread never begin."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    begun = []
    trains = threading.Event()

    def run(job: int, after_step: Callable[[], None]) -> NoReturn:
        begun.append(job)
        if job == 1:
            trains.wait(60)
            raise ValueError("the cause")
        trains.set()
        while True:
            after_step()

    with pytest.raises(ValueError, match="the cause"):
        side_by_side(run, range(5), CPU, None)
    assert sorted(begun) == [0, 1]
