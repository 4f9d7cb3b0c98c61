"""Records: what is committed obeys the schema, and says when the code that it measured has changed."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from bench import compile, kernels, peaks, report
from bench.harness import machine, records
from bench.harness.records import Recorder, Row
from tests.bench.schema import SCHEMA, saved

COMMITTED = [json.loads(path.read_text()) for path in sorted(records.FOLDER.rglob("*.json"))]
ROW = {"name": "copy", "gb_per_s": 12.0, "seconds": {"copy": records.spread([1.0, 2.0, 3.0])}}


def check(result: dict[str, Any]) -> None:
    jsonschema.validate(result, SCHEMA, format_checker=jsonschema.FormatChecker())


def test_committed_records_obey_the_schema() -> None:
    assert COMMITTED
    for result in COMMITTED:
        check(result)
        assert result in report.SUITES[result["suite"]].load()
        assert not result["settings"].get("smoke"), f"{result['suite']} is a smoke run, whose times mean nothing"


def test_no_committed_record_of_the_present_code_has_a_red_row() -> None:
    for result in COMMITTED:
        if not records.changed(report.SUITES[result["suite"]], result):
            wrong = [row for row in result["rows"] if row.get("correct") is False or "failure" in row]
            assert not wrong, wrong


def test_what_is_saved_is_valid_and_loaded_again(folder: Path) -> None:
    result = saved(peaks.SUITE, ROW)
    check(result)
    (path,) = folder.glob("peaks--*.json")
    assert json.loads(path.read_text()) == result
    assert result["rows"] == [ROW]


def test_a_smoke_run_leaves_the_records_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTDM_RESULTS", raising=False)
    monkeypatch.setattr(records, "SMOKE_FOLDER", tmp_path)
    Recorder(peaks.SUITE, {"smoke": True}).add(ROW)
    assert [path.name.split("--")[0] for path in tmp_path.iterdir()] == ["peaks"]
    assert records.folder() == records.FOLDER


def test_a_measurement_that_fails_leaves_the_other_rows(folder: Path) -> None:
    def fail() -> Row:
        raise RuntimeError("no")

    recorder = Recorder(peaks.SUITE, {})
    recorder.add({"name": "broken"}, fail)
    recorder.add({"name": "whole"}, lambda: {"gb_per_s": 1.0})
    (result,) = peaks.SUITE.load()
    check(result)
    assert result["rows"] == [
        {"name": "broken", "failure": "RuntimeError: no"},
        {"name": "whole", "gb_per_s": 1.0},
    ]


def test_no_speed_stands_next_to_a_red_check(folder: Path) -> None:
    result = saved(peaks.SUITE, {**ROW, "correct": False})
    with pytest.raises(jsonschema.ValidationError):
        check(result)


@pytest.mark.parametrize("peak", ["copy", "matmul"])
def test_more_than_the_peak_needs_a_reason(folder: Path, peak: str) -> None:
    check(saved(kernels.SUITE, {"name": "a", f"percent_of_{peak}": 100.0}))
    check(saved(kernels.SUITE, {"name": "a", f"percent_of_{peak}": 101.0, "note": "it stays in the cache"}))
    with pytest.raises(jsonschema.ValidationError):
        check(saved(kernels.SUITE, {"name": "a", f"percent_of_{peak}": 101.0}))


def test_a_record_is_stale_once_its_code_has_changed_and_not_when_it_moves(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "repository"
    ops = repository / "kernels" / "ops.py"
    ops.parent.mkdir(parents=True)
    ops.write_text("1\n")
    monkeypatch.setattr(records, "REPOSITORY", repository)

    def changed() -> list[str]:
        records.room_hash.cache_clear()
        return records.changed(compile.SUITE, result)

    records.room_hash.cache_clear()
    result = saved(compile.SUITE, {"name": "a"})
    assert changed() == []
    (repository / "kernels" / "notes.md").write_text("not code\n")
    assert changed() == []
    moved = repository / "kernels" / "random" / "op.py"
    moved.parent.mkdir()
    ops.rename(moved)
    assert changed() == []
    moved.write_text("2\n")
    assert changed() == ["kernels"]
    records.room_hash.cache_clear()


def test_every_suite_measures_rooms_that_exist() -> None:
    for suite in report.SUITES.values():
        for room in suite.rooms:
            assert records.room_hash(room) != "absent", f"{suite.name} measures {room}, which is not there"


def test_the_commit_and_the_card_are_named_by_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "_output", lambda *arguments: "")
    assert machine.commit() == "0000000"
    monkeypatch.setenv("FASTDM_COMMIT", "0123456789ab")
    assert machine.commit() == "0123456789ab"
    monkeypatch.setenv("FASTDM_DEVICE_NAME", "a card")
    assert machine.describe("cuda:0")["device"] == "a card"
    assert machine.describe("cpu")["device"] == "cpu"


def test_the_spread_is_the_median_with_two_percentiles() -> None:
    assert records.spread([5.0]) == {"n": 1, "median": 5.0, "p20": 5.0, "p80": 5.0}
    assert records.spread([6.0, 1.0, 3.0, 2.0, 5.0, 4.0]) == {"n": 6, "median": 3.5, "p20": 2.0, "p80": 5.0}
