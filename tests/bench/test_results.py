"""Result files: what is committed obeys the schema, says what it measured, and is what README.md quotes."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from bench import report, results
from bench.compile import rows as compile_rows

COMMITTED = sorted(results.FOLDER.rglob("*.json"))
ROWS = [{"name": "copy", "gb_per_s": 12.0, "seconds": {"copy": results.spread([1.0, 2.0, 3.0])}}]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FASTDM_RESULTS", str(tmp_path))
    return tmp_path


def check(result: dict[str, Any]) -> None:
    jsonschema.validate(result, results.SCHEMA, format_checker=jsonschema.FormatChecker())


def test_committed_results_obey_the_schema() -> None:
    for path in COMMITTED:
        result = json.loads(path.read_text())
        check(result)
        assert result in results.load(result["suite"])
        assert not result["settings"].get("smoke"), f"{path.name} is a smoke run, whose times mean nothing"


def test_what_is_saved_is_valid_and_loaded_again(folder: Path) -> None:
    path = results.save("peaks", ROWS, {})
    (result,) = results.load("peaks")
    check(result)
    assert json.loads(path.read_text()) == result
    assert result["rows"] == ROWS


def test_no_speed_stands_beside_a_red_check(folder: Path) -> None:
    results.save("peaks", [{**ROWS[0], "correct": False}], {})
    with pytest.raises(jsonschema.ValidationError):
        check(results.load("peaks")[0])


def test_a_result_is_stale_once_its_code_has_changed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "repository"
    (repository / "kernels").mkdir(parents=True)
    (repository / "kernels" / "ops.py").write_text("1\n")
    monkeypatch.setattr(results, "REPOSITORY", repository)
    results._hash.cache_clear()
    results.save("compile", [{"name": "a"}], {})
    (result,) = results.load("compile")
    assert results.changed(result) == []

    (repository / "kernels" / "notes.md").write_text("not code\n")
    results._hash.cache_clear()
    assert results.changed(result) == []

    (repository / "kernels" / "ops.py").write_text("2\n")
    results._hash.cache_clear()
    assert results.changed(result) == ["kernels"]
    results._hash.cache_clear()


def test_every_suite_names_code_that_exists() -> None:
    for suite, paths in results.MEASURED.items():
        for path in paths:
            assert (results.REPOSITORY / path).exists(), f"{suite} measures {path}, which is not there"


def test_the_spread_is_the_median_with_two_percentiles() -> None:
    assert results.spread([5.0]) == {"n": 1, "median": 5.0, "p20": 5.0, "p80": 5.0}
    assert results.spread([6.0, 1.0, 3.0, 2.0, 5.0, 4.0]) == {"n": 6, "median": 3.5, "p20": 2.0, "p80": 5.0}


def test_the_readme_quotes_the_files() -> None:
    text = report.README.read_text()
    assert report.quoted(text) == text, "README.md is behind bench/results: run python -m bench.report"


def test_quoting_replaces_what_stands_between_the_markers(folder: Path) -> None:
    unknown = "after <!-- bench:scale -->\nkept\n<!-- /bench:scale -->"
    text = f"before\n<!-- bench:peaks -->\nold\n<!-- /bench:peaks -->\n{unknown}"
    assert report.quoted(text) == text  # There are no results of either.
    results.save("peaks", ROWS, {})
    new = report.quoted(text)
    assert "| copy | 12 |" in new
    assert "old" not in new
    assert new.startswith("before\n<!-- bench:peaks -->\n")
    assert new.endswith(unknown)
    assert report.quoted(new) == new
    with pytest.raises(ValueError, match="bench:nothing"):
        report.quoted("<!-- bench:nothing -->\n<!-- /bench:nothing -->")


def test_the_page_holds_what_the_compile_check_prints(folder: Path) -> None:
    pytest.importorskip("triton")
    from fastdm.kernels import compile_check

    one = compile_check.Report(
        "u8 3x32²", "dsa_fwd_kernel", "sm_80", 4, 48, 0, 16, {"8": 3, "128": 1}, {"16": 3}, 448, 0
    )
    two = dataclasses.replace(one, target="sm_90", registers=44, spills=2)
    reports = [one, two, dataclasses.replace(one, target="sm_100", registers=45)]
    results.save("compile", compile_rows([dataclasses.asdict(report) for report in reports]), {})
    page = report.page(folder / "plots")
    assert compile_check.table(reports) in page
    assert "| dsa_fwd | u8 3x32² | 4 | 48 / 44 / 45 | 0 (sm_90 2) | 16 | 1·128 + 3·8 | 3·16 | 448 |" in page
    assert "registers (sm_80 / sm_90 / sm_100)" in page


def test_the_page_marks_what_is_stale_failed_or_slower(folder: Path) -> None:
    times = {"fastdm": results.spread([2e-6]), "eager": results.spread([1e-6])}
    rows = [
        {"name": "slow", "seconds": times, "speedup": {"eager": 0.5}, "error": 0.0, "tolerance": 0.0, "correct": True},
        {"name": "wrong", "error": 0.5, "tolerance": 0.0, "correct": False},
        {"name": "broken", "failure": "RuntimeError: no"},
    ]
    path = results.save("kernels", rows, {})
    result = json.loads(path.read_text())
    result["code"]["kernels"] = "0" * 12
    path.write_text(json.dumps(result))
    page = report.page(folder / "plots")
    assert "**Stale**: since then kernels changed." in page
    assert "- slow: 2.00\u00d7 the time of eager" in page
    assert "| wrong | wrong result |" in page
    assert "- broken: RuntimeError: no" in page
