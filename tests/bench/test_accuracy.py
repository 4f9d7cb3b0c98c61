"""Accuracy: what a row holds, and what a run keeps of the one before."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import fastdm
from bench import accuracy
from bench.harness import machine
from bench.harness.workloads import CPU


def test_a_row_holds_the_losses_and_the_accuracy_along_the_iterations() -> None:
    options: Any = SimpleNamespace(device=CPU, epochs=1, protocols=["dm"], checks=3)
    case = accuracy.Case("digits-1", 3, 1)
    row = accuracy.measure(case, fastdm.open_dataset("digits"), "dm", {"precision": "fp32"}, options, 0)
    assert len(row["losses"]) == 3
    assert row["precision"] == "fp32"
    assert row["dm_curve"].keys() == {"1", "2"}
    assert 0 <= row["dm"] <= 100
    assert row["public_seconds"] > 0


def test_a_run_keeps_the_rows_that_it_does_not_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTDM_RESULTS", str(tmp_path))
    monkeypatch.setattr(machine, "commit", lambda: "now")
    pools = ["--pools", str(tmp_path / "pools")]

    def run(*arguments: str) -> list[tuple[str, int]]:
        monkeypatch.setattr(sys, "argv", ["accuracy", "--smoke", "--device", "cpu", *pools, *arguments])
        accuracy.main()
        (path,) = tmp_path.glob("accuracy--*.json")
        return [(row["rung"], row["seed"]) for row in json.loads(path.read_text())["rows"]]

    assert run("--rungs", "random", "trained", "--protocols", "idc") == [("random", 0), ("trained", 0)]
    assert run("--rungs", "random", "--seeds", "0", "1") == [("trained", 0), ("random", 0), ("random", 1)]
