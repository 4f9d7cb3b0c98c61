"""The peaks: of all threads and of one, by the best size."""

from pathlib import Path

import pytest
import torch

from bench import peaks
from bench.harness import machine, records
from bench.harness.records import Recorder
from bench.harness.workloads import CPU


def test_the_best_size_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([[3.0, 2.0], [1.0, 0.5], [9.0, 8.0]])
    monkeypatch.setattr(peaks, "device_times", lambda functions, inputs, device: {"": next(times)})
    sizes = {name: (work, lambda: None) for name, work in (("small", 2.0), ("middle", 4.0), ("large", 8.0))}
    row = peaks.fastest("copy", "gb_per_s", 2.0, sizes, CPU)  # type: ignore[arg-type]
    assert row == {"size": "middle", "seconds": {"copy": records.spread([1.0, 0.5])}, "gb_per_s": 4.0}


def test_a_copy_and_products_with_all_threads_and_with_one(folder: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        recorder = Recorder(peaks.SUITE, {})
        for row in peaks.measure(CPU, smoke=True):
            recorder.add(row)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    names = ["copy", "matmul bf16", "matmul fp32"]
    assert [row["name"] for row in recorder.rows] == [*names, *(f"{name}, 1 thread" for name in names)]
    assert [row["threads"] for row in recorder.rows] == [2, 2, 2, 1, 1, 1]
    found = records.peaks(machine.describe())
    assert found["copy"] == pytest.approx(recorder.rows[0]["gb_per_s"] * 1e9)
    assert found["matmul fp32"] == pytest.approx(recorder.rows[2]["tflop_per_s"] * 1e12)
