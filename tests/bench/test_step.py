"""The gates in front of a step's speed, and what torch.compile is worth."""

import dataclasses
from pathlib import Path

import jsonschema
import pytest
import torch

from bench import report, step
from bench.harness import loops, records
from bench.harness.records import Recorder, Row
from bench.harness.workloads import CIFAR10, CPU, CPU_SIZES, Workload
from fastdm.condensation.step import Step
from tests.bench.schema import SCHEMA, saved

SMALL = Workload("small", 10, 16, 1, 16, 16)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_step_passes(precision: str) -> None:
    errors = loops.check(SMALL, CPU, precision)
    assert errors["correct"], errors


@pytest.mark.parametrize("name", step.recipes(CIFAR10))
def test_a_recipe_is_compared_with_a_plain_step_that_sends_as_many_images_through_networks(name: str) -> None:
    work, plain = step.recipes(CIFAR10.smoke())[name]
    passes = 2 if name == "recipe “trained”" else 1  # through the later snapshot of the cross-entropy as well
    assert plain.ipc == passes * work.ipc * work.settings().partition ** 2
    assert (plain.settings().strategy, plain.settings().aug_mode) == (
        work.settings().strategy,
        work.settings().aug_mode,
    )
    row = step.measure_recipe(work, plain, CPU, "fp32", 0)
    assert row["correct"], row
    times = row["seconds"]
    assert row["ratio"] == times["fastdm"]["median"] / times["plain"]["median"]
    assert row["met"] == (row["ratio"] <= row["target"])


def test_one_wrong_image_and_a_small_error_of_all_are_seen() -> None:
    exact = torch.randn(10, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert loops.compared(exact, exact, "fp32")["correct"]

    one_wrong = exact.clone()
    one_wrong[3] = 0
    errors = loops.compared(one_wrong, exact, "fp32")
    assert errors["median_error"] == 0
    assert not errors["correct"]

    errors = loops.compared(1.0001 * exact, exact, "fp32")
    assert errors["error"] <= errors["tolerance"]
    assert not errors["correct"]

    assert not loops.compared(exact * torch.nan, exact, "fp32")["correct"]


def test_a_wrong_step_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "apart", lambda function, *args: {"correct": False, "error": 1.0})
    assert step.measure(SMALL, CPU, "fp32", 0, ["public"]) == {"correct": False, "error": 1.0}


def test_every_baseline_of_both_kinds_of_malloc_has_a_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    def apart(function: object, *args: object, **environment: str) -> object:
        if function is step.check:
            return {"correct": True}
        if function is step.cpu_peak:
            return 100
        raised = environment == step.RAISED
        times = {"fastdm": [1.0], "public": [3.0 if raised else 6.0], "compiled": [2.0 if raised else 5.0]}
        return {"seconds": records.spreads(times)}

    monkeypatch.setattr(step, "apart", apart)
    row = step.measure(CIFAR10.smoke(), CPU, "fp32", 0, ["public", "compiled"])
    assert row["ratio"] == {"public": 6.0, "raised": 3.0, "compiled": 5.0, "compiled_raised": 2.0}
    assert set(row["seconds"]) == {
        f"{loop}{kind}" for loop in ("fastdm", "public", "compiled") for kind in ("", " raised")
    }
    assert row["peak_mib"] == {"fastdm": 100, "public": 100}


def test_a_baseline_that_fails_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def loop(name: str, *_: object) -> tuple[step.Loop, Row]:
        if name == "compiled":
            raise RuntimeError("no compiler")
        return (lambda: None), {"chunks": 1} if name == "fastdm" else {}

    monkeypatch.setattr(step, "loop", loop)
    row = step.times(SMALL, CPU, "fp32", ["fastdm", "public", "compiled"], 0)
    assert set(row["seconds"]) == {"fastdm", "public"}
    assert row["note"] == "compiled failed: RuntimeError: no compiler"
    assert row["chunks"] == 1


def test_only_sizes_that_fit_are_compared_with_a_compiled_batch() -> None:
    assert step.baselines(CIFAR10, no_compile=False) == ["public", "compiled"]
    assert step.baselines(CIFAR10, no_compile=True) == ["public"]
    compiled = [size.name for size in CPU_SIZES if "compiled" in step.baselines(size, no_compile=False)]
    assert compiled == ["CIFAR-10 ipc 10", "FashionMNIST ipc 10"]


def measure_compiled(monkeypatch: pytest.MonkeyPatch, compile: object) -> Row:
    """A row of a small network, with something quicker in the place of torch.compile."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # What the benchmark sets is undone.
    monkeypatch.setattr(Step, "compile", compile)
    return step.measure_compiled(dataclasses.replace(CIFAR10.smoke(), network="LeNet", size=32), seconds=0)


def test_a_row_holds_both_times_and_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    row = measure_compiled(monkeypatch, lambda step: 1.5)
    assert row["compile_seconds"] == 1.5
    assert row["error"] == 0
    assert row["correct"]
    assert set(row["seconds"]) == {"eager", "compiled"}
    assert row["ratio"] > 0


def test_steps_that_differ_have_no_times(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(step: Step) -> float:
        step._mean += 0.1
        return 1.0

    row = measure_compiled(monkeypatch, spoil)
    assert not row["correct"]
    assert not {"seconds", "ratio", "paid_after"} & row.keys()


def test_a_network_that_cannot_be_compiled_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(step: Step) -> float:
        raise RuntimeError("no compiler")

    row = Recorder(step.COMPILE, {}).add({"name": "LeNet"}, lambda: measure_compiled(monkeypatch, fail))
    assert row["failure"] == "RuntimeError: no compiler"


def test_compiling_pays_once_it_has_saved_its_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def row(eager: float, compiled: float) -> Row:
        seconds = records.spreads({"eager": [eager], "compiled": [compiled]})
        monkeypatch.setattr(step, "race", lambda *_, **__: {"seconds": seconds, "ratio": eager / compiled})
        return measure_compiled(monkeypatch, lambda _: 10.1)

    gains, loses = row(0.5, 0.25), row(0.25, 0.5)
    assert gains["paid_after"] == 41
    assert "paid_after" not in loses
    assert report.block(step.COMPILE) == ""
    jsonschema.validate(saved(step.COMPILE, {"name": "A", **gains}, {"name": "B", **loses}), SCHEMA)
    page = report.block(step.COMPILE)
    assert "| A | 500 | 250 | 2.00 | 10.1 | 41 iterations |" in page
    assert "- B: 2.00\u00d7 the time without it" in page
