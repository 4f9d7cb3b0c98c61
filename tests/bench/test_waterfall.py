"""The waterfall: a stage whose losses are off has no speed, and what is right is timed before the next one is built."""

from pathlib import Path
from typing import Any

import pytest
import torch

from bench import waterfall
from bench.harness import loops
from bench.harness.records import Recorder
from bench.harness.workloads import CIFAR10, CPU
from tests.oracles import public_run

WORK = CIFAR10.smoke()


def run(chosen: list[waterfall.Stage]) -> list[dict[str, Any]]:
    waterfall.waterfall(Recorder(waterfall.SUITE, {}), WORK, CPU, chosen, 0, 0.0)
    return waterfall.SUITE.load()[0]["rows"]  # type: ignore[no-any-return]


def test_every_stage_of_a_cpu_has_the_public_losses(folder: Path) -> None:
    chosen = waterfall.stages(CPU, compiled=False)
    rows = run(chosen)
    assert [row["name"] for row in rows] == ["public", "batched", "batched bf16", "fastdm", "fastdm bf16"]
    literal = public_run(WORK.dataset(CPU), WORK.settings(), waterfall.ITERATIONS_CHECKED, torch.float32)[1]
    for row in rows:
        assert row["correct"], row
        # Both may be off from what the errors are of.
        assert row["losses"] == pytest.approx(literal, rel=row["tolerance"] + loops.LOSS_TOLERANCE["fp32"])
        assert row["times_public"] > 0
        assert row["seconds"]["iteration"]["n"] >= 2


def test_a_stage_is_timed_and_saved_before_the_next_is_built(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(kind: str, *args: Any) -> Any:
        if kind == "public":
            return loops.make(kind, *args)
        (row,) = waterfall.SUITE.load()[0]["rows"]
        assert row["seconds"]
        raise RuntimeError("no time")

    monkeypatch.setattr(waterfall, "make", make)
    chosen = [stage for stage in waterfall.stages(CPU, compiled=True) if stage.kind in ("public", "compiled")]
    first, second = run(chosen)
    assert first["seconds"]
    assert second["failure"] == "RuntimeError: no time"


def test_a_stage_whose_losses_are_off_has_no_speed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waterfall, "make", lambda *_: lambda iteration: 1.0)
    (row,) = run([stage for stage in waterfall.stages(CPU, compiled=False) if stage.name == "fastdm"])
    assert not row["correct"]
    assert "seconds" not in row


def test_torch_compile_is_built_last_and_the_headline_has_few_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda", 0)
    assert [one.name for one in waterfall.stages(cuda, compiled=True)][-2:] == ["compiled bf16", "compiled bf16 graph"]
    headline = [one.name for one in waterfall.stages(cuda, compiled=True, headline=True)]
    assert headline == ["fastdm bf16 graph", "public", "compiled bf16", "compiled bf16 graph"]
    assert [one.name for one in waterfall.stages(CPU, compiled=False, headline=True)] == ["fastdm", "public"]
