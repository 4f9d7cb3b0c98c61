"""A run that is stopped at any moment loses nothing that was saved."""

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import fastdm
from fastdm.errors import FastDMError
from fastdm.runs.checkpoint import FILE, read_checkpoint
from tests.oracles import random_dataset


@pytest.fixture
def heeded() -> Iterator[None]:
    """Signals raise KeyboardInterrupt, whatever this process has inherited."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_signal_at_any_moment_costs_no_checkpoint(heeded: None, tmp_path: Path) -> None:
    dataset = random_dataset([4, 4], shape=(1, 8, 8))
    options: dict[str, Any] = {
        "ipc": 1, "batch_real": 2, "network": "ConvNetD1", "device": "cpu", "iterations": 6, "save_every": 1,
    }  # fmt: skip
    whole = fastdm.condense(dataset, **options, save_path=tmp_path / "whole")
    start = time.perf_counter()
    fastdm.condense(dataset, **options, save_path=tmp_path / "timed")
    seconds = time.perf_counter() - start
    generator = random.Random(0)
    stopped = 0
    for number in range(8):
        folder = tmp_path / f"{number}"
        kind = generator.choice([signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
        sender = threading.Timer(generator.random() * seconds, os.kill, (os.getpid(), kind))
        try:
            sender.start()
            fastdm.condense(dataset, **options, save_path=folder)
            sender.join()
            time.sleep(0.01)
        except KeyboardInterrupt:
            stopped += 1
        sender.join()
        if folder.exists():
            assert not list(folder.glob("*.damaged*"))
        if (folder / FILE).exists():
            assert read_checkpoint(folder / FILE).iteration <= 6
        try:
            resumed = fastdm.condense(dataset, **options, save_path=folder, resume=True)
        except FastDMError as error:
            raise AssertionError(f"moment {number}: {error}") from error
        assert torch.equal(resumed.images, whole.images), number
    assert stopped == 8
