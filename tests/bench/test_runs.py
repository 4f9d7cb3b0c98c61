"""The commands as one types them, on tiny shapes: all stages of the GPU run, a stage that hangs, and a comparison."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest

from bench import compare, results
from bench.stages import Stage, run_all

REAL = os.environ.get("FASTDM_DATA")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FASTDM_RESULTS", str(tmp_path))
    return tmp_path


def test_the_gpu_run_on_a_cpu(tmp_path: Path) -> None:
    """Whether every stage runs: only what is CUDA's own stays unproven where there is no GPU."""
    command = ["-m", "bench.gpu_report", "--device", "cpu", "--smoke", "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, *command], cwd=results.REPOSITORY, capture_output=True, text=True)
    logs = "\n".join(log.read_text()[-2000:] for log in (tmp_path / "logs").iterdir())
    assert done.returncode == 0, done.stdout + done.stderr + logs
    files = {path.name.split("--")[0]: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert set(files) == {"peaks", "waterfall", "kernels", "scale", "evaluation", "gpu_report"}
    for result in files.values():
        jsonschema.validate(result, results.SCHEMA)
        assert result["settings"]["smoke"]
        assert not [row for row in result["rows"] if "failure" in row]
    for row in files["waterfall"]["rows"] + files["kernels"]["rows"]:
        assert row["correct"], row
        assert row["seconds"], row
    page = (tmp_path / "RESULTS.md").read_text()
    assert page.count("**A smoke run**") == len(files)
    for plot in ("waterfall-times", "kernels-bandwidth", "kernels-roofline", "scale-cost", "scale-memory"):
        assert f"](plots/{plot}--" in page
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.*")) < 10e6


def test_the_calls_that_are_timed_agree_with_the_public_ones() -> None:
    """Without timing, and without the step, which tests/test_step.py compares."""
    command = [sys.executable, "-m", "bench.host", "--benchmark-disable", "-k", "not iteration"]
    done = subprocess.run(command, cwd=results.REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "4 passed" in done.stdout


@pytest.mark.skipif(importlib.util.find_spec("fastdm._native") is None, reason="fastdm was installed without its core")
def test_loading_has_every_row_and_its_memory_is_bounded(folder: Path) -> None:
    command = [sys.executable, "-m", "bench.loading", "--quick", *(("--data_path", REAL) if REAL else ())]
    done = subprocess.run(command, cwd=results.REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (result,) = results.load("loading")
    names = [row["name"] for row in result["rows"]]
    baselines = ["best sequential copy", "index_select(out=)", "index_select to float32", "numpy memmap", "FFCV raw"]
    baselines += ["the public code", "share of gather's time", "a default mapping", "bytes wanted"]
    baselines += ["DataLoader with 2 workers", "over Pillow", "two threads over one"] if REAL else []
    assert not [baseline for baseline in baselines if not any(baseline in name for name in names)]
    for row in result["rows"]:
        assert row["target"] is None or row["met"] or row["note"], row
    (resident,) = (row for row in result["rows"] if "resident" in row["name"])
    assert resident["met"], resident


def test_a_stage_that_hangs_or_fails_leaves_the_others(folder: Path) -> None:
    stages = [
        Stage("hangs", ("-c", "import time; print('begun', flush=True); time.sleep(60)"), 1.0, least=0),
        Stage("fails", ("-c", "raise SystemExit(3)"), 20, least=0),
        Stage("works", ("-c", "print('all is well')"), 20, least=0),
    ]
    start = time.monotonic()
    assert run_all("cpu_report", stages, 30, {}, "cpu", {}) == 1
    assert time.monotonic() - start < 20
    (result,) = results.load("cpu_report")
    assert [row["end"] for row in result["rows"]] == ["stopped after 1 s", "failed with 3", "done"]
    assert [row["said"] for row in result["rows"]] == ["begun", "", "all is well"]


def test_no_stage_starts_without_its_time(folder: Path) -> None:
    assert run_all("cpu_report", [Stage("late", ("-c", ""), 20, least=10)], 5, {}, "cpu", {}) == 1
    assert results.load("cpu_report")[0]["rows"][0]["end"] == "no time left"


def test_two_builds_are_compared_in_turns(tmp_path: Path) -> None:
    builds = {}
    for name in ("there", "here"):
        package = tmp_path / name / "lib" / "fastdm"
        package.mkdir(parents=True)
        for entry in (results.REPOSITORY / "fastdm").iterdir():
            (package / entry.name).symlink_to(entry)
        (package / "kernels").symlink_to(results.REPOSITORY / "kernels")
        builds[name] = tmp_path / name
    line = compare.compare("uniform", "cpu", builds, rounds=3)
    name, ratio = line.split()[:2]
    assert name == "uniform"
    assert float(ratio) > 0
    assert "there" in line
    assert "here" in line
    kernels = tmp_path / "there" / "lib" / "fastdm" / "kernels"
    kernels.unlink()
    kernels.mkdir()
    (kernels / "__init__.py").write_text("raise ImportError('built without')\n")
    assert "ImportError: built without" in compare.compare("uniform", "cpu", builds, rounds=1)
