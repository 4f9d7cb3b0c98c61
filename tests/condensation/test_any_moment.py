"""A run that is stopped at any moment loses nothing that was saved."""

import random
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

import fastdm
from fastdm.errors import FastDMError
from fastdm.runs.checkpoint import FILE, read_checkpoint
from tests.oracles import random_dataset

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@pytest.fixture
def heeded() -> Iterator[list[int]]:
    """Signals raise KeyboardInterrupt, whatever this process has inherited. Gives those that have arrived."""
    arrived: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        arrived.append(number)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in NUMBERS}
    try:
        yield arrived
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def signalled(number: signal.Signals, moment: int | None) -> Iterator[Callable[[], int]]:
    """Send a signal at the `moment`-th call of a Python function, where Python looks for signals. Gives the count.

    Moments are calls and not times, which would depend on the machine.
    """
    calls = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"
        if calls == moment:
            sys.setprofile(None)
            signal.raise_signal(number)

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        yield lambda: calls
    finally:
        sys.setprofile(before)


def test_a_signal_at_any_moment_costs_no_checkpoint(heeded: list[int], tmp_path: Path) -> None:
    dataset = random_dataset([4, 4], shape=(1, 8, 8))
    options: dict[str, Any] = {
        "ipc": 1, "batch_real": 2, "network": "ConvNetD1", "device": "cpu", "iterations": 6, "save_every": 1,
    }  # fmt: skip
    whole = fastdm.condense(dataset, **options, save_path=tmp_path / "whole")
    with signalled(signal.SIGINT, None) as calls:
        fastdm.condense(dataset, **options, save_path=tmp_path / "counted")
    generator = random.Random(0)
    stopped = 0
    for number in range(8):
        folder = tmp_path / f"{number}"
        # Where threads wait for each other, runs differ by a few calls.
        moment = generator.randint(1, calls() * 9 // 10)
        try:
            with signalled(generator.choice(NUMBERS), moment):
                fastdm.condense(dataset, **options, save_path=folder)
        except KeyboardInterrupt:
            stopped += 1
        assert len(heeded) == number + 1
        if folder.exists():
            assert not list(folder.glob("*.damaged*"))
        if (folder / FILE).exists():
            assert read_checkpoint(folder / FILE).iteration <= 6
        try:
            resumed = fastdm.condense(dataset, **options, save_path=folder, resume=True)
        except FastDMError as error:
            raise AssertionError(f"moment {number}: {error}") from error
        assert torch.equal(resumed.images, whole.images), number
    assert stopped >= 4  # not each: Python drops an exception that is raised in a destructor
