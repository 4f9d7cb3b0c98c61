"""The page of all records, and what README.md quotes of them."""

import dataclasses
import json
from pathlib import Path

import pytest

from bench import compile, kernels, peaks, report, step
from bench.harness import records
from tests.bench.schema import saved

ROW = {"name": "copy", "gb_per_s": 12.0, "seconds": {"copy": records.spread([1.0, 2.0, 3.0])}}


def test_the_readme_quotes_the_records() -> None:
    text = report.README.read_text()
    assert "<!-- bench:step -->" in text
    assert report.quoted(text) == text, "README.md is behind bench/results: run python -m bench.report"


def test_quoting_replaces_what_stands_between_the_markers(folder: Path) -> None:
    unknown = "after <!-- bench:waterfall -->\nkept\n<!-- /bench:waterfall -->"
    text = f"before\n<!-- bench:peaks -->\nold\n<!-- /bench:peaks -->\n{unknown}"
    assert report.quoted(text) == text  # There are no records of either.
    saved(peaks.SUITE, ROW)
    new = report.quoted(text)
    assert "| copy | 12 |" in new
    assert "old" not in new
    assert new.startswith("before\n<!-- bench:peaks -->\n")
    assert new.endswith(unknown)
    assert report.quoted(new) == new
    with pytest.raises(ValueError, match="bench:nothing"):
        report.quoted("<!-- bench:nothing -->\n<!-- /bench:nothing -->")


def test_the_quoted_speeds_have_four_columns_and_the_other_baseline(folder: Path) -> None:
    times = {"fastdm": [0.3], "public": [2.4], "fastdm raised": [0.3], "public raised": [1.2]}
    timed = {
        "name": "CIFAR-10",
        "seconds": records.spreads(times),
        "ratio": {"public": 8.0, "raised": 4.0, "compiled": 2.5},
    }
    saved(step.SIZES, timed, {"name": "scaling", "seconds": records.spreads({"fastdm": [1.0]}), "ratio": {}})
    block = report.block(step.SIZES, quoted=True)
    assert "| size | fastdm, ms | public, ms | \u00d7 |" in block
    assert "| CIFAR-10 | 300 | 2,400 | 8.0 |" in block
    assert "scaling" not in block
    assert "for both: 4.0 times as fast" in block
    assert "torch.compile: 2.5 times as fast" in block
    assert "| scaling |" in report.block(step.SIZES)


def test_the_page_holds_what_the_compile_check_prints(folder: Path) -> None:
    pytest.importorskip("triton")
    from fastdm.kernels import compile_check

    one = compile_check.Report(
        "u8 3x32²", "dsa_fwd_kernel", "sm_80", 4, 48, 0, 16, {"8": 3, "128": 1}, {"16": 3}, 448, 0
    )
    two = dataclasses.replace(one, target="sm_90", registers=44, spills=2)
    reports = [one, two, dataclasses.replace(one, target="sm_100", registers=45)]
    saved(compile.SUITE, *compile.rows([dataclasses.asdict(report) for report in reports]))
    page = report.page(folder / "plots")
    assert compile_check.table(reports) in page
    assert "| dsa_fwd | u8 3x32² | 4 | 48 / 44 / 45 | 0 (sm_90 2) | 16 | 1·128 + 3·8 | 3·16 | 448 |" in page
    assert "registers (sm_80 / sm_90 / sm_100)" in page


def test_the_page_marks_what_is_stale_failed_or_slower(folder: Path) -> None:
    times = {"fastdm": records.spread([2e-6]), "eager": records.spread([1e-6])}
    slow = {
        "name": "slow",
        "seconds": times,
        "speedup": {"eager": 0.5},
        "error": 0.0,
        "tolerance": 0.0,
        "correct": True,
    }
    wrong = {"name": "wrong", "error": 0.5, "tolerance": 0.0, "correct": False}
    saved(kernels.SUITE, slow, wrong, {"name": "broken", "failure": "RuntimeError: no"})
    (path,) = folder.glob("kernels--*.json")
    result = json.loads(path.read_text())
    result["code"]["kernels"] = "0" * 12
    path.write_text(json.dumps(result))
    page = report.page(folder / "plots")
    assert "**Stale**: since then kernels changed." in page
    assert "- slow: 2.00\u00d7 the time of eager" in page
    assert "| wrong | wrong result |" in page
    assert "- broken: RuntimeError: no" in page


def test_every_committed_record_is_drawn(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("FASTDM_RESULTS", str(records.FOLDER))
    drawn = {path.name.split("--")[0] for path in report.draw(folder)}
    assert {"step-times", "scale-memory", "waterfall-times", "kernels-roofline"} <= drawn
    assert {"accuracy-dots", "precision-seeds", "loading-ratios", "kernels-bandwidth"} <= drawn
