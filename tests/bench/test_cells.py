"""Tables out of lines of header, key and format."""

import pytest

from bench.harness import cells, records
from bench.harness.records import Row

ROW: Row = {
    "name": "a|b",
    "ratio": {"public": 2.25},
    "bytes": 3e9,
    "seconds": {"fastdm raised": records.spread([0.002])},
    "error": 1e-3,
    "tolerance": 1e-2,
    "unit": "P",
    "met": False,
}


@pytest.mark.parametrize(
    ("described", "expected"),
    [
        ("name", ("name", "a\\|b")),
        ("size | name", ("size", "a\\|b")),
        ("times | ratio.public | .1f", ("times", "2.2")),
        ("after | ratio.public | {:.2f} iterations", ("after", "2.25 iterations")),
        ("GB | bytes | .0f/1e9", ("GB", "3")),
        ("ms | fastdm raised | ms", ("ms", "2")),
        ("in its unit | bytes | unit", ("in its unit", "3e+09 P")),
        ("error", ("error", "1.0e-03 ≤ 1.0e-02")),
        ("median error | median_error", ("median error", "")),
        ("ratio.raised | ratio.raised | .1f", ("ratio.raised", "")),
        ("met", ("met", "no")),
    ],
)
def test_a_column_is_a_header_a_key_and_a_format(described: str, expected: tuple[str, str]) -> None:
    ((header, cell),) = cells.columns(described, met=cells.met)
    assert (header, cell(ROW)) == expected


def test_columns_are_told_apart_by_semicolons_and_lines() -> None:
    described = cells.columns(
        """
        size | name; error
        GB | bytes | .0f/1e9
        """
    )
    assert [header for header, _ in described] == ["size", "error", "GB"]
    assert cells.table(described, [ROW]).splitlines()[2] == "| a\\|b | 1.0e-03 ≤ 1.0e-02 | 3 |"
