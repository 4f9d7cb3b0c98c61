"""Accuracy: the time per iteration is that between the first and the last one."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import accuracy


def test_preparations_do_not_count_in_the_time_per_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 102.0, 106.0])
    monkeypatch.setattr(accuracy, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    case = accuracy.Case("digits", 1, 3, 50.0)
    row = accuracy.measure(case, Path("data"), seed=0, precision="fp32", epochs=1, device="cpu", initial=True)
    assert row["seconds_per_iteration"] == 3.0
    assert len(row["losses"]) == 3
    assert row["precision"] == "fp32"
    assert 0 <= row["condensed_accuracy"] <= 100
    assert 0 <= row["initial_accuracy"] <= 100
