"""The whole runs: all stages of the GPU run on tiny shapes, a stage that hangs, and what a killed one leaves."""

import json
import subprocess
import sys
import tarfile
import time
from argparse import Namespace
from pathlib import Path

import jsonschema
import pytest

from bench import accuracy, run
from bench.harness.machine import REPOSITORY
from bench.harness.records import Recorder, Row
from bench.run import Stage
from tests.bench.schema import SCHEMA

SUITES = ("headline", "waterfall", "chunk", "chunks", "kernels", "step", "step_recipes")


def run_all(stages: list[Stage], seconds: float, least: float = 0.0) -> tuple[int, list[Row]]:
    status = run.run_all(stages, seconds, Recorder(run.SUITE, {}), least)
    return status, run.SUITE.load()[0]["rows"]


def test_the_gpu_run_on_a_cpu(tmp_path: Path) -> None:
    """Whether every stage runs: only what is CUDA's own stays unproven where there is no GPU."""
    command = ["-m", "bench.run", "gpu", "--device", "cpu", "--smoke", "--out", str(tmp_path), "--minutes", "30"]
    done = subprocess.run([sys.executable, *command], cwd=REPOSITORY, capture_output=True, text=True)
    logs = "\n".join(log.read_text()[-2000:] for log in (tmp_path / "logs").iterdir())
    assert done.returncode == 0, done.stdout + done.stderr + logs
    files = {path.name.split("--")[0]: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert set(files) == {*SUITES, "peaks", "dram", "evaluation", "run"}
    for result in files.values():
        jsonschema.validate(result, SCHEMA)
        assert result["settings"]["smoke"]
        assert not [row for row in result["rows"] if "failure" in row]
    for suite in SUITES:
        for row in files[suite]["rows"]:
            assert row["correct"], row
            assert row["seconds"], row
    page = (tmp_path / "RESULTS.md").read_text()
    assert page.count("**A smoke run**") == len(files)
    for plot in ("waterfall-times", "kernels-bandwidth", "kernels-roofline", "step-times"):
        assert f"](plots/{plot}--" in page
    with tarfile.open(tmp_path / "results.tar.gz") as archive:
        names = archive.getnames()
    assert {"RESULTS.md", "logs/headline.log", *(path.name for path in tmp_path.glob("*.json"))} <= set(names)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.*")) < 10e6


def test_the_gpu_run_begins_with_what_is_wanted_most_and_has_its_tests_where_there_is_one() -> None:
    names = [stage.name for stage in run.stages("gpu", "cuda", Path("data"), smoke=False)]
    on_cpu = [stage.name for stage in run.stages("gpu", "cpu", Path("data"), smoke=True)]
    assert [name for name in names if name not in on_cpu] == ["gpu_tests"]
    assert names[:6] == ["headline", "peaks", "waterfall", "kernels", "dram", "chunk"]
    assert names[-6:] == ["chunks", "step", "step_recipes", "evaluation", "accuracy", "report"]


def test_the_accuracy_run_asks_for_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Namespace] = {}
    for stage in run.stages("accuracy", "cpu", Path("data"), smoke=False):
        if stage.name != "report":
            monkeypatch.setattr(sys, "argv", [*stage.arguments[1:]])
            monkeypatch.setattr(
                accuracy, "record", lambda suite, options, *_, name=stage.name, **__: asked.update({name: options})
            )
            accuracy.main()
    cases = {name: [case.name for case in options.cases] for name, options in asked.items()}
    assert cases["full"] + cases["full_50"] == ["CIFAR10-1-full", "CIFAR10-10-full", "CIFAR10-50-full"]
    assert cases["sweeps"] == cases["ladder"] == ["CIFAR10-10"]
    assert asked["sweeps"].lr_img + asked["sweeps"].ce_weight == [0.1, 0.2, 0.4, 1.0, 2.5, 10.0]
    assert asked["sweeps"].validation
    assert {options.data_path for options in asked.values()} == {Path("data")}


def test_a_stage_that_hangs_or_fails_leaves_the_others_and_its_words(folder: Path) -> None:
    stages = [
        Stage("hangs", ("-c", "import time; print('begun'); time.sleep(600)"), 10.0),
        Stage("fails", ("-c", "raise SystemExit(3)"), 20),
        Stage("works", ("-c", "print('all is well')"), 20),
    ]
    start = time.monotonic()
    status, rows = run_all(stages, 100)
    assert status == 1
    assert time.monotonic() - start < 300
    assert [row["end"] for row in rows] == ["stopped after 10 s", "failed with 3", "done"]
    # Nothing is held back in a buffer.
    assert [row["said"] for row in rows] == ["begun", "", "all is well"]
    assert (folder / "logs" / "hangs.log").read_text() == "begun\n"
    with tarfile.open(folder / "results.tar.gz") as archive:
        assert "logs/works.log" in archive.getnames()


def test_no_stage_starts_without_its_time(folder: Path) -> None:
    status, rows = run_all([Stage("late", ("-c", ""), 20)], 5, least=10)
    assert status == 1
    assert rows[0]["end"] == "no time left"
