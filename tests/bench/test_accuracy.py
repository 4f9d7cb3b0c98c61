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
    options: Any = SimpleNamespace(device=CPU, protocols=["dm"], checks=3)
    case = accuracy.Case("digits-1", 3, 1, epochs=1)
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
    swept = run("--rungs", "dm", "--lr_img", "0.5", "2", "--ce_weight", "1", "--protocols", "idc")
    assert swept[-3:] == [("dm", 0)] * 3


def test_the_readme_has_a_line_for_each_budget() -> None:
    plain = {"name": "A ipc 1, 500 iterations", "validation": False}
    sets = {"idc": 20.0, "pool_seconds": 1234.5, "condensation_seconds": 4.25}
    rows = [plain | {"rung": "trained", "seed": seed} | sets | {"idc": idc} for seed, idc in enumerate((19.0, 21.0))]
    rows += [plain | {"rung": "dm", "seed": 0, "idc": 9.5, "idc_std": 0.5, "dm": 10.0, "dm_std": 0.25, "public": 9.0}]
    rows += [plain | {"rung": "dm", "seed": 1, "idc": 99.0, "given_lr_img": 2.0}, rows[0] | {"validation": True}]
    rows += [plain | {"name": "A ipc 1, 60 iterations", "rung": "random", "seed": 0, "idc": 5.0, "idc_std": 0.1}]
    recipe = "20.0 ± 1.4 / \N{EN DASH}<br>2 sets, 1,234 + 4.2 s"
    assert accuracy._quoted(rows).splitlines() == [
        "| set | random | DM | recipe | public code, dm |",
        "| --- | --- | --- | --- | --- |",
        "| A ipc 1, 60 iterations | 5.0 ± 0.1 / \N{EN DASH} |  |  |  |",
        f"| A ipc 1, 500 iterations |  | 9.5 ± 0.5 / 10.0 ± 0.2 | {recipe} | 9.0 |",
    ]
