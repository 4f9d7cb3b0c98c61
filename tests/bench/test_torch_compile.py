"""What torch.compile is worth: a row that is red has no times, one that loses has no iterations that pay."""

from pathlib import Path
from typing import Any

import jsonschema
import pytest

from bench import report, results, torch_compile
from fastdm.condensation.step import Step


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FASTDM_RESULTS", str(tmp_path))
    return tmp_path


def measure(monkeypatch: pytest.MonkeyPatch, compile: Any) -> dict[str, Any]:
    """A row of a small network, with something quicker in the place of torch.compile."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # What the benchmark sets is undone.
    monkeypatch.setattr(Step, "compile", compile)
    return torch_compile.measure("LeNet", batch_real=2, seconds=0)


def test_a_row_holds_both_times_and_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    row = measure(monkeypatch, lambda step: 1.5)
    assert row["compile_seconds"] == 1.5
    assert row["error"] == 0
    assert row["correct"]
    assert set(row["seconds"]) == {"eager", "compiled"}
    assert row["ratio"] > 0


def test_steps_that_differ_have_no_times(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(step: Step) -> float:
        step._mean += 0.1
        return 1.0

    row = measure(monkeypatch, spoil)
    assert not row["correct"]
    assert not {"seconds", "ratio", "paid_after"} & row.keys()


def test_a_network_that_cannot_be_compiled_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(step: Step) -> float:
        raise RuntimeError("no compiler")

    assert measure(monkeypatch, fail)["failure"] == "RuntimeError: no compiler"


def test_compiling_pays_once_it_has_saved_its_time(folder: Path) -> None:
    gains = torch_compile.compared({"eager": [0.5], "compiled": [0.25]}, 10.1)
    assert gains["ratio"] == 2
    assert gains["paid_after"] == 41
    loses = torch_compile.compared({"eager": [0.25], "compiled": [0.5]}, 10.1)
    assert "paid_after" not in loses
    assert report.block("torch_compile") == ""
    rows = [{"name": "A", **gains}, {"name": "B", **loses}]
    results.save("torch_compile", rows, {})
    (result,) = results.load("torch_compile")
    jsonschema.validate(result, results.SCHEMA)
    page = report.block("torch_compile")
    assert "| A | 500 | 250 | 2.00 | 41 iterations |" in page
    assert "- B: 2.00\u00d7 the time without it" in page
